"""Schedule grids against the trainer's numbers, and a solver that survives equal timesteps."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from pipeline.cosmos3.sampler import make_solver


@pytest.fixture(scope="module")
def scheduler_config(tiny_checkpoint):
    return json.loads((tiny_checkpoint / "scheduler" / "scheduler_config.json").read_text())


def flow_solver(scheduler_config, steps, shift):
    return make_solver(scheduler_config, num_inference_steps=steps, flow_shift=shift, use_karras_sigmas=False)


def test_four_steps_of_shift_five_are_the_policy_servers(scheduler_config):
    assert flow_solver(scheduler_config, 4, 5.0).timesteps.tolist() == [999, 937, 833, 624]


@pytest.mark.parametrize(("shift", "last"), [(10.0, 256), (5.0, 146)])
def test_thirty_steps_end_where_the_trainers_grid_ends(scheduler_config, shift, last):
    timesteps = flow_solver(scheduler_config, 30, shift).timesteps
    assert (len(timesteps), timesteps[0].item(), timesteps[-1].item()) == (30, 999, last)
    assert not timesteps.is_floating_point()


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 5.0), (30, 10.0)])
def test_sigmas_follow_the_closed_form(scheduler_config, steps, shift):
    """s * x / (1 + (s - 1) x) of linspace(0.999, 0, n + 1)[:-1], and a zero behind."""
    grid = torch.linspace(0.999, 0, steps + 1, dtype=torch.float64)
    expected = shift * grid / (1 + (shift - 1) * grid)
    sigmas = flow_solver(scheduler_config, steps, shift).sigmas
    assert torch.allclose(sigmas.double(), expected, atol=1e-6)
    assert sigmas[-1] == 0


def test_karras_only_when_asked_and_then_the_checkpoints_own(scheduler_config):
    assert scheduler_config["use_karras_sigmas"] is True
    own = UniPCMultistepScheduler.from_config(scheduler_config)
    own.set_timesteps(10)
    karras = make_solver(scheduler_config, num_inference_steps=10, flow_shift=10.0, use_karras_sigmas=True)
    assert torch.equal(karras.timesteps, own.timesteps)
    assert torch.equal(karras.sigmas, own.sigmas)
    assert not torch.allclose(flow_solver(scheduler_config, 10, 10.0).sigmas, own.sigmas, atol=1e-2)


@pytest.mark.parametrize("configured", [True, False])
def test_none_does_what_the_config_says(scheduler_config, configured):
    config = scheduler_config | {"use_karras_sigmas": configured}
    read = make_solver(config, num_inference_steps=10, flow_shift=10.0, use_karras_sigmas=None)
    told = make_solver(config, num_inference_steps=10, flow_shift=10.0, use_karras_sigmas=configured)
    assert torch.equal(read.sigmas, told.sigmas)


def test_a_config_without_the_key_means_the_flow_grid(scheduler_config):
    config = {key: value for key, value in scheduler_config.items() if key != "use_karras_sigmas"}
    read = make_solver(config, num_inference_steps=10, flow_shift=10.0, use_karras_sigmas=None)
    assert torch.equal(read.sigmas, flow_solver(scheduler_config, 10, 10.0).sigmas)


@pytest.mark.parametrize("steps", [1, 4, 1000])
def test_a_constant_velocity_is_integrated_exactly_also_where_timesteps_repeat(scheduler_config, steps):
    """On a straight line x = x0 + sigma * v the solver must arrive at x0; it does not if it starts at a wrong step."""
    solver = flow_solver(scheduler_config, steps, 10.0)
    first_two = solver.timesteps[:2].tolist()
    assert steps < 1000 or first_two[0] == first_two[1], "this case is here for its repeated first timestep"
    x0, v = torch.tensor([[0.5, -2.0]]), torch.tensor([[3.0, 1.0]])
    state = x0 + solver.sigmas[0] * v
    for timestep in solver.timesteps:
        state = solver.step(v, timestep, state, return_dict=False)[0]
    assert solver.step_index == steps
    assert torch.allclose(state, x0, atol=2e-5)

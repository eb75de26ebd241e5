"""The training loop goes on bit for bit where it was stopped, and refuses what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.training.loop import CURVES_NAME, STATE_NAME, LoopSettings, Training

SETTINGS = LoopSettings(num_steps=40, learning_rate=0.05, warmup_steps=5, save_every_s=0.0, log_every=10, seed=3)
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


def fresh_model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def loss_of(model: nn.Linear):
    def loss(generator: torch.Generator):
        inputs = torch.randn(16, 3, generator=generator)
        error = (model(inputs) - inputs @ TRUTH.T).square().mean()
        return error, {"error": float(error.detach())}

    return loss


def train(folder: Path, settings: LoopSettings = SETTINGS, *, stop_at: int | None = None) -> Training:
    model = fresh_model()
    training = Training(model, settings, folder)
    loss = loss_of(model)

    def stopping(generator: torch.Generator):
        if training.num_steps_done == stop_at:
            raise KeyboardInterrupt
        return loss(generator)

    training.run(stopping, doing="test")
    return training


def test_it_learns(tmp_path):
    training = train(tmp_path)
    assert training.is_done
    lines = [json.loads(line) for line in (tmp_path / CURVES_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["error"] < 0.5 * lines[0]["error"]
    assert training.averaged()["weight"].shape == (1, 3)


@pytest.mark.parametrize("stop_at", [1, 17, 39])
def test_what_was_stopped_ends_with_the_same_bits(tmp_path, stop_at):
    through = train(tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop_at=stop_at)
    resumed = train(tmp_path / "stopped")
    assert resumed.num_steps_done == 40
    for name, average in through.averaged().items():
        assert torch.equal(average, resumed.averaged()[name])
    assert torch.equal(through.model.weight, resumed.model.weight)


@pytest.mark.parametrize("save_every_s", [0.0, 1e9])
def test_the_curves_have_every_step_once_however_often_it_was_taken(tmp_path, save_every_s):
    settings = LoopSettings(**(vars(SETTINGS) | {"save_every_s": save_every_s}))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, stop_at=27)
    train(tmp_path, settings)
    steps = [json.loads(line)["step"] for line in (tmp_path / CURVES_NAME).read_text().splitlines()]
    assert steps == [10, 20, 30, 40]


def test_another_seed_gives_other_weights(tmp_path):
    other = LoopSettings(**(vars(SETTINGS) | {"seed": 4}))
    assert not torch.equal(train(tmp_path / "a").model.weight, train(tmp_path / "b", other).model.weight)


def test_a_state_of_other_settings_is_refused_by_name(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings.*learning_rate"):
        Training(fresh_model(), LoopSettings(**(vars(SETTINGS) | {"learning_rate": 0.1})), tmp_path)


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / STATE_NAME).write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match=STATE_NAME):
        Training(fresh_model(), SETTINGS, tmp_path)


def test_a_gradient_that_is_no_number_stops_it_before_the_weights_are_lost(tmp_path):
    model = fresh_model()
    training = Training(model, SETTINGS, tmp_path)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match="step 0: the gradient is nan"):
        training.run(lambda generator: (model.weight.sum() * float("nan"), {}), doing="test")
    assert torch.equal(model.weight, before)


def test_pictures_are_taken_with_the_averaged_weights_and_change_nothing(tmp_path):
    model = fresh_model()
    training = Training(model, SETTINGS, tmp_path)
    seen = []
    training.run(loss_of(model), doing="test", look=lambda: seen.append(model.weight.detach().clone()))
    assert len(seen) == 40
    assert torch.equal(seen[-1], training.averaged()["weight"])
    assert not torch.equal(seen[-1], model.weight)
    assert torch.equal(model.weight, train(tmp_path / "again").model.weight)


def test_the_learning_rate_rises_and_falls():
    rates = [SETTINGS.learning_rate_at(step) for step in range(41)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) <= 0.05
    assert rates[4] > rates[3] > rates[0]
    assert rates[40] == pytest.approx(0.0005, rel=0.01)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_state_is_replaced_as_a_whole(tmp_path):
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURVES_NAME, STATE_NAME]
    assert "average.weight" in load_file(tmp_path / STATE_NAME)

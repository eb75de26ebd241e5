"""The objective is the one that sampling undoes: same tokens, same masks, same scales, and nothing counts that is not
asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.cosmos3.packing import PackedBatch, Sample
from pipeline.training.checkpoints import trainable_transformer
from pipeline.training.flow import Example, FlowSettings, flow_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "cosmos3"))
from request_factory import make_request

MODES = ("inverse_dynamics", "forward_dynamics", "policy")
CHUNK = 8


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return trainable_transformer(read_checkpoint_config(tiny_checkpoint))


def example(content: int, *, num_actions: int = CHUNK, grid: tuple[int, int] = (4, 5)) -> Example:
    generator = torch.Generator().manual_seed(content)
    action = torch.zeros(CHUNK, 64)
    action[:, :10] = torch.rand(CHUNK, 10, generator=generator) * 2 - 1
    video = torch.randn(48, 1 + CHUNK // 4, *grid, generator=generator)
    return Example(make_request(content, grid=grid), video, action, num_actions=num_actions)


def only(mode: str, **changes) -> FlowSettings:
    return FlowSettings(mode_shares={mode: 1.0}, **({"text_dropout": 0.0} | changes))


def loss_of(model, examples, settings, seed=0):
    return flow_loss(model, examples, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_levels_is_what_the_engine_s_packing_gives_alone(model, mode):
    """Each sample by itself, with one timestep for all its tokens as in sampling, from the same draws."""
    examples, settings = [example(1), example(2, grid=(3, 3))], only(mode)
    found = loss_of(model, examples, settings)
    generator = torch.Generator().manual_seed(0)
    settings.draw_modes([False, False], generator)
    levels = settings.draw_levels(2, generator)
    torch.rand(2, generator=generator)
    total = 0.0
    for each, level in zip(examples, levels, strict=True):
        request = replace(each.request, mode=mode, cond_action=each.action_RA)
        noise = [torch.randn(part.shape, generator=generator) for part in (each.video_CTHW, each.action_RA)]
        video = (1 - level) * each.video_CTHW + level * noise[0]
        action = (1 - level) * each.action_RA + level * noise[1]
        conditioning = request.conditioning
        for frame in conditioning.clean_frames:
            video[:, frame] = each.video_CTHW[:, frame]
        for row in conditioning.clean_rows:
            action[row] = each.action_RA[row]
        action[:, 10:] = 0
        with torch.no_grad():
            sample = Sample(request, model.encode_text(request.text_ids), None, video, action)
            batch = PackedBatch(model, [sample])
            velocity = batch.velocity(batch.initial_state(), level * 1000.0)
        [(video_velocity, action_velocity)] = batch.unpack(velocity)
        if mode != "inverse_dynamics":
            frames = list(conditioning.noisy_frames)
            target = (noise[0] - each.video_CTHW)[:, frames]
            total += (video_velocity[:, frames] - target).square().mean() / 2
        if mode != "forward_dynamics":
            target = (noise[1] - each.action_RA)[:, :10]
            total += settings.action_weight * (action_velocity - target).square().mean() / 2
    assert float(found.total.detach()) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "has_video", "acting"),
    [("inverse_dynamics", False, True), ("forward_dynamics", True, False), ("policy", True, True)],
)
def test_a_mode_is_asked_for_what_it_draws(model, mode, has_video, acting):
    found = loss_of(model, [example(1), example(2)], only(mode))
    assert (found.video is not None) == has_video
    assert list(found.action) == ([mode] if acting else [])


def test_what_fills_a_short_window_up_does_not_count(model):
    """From pure noise, so that the filling is not seen either."""
    settings = only("policy", flow_shift=1e9)
    short = example(1, num_actions=4)
    filled = replace(short, action_RA=short.action_RA.clone(), video_CTHW=short.video_CTHW.clone())
    filled.action_RA[4:, :10] += 3.0
    filled.video_CTHW[:, 2:] -= 3.0
    whole = [replace(each, num_actions=CHUNK) for each in (short, filled)]
    losses = [float(loss_of(model, [each], settings).total.detach()) for each in (short, filled, *whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[2] - losses[3]) > 1.0


def test_a_latent_frame_counts_when_all_its_pixel_frames_are_recorded():
    video, action = example(1, num_actions=5).is_recorded()
    assert video[0, :, 0, 0].tolist() == [True, True, False]
    assert action[:, 0].tolist() == [True] * 5 + [False] * 3


def test_columns_beyond_the_embodiment_s_do_not_count(model):
    settings, plain = only("inverse_dynamics"), example(1)
    padded = replace(plain, action_RA=plain.action_RA.clone())
    padded.action_RA[:, 10:] = 9.0
    losses = [float(loss_of(model, [each], settings).total.detach()) for each in (plain, padded)]
    assert losses[0] == losses[1]


def test_dropped_text_is_the_empty_prompt(model):
    each = example(1)
    empty = replace(each, request=replace(each.request, text_ids=each.request.neg_text_ids))
    dropped = loss_of(model, [each], only("policy", text_dropout=1.0))
    said = loss_of(model, [empty], only("policy"))
    assert float(dropped.total.detach()) == float(said.total.detach())
    assert float(dropped.total.detach()) != float(loss_of(model, [each], only("policy")).total.detach())


def test_levels_follow_the_shifted_grid_of_inference():
    generator = torch.Generator().manual_seed(0)
    levels = FlowSettings(flow_shift=10.0).draw_levels(20_000, generator)
    assert 0 <= levels.min() < levels.max() <= 1
    for u in (0.1, 0.5, 0.9):
        assert float(levels.quantile(u)) == pytest.approx(10 * u / (1 + 9 * u), abs=0.01)


def test_modes_come_in_their_shares():
    settings, generator = FlowSettings(), torch.Generator().manual_seed(0)
    drawn = settings.draw_modes([False, True] * 10_000, generator)
    for first, shares in enumerate((settings.mode_shares, settings.opening_mode_shares)):
        for mode, share in shares.items():
            assert drawn[first::2].count(mode) / 10_000 == pytest.approx(share, abs=0.02)
    assert settings.opening_mode_shares["policy"] > settings.mode_shares["policy"]


def test_gradients_reach_both_towers_and_all_heads(model):
    model.zero_grad()
    loss_of(model, [example(content) for content in range(6)], FlowSettings(text_dropout=0.0)).total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # The text tower's last layer gives keys and values alone: what it adds to the text itself is read by nobody.
    assert all(name.startswith(f"layers.{len(model.layers) - 1}.") for name in without), without
    assert model.embed_tokens.weight.grad.abs().sum() > 0
    assert model.action_proj_out.fc.weight.grad.abs().sum() > 0
    model.zero_grad()

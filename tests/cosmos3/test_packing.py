"""Where tokens sit, which of them carry the timestep, and that a packed batch comes apart again."""

from __future__ import annotations

import pytest
import torch
from request_factory import make_request, relative_error

from pipeline.cosmos3.conditioning import draw_noise
from pipeline.cosmos3.packing import PackedBatch, Sample, _positions

ODD = {"grid": (3, 5)}
TIMESTEP = torch.tensor(700)


@pytest.fixture(scope="module")
def model(engine):
    return engine.transformer


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def make_sample(model, request) -> Sample:
    """All parts noise, clean ones too: packing has to tell them apart by itself."""
    action = torch.zeros(request.action_chunk, 64)
    action[:, : request.raw_action_dim] = draw_noise(request.seed + 100, (request.action_chunk, request.raw_action_dim))
    negative = model.encode_text(request.neg_text_ids) if request.guidance_scale != 1.0 else None
    video = draw_noise(request.seed, (48, *request.video_shape))
    return Sample(request, model.encode_text(request.text_ids), negative, video, action)


def unlike_samples(model) -> list[Sample]:
    requests = [
        make_request(1, **ODD),
        make_request(2, mode="inverse_dynamics", action_chunk=16, domain_id=15, raw_action_dim=29, guidance_scale=2.0),
        make_request(3, mode="forward_dynamics", grid=(5, 1), guidance_scale=3.0),
        make_request(4, mode="inverse_dynamics", cond_frame_indexes=(1,), **ODD),
    ]
    return [make_sample(model, request) for request in requests]


def tokens_seen(model, batch: PackedBatch, state: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The embedded tokens that the model gets at one step."""
    seen = []
    hook = model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].clone()))
    batch.velocity(state, timestep)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("fps", [3.0, 10.0, 15.0, 24.0, 29.97])
def test_action_rows_sit_on_the_frames_they_lead_to(engine, fps):
    """Row k belongs to pixel frame k + 1: row 3 is exactly at latent frame 1, row 7 at latent frame 2."""
    config, start = engine.config.transformer, torch.tensor(15000.0 + 37)
    positions = _positions(make_request(fps=fps, **ODD), 2, 3, config)
    assert positions.shape == (3, 3 * 6 + 8)
    frames, rows = positions[0, :18].view(3, 6), positions[0, 18:]
    assert (frames == frames[:, :1]).all()
    assert torch.equal(frames[1, 0] + start, rows[3] + start)
    assert torch.equal(frames[2, 0] + start, rows[7] + start)
    assert torch.allclose(frames[:, 0], 24 * torch.arange(3) / fps)
    assert torch.allclose(rows, 6 * torch.arange(1, 9) / fps)


def test_rows_and_columns_count_patches_and_actions_have_none(engine):
    positions = _positions(make_request(**ODD), 2, 3, engine.config.transformer)
    assert positions[1, :18].tolist() == [0, 0, 0, 1, 1, 1] * 3
    assert positions[2, :18].tolist() == [0, 1, 2] * 6
    assert not positions[1:, 18:].any()


def test_time_starts_a_margin_of_15000_behind_each_sequences_own_text(model):
    """Guidance's second pass counts from the end of the negative prompt."""
    samples = unlike_samples(model)
    batch = PackedBatch(model, samples)
    texts = [sample.text for sample in samples] + [samples[1].negative_text, samples[2].negative_text]
    expected = []
    for sample, text in zip([*samples, samples[1], samples[2]], texts, strict=True):
        _, h, w = sample.request.video_shape
        positions = _positions(sample.request, -(-h // 2), -(-w // 2), model.config)
        positions[0] += text.num_tokens + 15000
        expected.append(positions)
    rotary = model.rotary(torch.cat(expected, dim=1))
    assert torch.equal(batch._packed.rotary.cos, rotary.cos)
    assert torch.equal(batch._packed.rotary.sin, rotary.sin)
    assert batch._packed.text == texts


def test_a_patch_is_row_then_column_then_channel(model):
    """On a 2x2 grid one latent frame is one token: [p_row, p_col, C] of the latent, through `proj_in`."""
    sample = make_sample(model, make_request(grid=(2, 2), mode="inverse_dynamics"))
    batch = PackedBatch(model, [sample])
    tokens = tokens_seen(model, batch, batch.initial_state(), TIMESTEP)
    patches = sample.video_CTHW.permute(1, 2, 3, 0).reshape(3, 4 * 48)
    assert torch.allclose(tokens[:3], model.embed_video(patches), atol=1e-6)


def test_only_noisy_tokens_carry_the_timestep(model):
    """Between two timesteps clean tokens do not change at all, and noisy ones by the same vector."""
    samples = unlike_samples(model)
    batch = PackedBatch(model, samples)
    state = batch.initial_state()
    early, late = (tokens_seen(model, batch, state, torch.tensor(t)) for t in (999, 256))
    moved = model.embed_timestep(torch.tensor(999)) - model.embed_timestep(torch.tensor(256))
    is_noisy = []
    for sample in [*samples, samples[1], samples[2]]:
        t, h, w = sample.request.video_shape
        parts = sample.request.conditioning
        for frame in range(t):
            is_noisy += [frame in parts.noisy_frames] * (-(-h // 2) * -(-w // 2))
        is_noisy += [row in parts.noisy_rows for row in range(sample.request.action_chunk)]
    is_noisy = torch.tensor(is_noisy)
    assert is_noisy.any()
    assert not is_noisy.all()
    assert torch.equal(early[~is_noisy], late[~is_noisy])
    assert torch.allclose((early - late)[is_noisy], moved.expand(int(is_noisy.sum()), -1), atol=1e-5)


def test_clean_parts_never_enter_the_state(model):
    """Inverse dynamics moves its actions alone, forward dynamics its video alone."""
    inverse = PackedBatch(model, [make_sample(model, make_request(1, mode="inverse_dynamics"))])
    forward = PackedBatch(model, [make_sample(model, make_request(1, mode="forward_dynamics"))])
    assert inverse.initial_state().numel() == 8 * 64
    assert forward.initial_state().numel() == 2 * (2 * 3) * 192


def test_a_state_comes_apart_into_what_was_packed(model):
    """Odd grids, clean and noisy parts: every value returns to its place, bit for bit."""
    samples = unlike_samples(model)
    batch = PackedBatch(model, samples)
    for sample, (video, action) in zip(samples, batch.unpack(batch.initial_state()), strict=True):
        assert torch.equal(video, sample.video_CTHW)
        assert torch.equal(action, sample.action_RA[:, : sample.request.raw_action_dim])


def test_a_changed_state_changes_the_noisy_parts_alone(model):
    samples = unlike_samples(model)
    batch = PackedBatch(model, samples)
    for sample, (video, action) in zip(samples, batch.unpack(batch.initial_state() + 1), strict=True):
        parts, width = sample.request.conditioning, sample.request.raw_action_dim
        expected_video, expected_action = sample.video_CTHW.clone(), sample.action_RA[:, :width].clone()
        expected_video[:, list(parts.noisy_frames)] += 1
        expected_action[list(parts.noisy_rows)] += 1
        assert torch.equal(video, expected_video)
        assert torch.equal(action, expected_action)


def test_padding_never_moves(model):
    """Velocity is zero outside an odd grid and in action columns beyond the raw width, and nowhere else."""
    batch = PackedBatch(model, [make_sample(model, make_request(1, **ODD))])
    velocity = batch.velocity(batch.initial_state(), TIMESTEP)
    video = velocity[: 2 * 6 * 192].view(2, 2, 3, 2, 2, 48)  # frame, patch row and column, row and column in it, C
    assert not video[:, 1, :, 1].any()
    assert not video[:, :, 2, :, 1].any()
    assert (video != 0).sum() == 2 * 3 * 5 * 48
    action = velocity[2 * 6 * 192 :].view(8, 64)
    assert not action[:, 10:].any()
    assert (action[:, :10] != 0).all()


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("mode", ["policy", "inverse_dynamics", "forward_dynamics"])
def test_guidance_extrapolates_from_the_negative_prompt(model, mode, guidance):
    """v = u + g (c - u), where u is what the same request has with the negative prompt as its text."""
    guided = make_request(1, mode=mode, guidance_scale=guidance)
    conditional = make_request(1, mode=mode)
    unconditional = make_request(1, mode=mode, text_ids=guided.neg_text_ids)
    v, c, u = (
        batch.velocity(batch.initial_state(), TIMESTEP)
        for batch in (PackedBatch(model, [make_sample(model, r)]) for r in (guided, conditional, unconditional))
    )
    assert relative_error(c, u) > 1e-3
    assert relative_error(v, u + guidance * (c - u)) < 1e-5


def test_velocities_in_a_batch_are_those_of_each_sample_alone(model):
    samples = unlike_samples(model)
    batch = PackedBatch(model, samples)
    together = batch.unpack(batch.velocity(batch.initial_state(), TIMESTEP))
    for sample, (video, action) in zip(samples, together, strict=True):
        alone = PackedBatch(model, [sample])
        expected_video, expected_action = alone.unpack(alone.velocity(alone.initial_state(), TIMESTEP))[0]
        assert relative_error(video, expected_video) < 1e-5
        assert relative_error(action, expected_action) < 1e-5

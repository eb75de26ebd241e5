"""The VAE learns from what the engine will show it: crops of the canvas, whole clips in the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.training.autoencoder import AutoencoderSettings, autoencoder_loss, code_loss, draw_clips, latent_scale
from pipeline.training.checkpoints import trainable_vae
from pipeline.training.components import Components
from pipeline.training.windows import Recorded
from pipeline.views import choose_canvas, fit, pad

SMALL = AutoencoderSettings(num_latent_frames=2, crop_height_px=32, crop_width_px=48)


def recorded(num_frames: int = 12, seed: int = 0) -> Recorded:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 96, 160, 3), dtype=np.uint8)
    canvas = choose_canvas(96, 160, 256)
    return Recorded(fit(frames, canvas), canvas, np.zeros((num_frames - 1, 10)), "Do it.")


@pytest.fixture(scope="module")
def vae(tiny_checkpoint):
    return trainable_vae(read_checkpoint_config(tiny_checkpoint))


def test_clips_are_cut_from_the_canvas_at_whole_latent_pixels():
    episodes = [recorded(3), recorded(12, seed=1)]
    clips = draw_clips(episodes, 8, SMALL, torch.Generator().manual_seed(0))
    assert clips.shape == (8, 3, 5, 32, 48)
    canvas = pad(episodes[1].frames, episodes[1].canvas)
    height, width = canvas.shape[1:3]
    places = [(start, top, left) for start in range(8) for top in range(0, height, 16) for left in range(0, width, 16)]
    for clip in clips:
        pixels = ((clip + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        assert any(
            np.array_equal(canvas[start : start + 5, top : top + 32, left : left + 48], pixels)
            for start, top, left in places
        )


def test_the_figures_are_those_of_what_is_drawn_and_the_draws_alone_decide(vae):
    clips = draw_clips([recorded()], 1, SMALL, torch.Generator().manual_seed(0))
    settings = AutoencoderSettings(num_latent_frames=2, crop_height_px=32, crop_width_px=48, latent_noise=0.3)
    loss, figures = autoencoder_loss(vae, clips, None, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = vae.encode(clips).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
        drawn = vae.decode(posterior.mean + 0.3 * noise).sample
    assert figures["psnr_db"] == pytest.approx(float(-10 * torch.log10((drawn - clips).square().mean() / 4)), abs=1e-3)
    again, _ = autoencoder_loss(vae, clips, None, settings, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == float(again.detach()) > 0


def test_a_few_steps_draw_better(tiny_checkpoint):
    model = trainable_vae(read_checkpoint_config(tiny_checkpoint))
    clips = draw_clips([recorded()], 2, SMALL, torch.Generator().manual_seed(0)) * 0.3
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(8):
        loss, _ = autoencoder_loss(model, clips, None, SMALL, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_few_steps_come_closer_to_the_code_and_draw_better(tiny_checkpoint):
    model = trainable_vae(read_checkpoint_config(tiny_checkpoint))
    clips = draw_clips([recorded()], 2, SMALL, torch.Generator().manual_seed(0)) * 0.3
    components = Components.of([clips], model.config.z_dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator, errors, quality = torch.Generator().manual_seed(0), [], []
    for _ in range(8):
        loss, figures = code_loss(model, clips, components, SMALL, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(figures["code_error"])
        quality.append(figures["psnr_db"])
    assert errors[-1] < 0.8 * errors[0]
    assert quality[-1] > quality[0] + 1


def test_latents_that_stay_close_to_their_code_cost_less(vae):
    clips = draw_clips([recorded()], 1, SMALL, torch.Generator().manual_seed(0))
    components = Components.of([clips], vae.config.z_dim)
    free, _ = autoencoder_loss(vae, clips, None, SMALL, torch.Generator().manual_seed(0))
    held, figures = autoencoder_loss(vae, clips, components, SMALL, torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (vae.encode(clips).latent_dist.mean - components.code(clips)).square().mean()
    assert figures["code_error"] == pytest.approx(float(error), rel=1e-5)
    assert float(held.detach() - free.detach()) == pytest.approx(float(error), rel=1e-3)


def test_scaled_latents_have_unit_variance(vae):
    clips = list(draw_clips([recorded()], 4, SMALL, torch.Generator().manual_seed(1)))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in latent_scale(vae, clips))
    with torch.no_grad():
        latents = torch.cat([(vae.encode(clip[None]).latent_dist.mode() - mean) / std for clip in clips])
    per_channel = latents.permute(1, 0, 2, 3, 4).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(48), atol=1e-4, rtol=0)
    torch.testing.assert_close(per_channel.std(1), torch.ones(48), atol=1e-3, rtol=0)

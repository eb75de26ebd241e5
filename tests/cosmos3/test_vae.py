"""The VAE against diffusers' own class, alone and together, whole and in prefixes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from request_factory import relative_error

from pipeline.cosmos3 import vae as vae_module

CPU, FP32 = torch.device("cpu"), torch.float32


def clip(seed: int, num_frames: int, height_px: int, width_px: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, num_frames, height_px, width_px), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def vae(engine):
    return engine.vae


@pytest.fixture(scope="module")
def peer_vae(tiny_checkpoint):
    return AutoencoderKLWan.from_pretrained(tiny_checkpoint / "vae", torch_dtype=FP32).eval()


@torch.inference_mode()
def test_latents_are_the_normalised_mode_of_diffusers_vae(vae, peer_vae):
    pixels = clip(0, 9, 48, 32)
    mode = peer_vae.encode(pixels[None].float() / 127.5 - 1).latent_dist.mode()[0]
    mean, std = (torch.tensor(peer_vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents = vae.encode([pixels])[0]
    assert latents.shape == (48, 3, 3, 2)
    assert relative_error(latents, (mode - mean) / std) < 1e-5


@torch.inference_mode()
def test_pixels_are_diffusers_decoding_in_zero_to_one(vae, peer_vae):
    latents = torch.randn(48, 2, 3, 2, generator=torch.Generator().manual_seed(1)) * 3
    mean, std = (torch.tensor(peer_vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    expected = (peer_vae.decode((latents * std + mean)[None]).sample[0] / 2 + 0.5).clamp(0, 1)
    pixels = vae.decode(latents)
    assert pixels.shape == (3, 5, 48, 32)
    assert relative_error(pixels, expected) < 1e-5
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@torch.inference_mode()
def test_bytes_and_floats_of_one_clip_encode_alike(vae):
    pixels = clip(2, 5, 32, 32)
    as_bytes, as_floats = vae.encode([pixels])[0], vae.encode([pixels.float() / 127.5 - 1])[0]
    assert torch.equal(as_bytes, as_floats)


@torch.inference_mode()
def test_clips_of_unlike_shapes_come_back_in_order_and_as_if_alone(vae):
    clips = [clip(0, 5, 32, 48), clip(1, 1, 32, 32), clip(2, 5, 32, 48), clip(3, 9, 16, 16), clip(4, 1, 32, 32)]
    for found, single in zip(vae.encode(clips), clips, strict=True):
        assert relative_error(found, vae.encode([single])[0]) < 1e-5


@torch.inference_mode()
def test_the_pixel_budget_changes_no_latent(vae, monkeypatch):
    clips = [clip(seed, 1, 32, 32) for seed in range(5)]
    together = vae.encode(clips)
    monkeypatch.setattr(vae_module, "_MAX_PIXELS_PER_CALL", 2 * 32 * 32)
    for found, expected in zip(vae.encode(clips), together, strict=True):
        assert relative_error(found, expected) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_a_prefix_encodes_to_the_prefix_of_the_latents(vae, num_frames):
    whole = clip(3, 13, 32, 32)
    prefix = vae.encode([whole[:, :num_frames]])[0]
    assert relative_error(prefix, vae.encode([whole])[0][:, : 1 + (num_frames - 1) // 4]) < 1e-5


def test_without_its_decoder_it_only_encodes(engine):
    folder = engine.config.folder / "vae"
    encoder = vae_module.VideoVae.from_pretrained(folder, engine.config.vae, device=CPU, dtype=FP32, decoder=False)
    assert not encoder.has_decoder
    pixels = clip(0, 5, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder.encode([pixels])[0], engine.vae.encode([pixels])[0])

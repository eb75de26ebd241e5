"""The VAE's objectives: latents that stand for something, and pixels that come back. Owns losses, crops and scale.

First encoder and decoder learn a given code, apart from each other; then both learn to draw, together. That is before
the transformer is trained, and not again: latents are computed once. Crops are cut at multiples of the latent stride,
in clips of a few frames; a VAE is convolutional and causal, so it needs no more to be used on whole clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from pipeline.training.components import Components
from pipeline.training.windows import Recorded
from pipeline.views import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX, pad


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    num_latent_frames: int = 3  # of a training clip; the VAE treats its first two unlike all others
    crop_height_px: int = 96
    crop_width_px: int = 96
    latent_noise: float = 0.1  # what the transformer is off by, at best
    spread_weight: float = 1e-3
    edge_weight: float = 0.5
    motion_weight: float = 3.0
    code_weight: float = 1.0
    code_spread_weight: float = 0.1  # of how far off the encoder says it is, beside how far it is

    @property
    def num_frames(self) -> int:
        return 1 + LATENT_STRIDE_FRAMES * (self.num_latent_frames - 1)


def draw_clips(
    episodes: Sequence[Recorded], count: int, settings: AutoencoderSettings, generator: torch.Generator
) -> torch.Tensor:
    """[count, 3, T, h, w] in [-1, 1]: crops of clips on their canvas, none of which lies in its margins alone."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    clips = []
    while len(clips) < count:
        episode = episodes[below(len(episodes))]
        if len(episode.frames) < settings.num_frames:
            continue
        start = below(len(episode.frames) - settings.num_frames + 1)
        canvas, crop = episode.canvas, (settings.crop_height_px, settings.crop_width_px)
        whole = (canvas.height_px, canvas.width_px)
        content = (canvas.content_height_px, canvas.content_width_px)
        ends = [min(side, size + part // 2) for side, size, part in zip(whole, content, crop, strict=True)]
        top, left = (
            LATENT_STRIDE_PX * below(max(end - part, 0) // LATENT_STRIDE_PX + 1)
            for end, part in zip(ends, crop, strict=True)
        )
        clip = pad(episode.frames[start : start + settings.num_frames], canvas)[:, top:, left:][:, : crop[0], : crop[1]]
        clips.append(torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2))
    return torch.stack(clips).float() / 127.5 - 1.0


def code_loss(
    model: AutoencoderKLWan,
    clips_BCTHW: torch.Tensor,
    components: Components,
    settings: AutoencoderSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The encoder gives the components, and says how far it is off; the decoder draws from them, that far off."""
    posterior = model.encode(clips_BCTHW).latent_dist
    code = components.code(clips_BCTHW)
    squared = (posterior.mean - code).square()
    spread = 0.5 * (squared.detach() / posterior.var + posterior.logvar)
    noise = torch.randn(code.shape, generator=generator)
    pixels, figures = _pixel_loss(model.decode(code + posterior.std.detach() * noise).sample, clips_BCTHW, settings)
    loss = settings.code_weight * (squared.mean() + settings.code_spread_weight * spread.mean()) + pixels
    return loss, figures | {"code_error": float(squared.detach().mean())}


def autoencoder_loss(
    model: AutoencoderKLWan,
    clips_BCTHW: torch.Tensor,
    components: Components | None,
    settings: AutoencoderSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Encoder and decoder as one; where there are components, the latents stay close to them.

    The decoder draws from latents with `latent_noise`. The posterior's own deviation, which only who samples from it
    uses, is drawn towards that.
    """
    posterior = model.encode(clips_BCTHW).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    pixels, figures = _pixel_loss(
        model.decode(posterior.mean + settings.latent_noise * noise).sample, clips_BCTHW, settings
    )
    spread = (posterior.logvar - 2 * math.log(settings.latent_noise)).square().mean()
    loss = pixels + settings.spread_weight * spread
    if components is not None:
        error = (posterior.mean - components.code(clips_BCTHW)).square().mean()
        loss, figures = loss + settings.code_weight * error, figures | {"code_error": float(error.detach())}
    return loss, figures


def _pixel_loss(
    drawn_BCTHW: torch.Tensor, clips_BCTHW: torch.Tensor, settings: AutoencoderSettings
) -> tuple[torch.Tensor, dict[str, float]]:
    """Absolute errors of pixels and of edges; what differs from the clip's first frame is what a rollout must draw."""
    motion = (clips_BCTHW - clips_BCTHW[:, :, :1]).abs().mean(1, keepdim=True)
    weight = 1 + settings.motion_weight * (4 * motion).clamp(max=1)
    pixels = (weight * (drawn_BCTHW - clips_BCTHW).abs()).mean()
    edges = sum(F.l1_loss(torch.diff(drawn_BCTHW, dim=axis), torch.diff(clips_BCTHW, dim=axis)) for axis in (-1, -2))
    squared = (drawn_BCTHW.detach() - clips_BCTHW).square().mean()
    return pixels + settings.edge_weight * edges, {"psnr_db": float(-10 * torch.log10(squared / 4))}


@torch.no_grad()
def latent_scale(model: AutoencoderKLWan, clips: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation [C] of each latent channel over clips [3, T, H, W] in [-1, 1]."""
    latents = torch.cat([model.encode(clip[None]).latent_dist.mode().flatten(2)[0] for clip in clips], dim=1)
    return latents.mean(1).tolist(), latents.std(1).clamp_min(1e-3).tolist()

"""The Wan 2.2 VAE (diffusers' `AutoencoderKLWan`): pixels to normalised latents and back.

It is causal in time: a latent frame depends on pixel frames up to its own, so a prefix of a clip can be encoded alone.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from pipeline.cosmos3.loading import load_strictly, no_names
from pipeline.errors import CheckpointError

# Clips encoded in one call: about one 17-frame clip at 720x1280, or dozens of the small tiers.
_MAX_PIXELS_PER_CALL = 17 * 720 * 1280


class VideoVae:
    """Encodes conditioning clips; decodes only if it was loaded with the decoder."""

    def __init__(self, model: AutoencoderKLWan, *, has_decoder: bool) -> None:
        self.model = model
        self.has_decoder = has_decoder
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._mean = torch.tensor(model.config.latents_mean, device=parameter.device).view(1, -1, 1, 1, 1)
        self._std = torch.tensor(model.config.latents_std, device=parameter.device).view(1, -1, 1, 1, 1)

    @classmethod
    def from_pretrained(
        cls, folder: Path, config: dict[str, Any], *, device: torch.device, dtype: torch.dtype, decoder: bool
    ) -> VideoVae:
        """Loads encoder and `quant_conv` strictly; the decoder, four fifths of the weights, only if asked for."""
        model = _build(config, decoder=decoder)
        load_strictly(model, folder, device=device, dtype=dtype, skip=no_names if decoder else _is_decoder)
        if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            _convolve_by_onednn(model)
        return cls(model.eval(), has_decoder=decoder)

    def encode(self, clips: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """[3, T, H, W] clips (uint8, or float in [-1, 1]; T = 4k + 1) -> [C, t, h, w] fp32, in order.

        Clips of one shape are encoded together, up to a budget of pixels. Not so in fp32: a convolution over several
        clips rounds differently from one over each, and fp32 promises the same bits alone and in a batch.
        """
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, clip in enumerate(clips):
            by_shape[clip.shape].append(index)
        latents: list[torch.Tensor | None] = [None] * len(clips)
        for shape, indexes in by_shape.items():
            per_call = 1 if self._dtype == torch.float32 else max(1, _MAX_PIXELS_PER_CALL // shape[1:].numel())
            for start in range(0, len(indexes), per_call):
                chosen = indexes[start : start + per_call]
                for index, latent in zip(chosen, self._encode(torch.stack([clips[i] for i in chosen])), strict=True):
                    latents[index] = latent
        return latents

    def decode(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """[C, t, h, w] normalised latents -> [3, T, 16h, 16w] fp32 in [0, 1]."""
        z = latents_CTHW[None] * self._std + self._mean
        return (self.model.decode(z.to(self._dtype)).sample[0].float() / 2 + 0.5).clamp(0, 1)

    def _encode(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        pixels = clips_BCTHW.to(self._device)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 127.5 - 1.0
        mode = self.model.encode(pixels.to(self._dtype)).latent_dist.mode()
        return (mode.float() - self._mean) / self._std


def _build(config: dict[str, Any], *, decoder: bool) -> AutoencoderKLWan:
    try:
        with torch.device("meta"):
            model = AutoencoderKLWan.from_config(config)
    except Exception as error:  # diffusers checks none of these numbers: whatever a wrong one leads to comes out here
        raise CheckpointError(
            f"vae/config.json is not one that diffusers' AutoencoderKLWan can be built from ({type(error).__name__}: "
            f"{error}). Download the checkpoint again."
        ) from error
    if not decoder:
        del model.decoder, model.post_quant_conv
    return model


def _convolve_by_onednn(model: nn.Module) -> None:
    """For one clip of few channels torch chooses a kernel of its own, which takes three times as long."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module._conv_forward = functools.partial(_onednn_conv3d, module)


def _onednn_conv3d(
    conv: nn.Conv3d, input_BCTHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.mkldnn_convolution(input_BCTHW, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)


def _is_decoder(name: str) -> bool:
    return name.startswith(("decoder.", "post_quant_conv."))

"""What a latent pixel stands for before anything is trained: the principal components of what it sees.

A cell is 4 frames of 16 x 16 pixels, which the VAE turns into one latent pixel. Its components are linear, ordered and
uncorrelated: a code that a VAE of few channels learns in minutes, and a small transformer afterwards. Left to itself
such a VAE packs its channels in ways that nothing small can read.

Shapes: B clips, C channels, t x h x w latent pixels, N cells, D values of a cell's moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.views import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX

# Four frames as their mean and three differences (Haar's wavelets, orthonormal).
_HALF = 0.5**0.5
_HAAR = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [_HALF, -_HALF, 0, 0], [0, 0, _HALF, -_HALF]])
# Differences are motion, and small: by their variance alone few of the components would be theirs.
_MOTION_WEIGHT = 1.5


@dataclass(frozen=True)
class Components:
    """`mean` [4 D], and `basis` [4 D, C] that gives each component unit variance."""

    mean: torch.Tensor
    basis: torch.Tensor

    @classmethod
    def of(cls, clips: Iterable[torch.Tensor], num_channels: int) -> Components:
        """The largest `num_channels` components of clips [B, 3, T, H, W] in [-1, 1]."""
        cells = torch.cat([_cells(clip).flatten(0, 3) for clip in clips])
        mean = cells.mean(0)
        centred = cells - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, directions = variances[-num_channels:].flip(0), directions[:, -num_channels:].flip(1)
        return cls(mean, directions / variances.clamp_min(1e-6).sqrt())

    def code(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """[B, C, t, h, w] of clips [B, 3, 4k + 1, H, W]. The first frame, a latent of its own, counts as four."""
        return ((_cells(clips_BCTHW) - self.mean) @ self.basis).movedim(-1, 1)


def _cells(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """[B, t, h, w, 4 D]: each cell's mean over time and its weighted differences."""
    first = clips_BCTHW[:, :, :1].expand(-1, -1, LATENT_STRIDE_FRAMES, -1, -1)
    frames = torch.cat([first, clips_BCTHW[:, :, 1:]], dim=2)
    cells = frames.unflatten(2, (-1, LATENT_STRIDE_FRAMES)).unflatten(4, (-1, LATENT_STRIDE_PX))
    cells = cells.unflatten(6, (-1, LATENT_STRIDE_PX)).permute(0, 2, 4, 6, 3, 1, 5, 7).flatten(5)  # B t h w 4 D
    weights = torch.tensor([1.0, *[_MOTION_WEIGHT] * (LATENT_STRIDE_FRAMES - 1)]).unsqueeze(-1)
    return (weights * (_HAAR @ cells)).flatten(4)

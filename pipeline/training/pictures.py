"""What a training looks like on its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from pipeline.training.windows import Recorded
from pipeline.views import pad

_NUM_CLIPS, _NUM_FRAMES = 4, 9


@torch.no_grad()
def draw_reconstructions(model: AutoencoderKLWan, episodes: Sequence[Recorded], path: Path) -> None:
    """A clip's last frame as it is and as the VAE draws it, for some of the episodes."""
    columns = []
    for episode in [episode for episode in episodes if len(episode.frames) >= _NUM_FRAMES][:_NUM_CLIPS]:
        frames = pad(episode.frames[:_NUM_FRAMES], episode.canvas)
        clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None] / 127.5 - 1.0
        drawn = model.decode(model.encode(clip).latent_dist.mode()).sample[0, :, -1]
        picture = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        columns.append(np.concatenate([frames[-1], picture]))
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)

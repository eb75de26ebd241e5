"""The videos of the report: recorded, rollout and their difference, frame by frame of the same moments."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from upath import UPath

from pipeline.outputs.videos import write_video
from pipeline.storage import open_path

PANELS = ("recorded", "rollout", "difference")
# Differences are small; shown so many times as bright, they can be seen.
DIFFERENCE_GAIN = 2


class GalleryWriter:
    """Collects the rollout of one segment next to what was recorded."""

    def __init__(self, truth: np.ndarray) -> None:
        """`truth` uint8 [F, H, W, 3]."""
        self._truth = truth
        self._rollout = truth.copy()

    def add(self, window_start: int, positions: np.ndarray, frames: np.ndarray) -> None:
        """Takes the frames at `positions` out of a window's `frames` [chunk + 1, H, W, 3].

        The very first frame is the given one as the VAE draws it; the others that start a window are drawn already.
        """
        if window_start == 0:
            self._rollout[0] = frames[0]
        self._rollout[positions] = frames[positions - window_start]

    def write(self, output_dir: str | Path | UPath, key: str, *, fps: float) -> None:
        """One mp4 per panel, every frame a key frame, so that a slider can jump to any."""
        difference = np.abs(self._rollout.astype(np.int16) - self._truth) * DIFFERENCE_GAIN
        panels = (self._truth, self._rollout, difference.clip(0, 255).astype(np.uint8))
        for panel, frames in zip(PANELS, panels, strict=True):
            write_video(open_path(output_dir) / gallery_path(key, panel), [frames], fps=fps, keyframe_interval=1)


def gallery_path(key: str, panel: str) -> PurePosixPath:
    """Below the output folder."""
    return PurePosixPath("videos") / f"{key[:16]}-{panel}.mp4"

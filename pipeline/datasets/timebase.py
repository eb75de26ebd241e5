"""From the dataset's frame rate to the model's: every n-th frame, or the dataset's own rate. Imports NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.errors import TimebaseError

# 29.97 fps passes for 30, which is a thousandth less; the rest is for floating point.
_RELATIVE_TOLERANCE = 1.01e-3


@dataclass(frozen=True)
class Timebase:
    """Which frames of an episode the model sees, and at what rate it is told that they follow each other."""

    dataset_fps: float
    model_fps: float  # the rate the model is conditioned on
    stride: int  # dataset frames per model frame

    def frame_indexes(self, num_frames: int) -> np.ndarray:
        """int64 [ceil(num_frames / stride)]: 0, stride, 2 · stride, … below `num_frames`."""
        return np.arange(0, num_frames, self.stride, dtype=np.int64)


def resolve_timebase(dataset_fps: float, model_fps: float | None, timebase: str = "model") -> Timebase:
    """The stride that brings a dataset to the model's rate ("model"), or the dataset's own rate ("native").

    Frames are only ever left out, never made up: "model" needs a dataset rate that is an integer multiple of the
    model's. Raises `TimebaseError` for any other, naming both rates.
    """
    _check_rate("dataset", dataset_fps)
    match timebase:
        case "native":
            return Timebase(dataset_fps, dataset_fps, stride=1)
        case "model" if model_fps is None:
            raise TimebaseError(
                "the embodiment states no frame rate, so there is nothing to resample to; use --dataset.timebase native"
            )
        case "model":
            return Timebase(dataset_fps, model_fps, _stride(dataset_fps, model_fps))
    raise TimebaseError(f"timebase {timebase!r} is not known; expected model or native")


def _stride(dataset_fps: float, model_fps: float) -> int:
    _check_rate("model", model_fps)
    ratio = dataset_fps / model_fps
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > _RELATIVE_TOLERANCE * stride:
        raise TimebaseError(
            f"expected a dataset rate that is an integer multiple of the model's {model_fps:g} fps, found "
            f"{dataset_fps:g} fps; use --dataset.timebase native to label at {dataset_fps:g} fps, or resample the "
            f"dataset to an integer multiple of {model_fps:g} fps"
        )
    return stride


def _check_rate(whose: str, fps: float) -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise TimebaseError(f"expected a positive {whose} frame rate in frames per second, found {fps}")

"""What is clean and what is noise: the three modes as a table, and the initial noise.

Source of the table: cosmos-framework's `build_sequence_plan_from_mode`. Noise: its `arch_invariant_rand`, NumPy's
legacy generator on the CPU, started afresh for each request and each modality, so that a request's noise depends on
its own seed and shape and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from pipeline.errors import PipelineError, did_you_mean

Mode = Literal["policy", "forward_dynamics", "inverse_dynamics"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Conditioning:
    """Which latent frames and which action rows are given (clean) and which are denoised (noisy)."""

    clean_frames: tuple[int, ...]
    noisy_frames: tuple[int, ...]
    clean_rows: tuple[int, ...]
    noisy_rows: tuple[int, ...]


def conditioning_for(
    mode: str, *, num_latent_frames: int, action_chunk: int, cond_frame_indexes: Sequence[int] | None = None
) -> Conditioning:
    """The mode's row of the table. `cond_frame_indexes` replaces its clean latent frames.

    | mode             | clean video frames | clean action rows |
    |------------------|--------------------|-------------------|
    | policy           | 0                  | none              |
    | forward_dynamics | 0                  | all               |
    | inverse_dynamics | all                | none              |
    """
    match mode:
        case "policy":
            clean_frames, clean_rows = (0,), ()
        case "forward_dynamics":
            clean_frames, clean_rows = (0,), tuple(range(action_chunk))
        case "inverse_dynamics":
            clean_frames, clean_rows = tuple(range(num_latent_frames)), ()
        case _:
            raise PipelineError(
                f"Unknown mode {mode!r}; expected one of {', '.join(MODES)}.{did_you_mean(mode, MODES)}"
            )
    if cond_frame_indexes is not None:
        clean_frames = _checked_frames(cond_frame_indexes, num_latent_frames)
    return Conditioning(
        clean_frames=clean_frames,
        noisy_frames=_complement(clean_frames, num_latent_frames),
        clean_rows=clean_rows,
        noisy_rows=_complement(clean_rows, action_chunk),
    )


def draw_noise(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of `shape` in fp32 on the CPU, the same on every machine."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def _checked_frames(cond_frame_indexes: Sequence[int], num_latent_frames: int) -> tuple[int, ...]:
    frames = tuple(sorted(set(cond_frame_indexes)))
    if any(index != int(index) or not 0 <= index < num_latent_frames for index in frames):
        raise PipelineError(
            f"cond_frame_indexes {list(cond_frame_indexes)} must be latent frames 0..{num_latent_frames - 1} "
            "(one latent frame is one pixel frame, then four each)."
        )
    return tuple(int(index) for index in frames)


def _complement(chosen: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(index for index in range(count) if index not in set(chosen))

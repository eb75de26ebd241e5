"""Rollouts: chunk after chunk of frames, each starting where the one before it ended.

The framework has no rollout of several action chunks; its users chain them as its one autoregressive path does
(inference/transfer.py): condition on the last decoded frame, count the seed up, drop the frame that both chunks show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult
from pipeline.errors import ResultError
from pipeline.views import Canvas

Run = Callable[[Sequence[Cosmos3ActionRequest]], list[Cosmos3ActionResult]]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a rollout begins, and what is then done."""

    frame: np.ndarray  # uint8 [h, w, 3] at the content size of `canvas`
    canvas: Canvas
    task: str
    seed: int  # of the first chunk; the others count up from it
    num_chunks: int = 1
    actions: np.ndarray | None = None  # [N, D] physical, of all chunks; None where the model chooses them


@dataclass(frozen=True)
class Chunk:
    """One action chunk and the frames that go with it."""

    seed: int
    frames: np.ndarray  # uint8 [chunk + 1, 16h, 16w, 3]; the first is the frame it starts from, as the VAE draws it
    action: np.ndarray  # float32 [chunk, D] physical: what the model said, or was given after clamping
    action_normalized: np.ndarray  # the same in the model's own scale


def roll_out(
    run: Run, processor: Cosmos3PolicyProcessor, starts: Sequence[Start], *, mode: str, **sampling: Any
) -> Iterator[list[Chunk]]:
    """Advances all `starts` together and yields their chunks, one list per step, until each has had its number.

    A decoded frame goes back onto the same canvas, padded as the first one was, so that the latent grid stays as it is.
    `sampling` is num_inference_steps, guidance_scale and so on.
    """
    frames, canvases = [start.frame for start in starts], [start.canvas for start in starts]
    for number in range(max(start.num_chunks for start in starts)):
        active = [index for index, start in enumerate(starts) if number < start.num_chunks]
        requests = [
            _request(processor, starts[index], frames[index], canvases[index], number, mode=mode, **sampling)
            for index in active
        ]
        chunks = []
        for index, request, result in zip(active, requests, run(requests), strict=True):
            answer = processor.postprocess(result)
            chunks.append(Chunk(seed=request.seed, frames=to_frames(result.pixels), **answer))
            frames[index], canvases[index] = chunks[-1].frames[-1], canvases[index].cropped()
        yield chunks


def to_frames(pixels_CTHW: torch.Tensor) -> np.ndarray:
    """An engine's pixels [3, T, H, W] in [0, 1] as frames, uint8 [T, H, W, 3] on the CPU.

    Raises ResultError where a value is not finite: such a picture is no result.
    """
    num_bad = int((~torch.isfinite(pixels_CTHW)).sum())
    if num_bad:
        raise ResultError(f"The decoded video has {num_bad} values that are not finite. Check checkpoint and dtype.")
    return (pixels_CTHW * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()


def _request(
    processor: Cosmos3PolicyProcessor,
    start: Start,
    frame: np.ndarray,
    canvas: Canvas,
    number: int,
    *,
    mode: str,
    **sampling: Any,
) -> Cosmos3ActionRequest:
    inputs = processor.window_inputs(frame[None], canvas, start.task, mode=mode)
    if start.actions is not None:
        chunk = processor.action_chunk_size
        inputs["cond_action"] = processor.cond_action(start.actions[number * chunk : (number + 1) * chunk])
    return processor.to_request(inputs, seed=start.seed + number, decode_video=True, **sampling)

"""Evaluate: recorded windows → rollouts under three courses of action, compared frame by frame with the recording.

All that is compared has been processed identically: composed, resized to the canvas, cropped to what the VAE draws.
Frames are uint8 [T, H, W, 3]; a position counts frames of the segment, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cosmos3.chaining import Chunk, Start, roll_out, to_frames
from pipeline.errors import ConfigError
from pipeline.evaluation.frames import FrameMetrics, load_lpips
from pipeline.evaluation.gallery import GalleryWriter
from pipeline.evaluation.rows import METRICS, evaluation_schema, evaluation_table
from pipeline.plan import window_seed
from pipeline.recipe import EvaluationRecipe
from pipeline.stages.engine_stage import EngineSettings, EngineStage
from pipeline.stages.stage import Row
from pipeline.views import Canvas

_MEASURES = (*METRICS, "moving_share")


@dataclass(frozen=True)
class _Course:
    """What is done from a first frame on."""

    variant: str
    sample: int
    actions: np.ndarray  # [F - 1, D] physical


@dataclass(frozen=True)
class _Window:
    """Where one chunk lies among the segment's frames, and which of them it answers for."""

    start: int
    rollout_start: int  # where its chain began: `start` itself when teacher-forced
    first: int  # first position scored
    stop: int  # last position scored


@dataclass
class _Rows:
    """Rows as they are measured, one list entry per window and variant; joined at the end."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, count: int, **values: Any) -> None:
        """`count` rows; single values are repeated."""
        for name, value in values.items():
            array = np.asarray(value)
            repeated = np.repeat(array[None], count, axis=0) if array.ndim == 0 else array
            self.columns.setdefault(name, []).append(repeated)

    def joined(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}


class Evaluate(EngineStage):
    """Rolls a segment's windows out and measures them.

    Ends what `LoadEvaluation` brought; adds `measured`, the evaluation rows as an Arrow stream. A segment of the
    gallery leaves three videos below the output folder, too.
    """

    consumes = ("frames", "canvas", "timestamps", "actions", "other_actions", "still_actions")
    decodes_video = True

    def __init__(self, recipe: EvaluationRecipe, settings: EngineSettings, output_dir: str, lpips_choice: str) -> None:
        super().__init__(recipe, settings)
        lpips, status = load_lpips(lpips_choice if recipe.lpips else "none", self._engine.device)
        if recipe.lpips and lpips is None:
            raise ConfigError(f"The driver found LPIPS' weights and this node does not. {status}")
        self._metrics = FrameMetrics(device=self._engine.device, lpips=lpips)
        self._output_dir = Path(output_dir)
        self.empty = {"measured": b""}

    def process(self, row: Row) -> Row:
        canvas = Canvas(*(int(size) for size in row["canvas"]))
        drawn = canvas.cropped()
        truth = row["frames"][:, : drawn.content_height_px, : drawn.content_width_px]
        rows, gallery = _Rows(), GalleryWriter(truth)
        courses = self._courses(row)
        for window, chunks in zip(self._windows(row), self._drawn(row, canvas, courses), strict=True):
            part = slice(window.first, window.stop + 1)
            inside = slice(window.first - window.start, window.stop + 1 - window.start)
            recovered, redrawn = self._look_back(row, canvas, window, chunks)
            for course, chunk in zip(courses, chunks, strict=True):
                seen = recovered[course.sample] if course.variant == "recorded" else None
                self._measure(rows, row, window, course, chunk.frames[inside], truth, seen)
            copied = np.repeat(truth[window.rollout_start][None], window.stop + 1 - window.first, axis=0)
            self._measure(rows, row, window, _Course("copy", 0, row["actions"]), copied, truth, None)
            ceiling = _Course("ceiling", 0, row["actions"])
            self._measure(rows, row, window, ceiling, redrawn[inside], truth, recovered[-1])
            gallery.add(window.start, part, chunks[0].frames)
        if row["in_gallery"]:
            gallery.write(self._output_dir, row["key"], fps=self._recipe.timebase.model_fps)
        return {"measured": self._to_stream(rows, row)}

    def _courses(self, row: Row) -> list[_Course]:
        recorded = [_Course("recorded", sample, row["actions"]) for sample in range(self._recipe.num_samples)]
        others = [_Course("other_actions", 0, row["other_actions"])] if len(row["other_actions"]) else []
        return [*recorded, *others, _Course("zero_motion", 0, row["still_actions"])]

    def _windows(self, row: Row) -> Iterator[_Window]:
        is_chain = self._recipe.chaining == "autoregressive"
        offset = int(row["window_starts"][0])
        filled = int(row["label_start"]) - offset
        for position in row["window_starts"]:
            start = int(position) - offset
            stop = min(start + self._recipe.action_chunk, len(row["frames"]) - 1)
            yield _Window(start, 0 if is_chain else start, filled + 1, stop)
            filled = stop

    def _drawn(self, row: Row, canvas: Canvas, courses: Sequence[_Course]) -> Iterator[list[Chunk]]:
        """For each window, the chunk of every course, drawn together."""
        offset, num_windows = int(row["window_starts"][0]), len(row["window_starts"])
        is_chain = self._recipe.chaining == "autoregressive"
        for position in row["window_starts"][: 1 if is_chain else num_windows]:
            start = int(position) - offset
            length = len(row["frames"]) if is_chain else self._recipe.action_chunk
            starts = [
                Start(
                    frame=row["frames"][start],
                    canvas=canvas,
                    task=row["task"],
                    seed=self._seed(row, course.sample, start),
                    num_chunks=num_windows if is_chain else 1,
                    actions=course.actions[start:][:length],
                )
                for course in courses
            ]
            yield from roll_out(self._batcher.run, self._processor, starts, mode="forward_dynamics", **self._sampling)

    def _look_back(
        self, row: Row, canvas: Canvas, window: _Window, chunks: Sequence[Chunk]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Inverse dynamics on each sample of the rollout and, last, on the recording.

        Gives the recovered actions [chunk, D], physical, and the recording as the VAE draws it [chunk + 1, H, W, 3].
        Where a window ends before its chunk does, both clips end there, too.
        """
        span = slice(window.start, window.stop + 1)
        count = window.stop + 1 - window.start
        clips = [(chunk.frames[:count], canvas.cropped(), False) for chunk in chunks[: self._recipe.num_samples]]
        clips.append((row["frames"][span], canvas, True))
        requests = []
        for sample, (clip, its_canvas, decode_video) in enumerate(clips):
            inputs = self._processor.window_inputs(clip, its_canvas, row["task"], mode="inverse_dynamics")
            seed = self._seed(row, sample % self._recipe.num_samples, window.start)
            requests.append(self._processor.to_request(inputs, seed=seed, decode_video=decode_video, **self._sampling))
        results = self._batcher.run(requests)
        recovered = [self._processor.postprocess(result)["action"] for result in results]
        return recovered, to_frames(results[-1].pixels)

    def _measure(
        self,
        rows: _Rows,
        row: Row,
        window: _Window,
        course: _Course,
        frames: np.ndarray,
        truth: np.ndarray,
        recovered: np.ndarray | None,
    ) -> None:
        """Adds the rows of one window and course. `recovered` [chunk, D] begins with the window."""
        part = slice(window.first, window.stop + 1)
        count = window.stop + 1 - window.first
        scores = self._batcher.call(lambda: self._metrics(frames, truth[part], truth[window.rollout_start]))
        positions = np.arange(window.first, window.stop + 1)
        given = course.actions[positions - 1]
        seen = np.full_like(given, np.nan) if recovered is None else recovered[positions - 1 - window.start]
        offset, stride = int(row["window_starts"][0]), self._recipe.timebase.stride
        rows.add(
            count,
            episode_index=int(row["episode_index"]),
            task=row["task"],
            frame_index=(positions + offset) * stride,
            timestamp=row["timestamps"][positions],
            rollout_start=(window.rollout_start + offset) * stride,
            horizon_step=positions - window.rollout_start,
            variant=course.variant,
            sample=course.sample,
            action_given=given,
            action_recovered=seen,
            **{name: scores[name] for name in _MEASURES},
        )

    def _seed(self, row: Row, sample: int, start: int) -> int:
        """Of a window that starts at this position of the segment. All courses of a sample share their noise."""
        base = window_seed(self._recipe.seed, int(row["episode_index"]), sample)
        return base + int(row["window_starts"][0]) + start

    def _to_stream(self, rows: _Rows, row: Row) -> bytes:
        names = self._recipe.action_names
        table = evaluation_table(rows.joined(), names)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, evaluation_schema(names)) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

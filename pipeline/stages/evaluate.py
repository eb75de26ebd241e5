"""Evaluate: recorded windows → rollouts under three courses of action, compared frame by frame with the recording.

All that is compared has been processed identically: composed, resized to the canvas, cropped to what the VAE draws.
Frames are uint8 [T, H, W, 3]; a position counts frames of the segment, from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from pipeline.storage import open_path
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
    last: int  # last position scored

    @property
    def positions(self) -> np.ndarray:
        """Those that are scored."""
        return np.arange(self.first, self.last + 1)


class _Comparison:
    """One segment's recorded frames, and the rows that come of comparing others with them."""

    def __init__(self, row: Row, canvas: Canvas, stride: int) -> None:
        drawn = canvas.cropped()
        self.truth = row["frames"][:, : drawn.content_height_px, : drawn.content_width_px]
        self._row, self._stride, self._offset = row, stride, int(row["window_starts"][0])
        self._columns: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(
        self, window: _Window, course: _Course, scores: Mapping[str, np.ndarray], recovered: np.ndarray | None
    ) -> None:
        """The rows of one window and course. `recovered` [chunk, D] begins with the window."""
        positions = window.positions
        given = course.actions[positions - 1]
        seen = np.full_like(given, np.nan) if recovered is None else recovered[positions - 1 - window.start]
        values = {
            "episode_index": int(self._row["episode_index"]),
            "task": self._row["task"],
            "frame_index": (positions + self._offset) * self._stride,
            "timestamp": self._row["timestamps"][positions],
            "rollout_start": (window.rollout_start + self._offset) * self._stride,
            "horizon_step": positions - window.rollout_start,
            "variant": course.variant,
            "sample": course.sample,
            "action_given": given,
            "action_recovered": seen,
            **{name: scores[name] for name in _MEASURES},
        }
        for name, value in values.items():
            array = np.asarray(value)
            self._columns[name].append(np.repeat(array[None], len(positions)) if array.ndim == 0 else array)

    def to_stream(self, action_names: Sequence[str]) -> bytes:
        """All rows as an Arrow stream."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, evaluation_schema(action_names)) as writer:
            writer.write_table(evaluation_table(columns, action_names))
        return sink.getvalue().to_pybytes()


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
        self._output_dir = open_path(output_dir)
        self.empty = {"measured": b""}

    def process(self, row: Row) -> Row:
        canvas = Canvas(*(int(size) for size in row["canvas"]))
        comparison = _Comparison(row, canvas, self._recipe.timebase.stride)
        truth, gallery = comparison.truth, GalleryWriter(comparison.truth)
        courses = self._courses(row)
        for window, chunks in zip(self._windows(row), self._drawn(row, canvas, courses), strict=True):
            inside = window.positions - window.start
            recovered, redrawn = self._look_back(row, canvas, window, chunks)
            for course, chunk in zip(courses, chunks, strict=True):
                seen = recovered[course.sample] if course.variant == "recorded" else None
                self._measure(comparison, window, course, chunk.frames[inside], seen)
            copied = np.repeat(truth[window.rollout_start][None], len(inside), axis=0)
            self._measure(comparison, window, _Course("copy", 0, row["actions"]), copied, None)
            ceiling = _Course("ceiling", 0, row["actions"])
            self._measure(comparison, window, ceiling, redrawn[inside], recovered[-1])
            gallery.add(window.start, window.positions, chunks[0].frames)
        if row["in_gallery"]:
            gallery.write(self._output_dir, row["key"], fps=self._recipe.timebase.model_fps)
        return {"measured": comparison.to_stream(self._recipe.action_names)}

    def _measure(
        self,
        comparison: _Comparison,
        window: _Window,
        course: _Course,
        frames: np.ndarray,
        recovered: np.ndarray | None,
    ) -> None:
        truth, reference = comparison.truth[window.positions], comparison.truth[window.rollout_start]
        scores = self._batcher.call(lambda: self._metrics(frames, truth, reference))
        comparison.add(window, course, scores, recovered)

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
            last = min(start + self._recipe.action_chunk, len(row["frames"]) - 1)
            yield _Window(start, 0 if is_chain else start, filled + 1, last)
            filled = last

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
        recording = row["frames"][window.start : window.last + 1]
        rolled_out = [chunk.frames[: len(recording)] for chunk in chunks[: self._recipe.num_samples]]
        clips = [*((clip, canvas.cropped(), False) for clip in rolled_out), (recording, canvas, True)]
        requests = []
        for sample, (clip, its_canvas, decode_video) in enumerate(clips):
            inputs = self._processor.window_inputs(clip, its_canvas, row["task"], mode="inverse_dynamics")
            seed = self._seed(row, sample % self._recipe.num_samples, window.start)
            requests.append(self._processor.to_request(inputs, seed=seed, decode_video=decode_video, **self._sampling))
        results = self._batcher.run(requests)
        recovered = [self._processor.postprocess(result)["action"] for result in results]
        return recovered, to_frames(results[-1].pixels)

    def _seed(self, row: Row, sample: int, start: int) -> int:
        """Of a window that starts at this position of the segment. All courses of a sample share their noise."""
        base = window_seed(self._recipe.seed, row["input_digest"], sample)
        return base + int(row["window_starts"][0]) + start

"""Roll out: first frames and actions → a video on disk. Pixels are encoded as they are decoded and go no further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.cosmos3.chaining import Chunk, Start, roll_out
from pipeline.outputs.rollouts import video_path
from pipeline.outputs.videos import write_video
from pipeline.plan import window_seed
from pipeline.recipe import RolloutRecipe
from pipeline.stages.engine_stage import EngineSettings, EngineStage
from pipeline.stages.stage import Row
from pipeline.storage import open_path
from pipeline.views import Canvas

# Teacher-forced windows of one video that are asked for together: their pixels wait in memory for the encoder.
WINDOWS_AT_ONCE = 4


@dataclass
class _Drawn:
    """What is known of a video besides its pixels, chunk by chunk."""

    seeds: list[int] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    action_normalized: list[np.ndarray] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        self.seeds.append(chunk.seed)
        self.action.append(chunk.action)
        self.action_normalized.append(chunk.action_normalized)


class RollOut(EngineStage):
    """Draws one video per segment.

    Ends `frames`, `canvas` and `actions`; adds `video` (path below the output folder), `seeds` [W], and `action`
    (physical: as given, or as the model chose) and `action_normalized` (what it was told or said), float32
    [W, chunk, D].
    """

    consumes = ("frames", "canvas", "actions")
    decodes_video = True
    segments_at_once = 8  # a chain brings one window at a time

    def __init__(self, recipe: RolloutRecipe, settings: EngineSettings, output_dir: str) -> None:
        super().__init__(recipe, settings)
        self._output_dir = open_path(output_dir)
        nothing = np.zeros((0, recipe.action_chunk, recipe.raw_action_dim), dtype=np.float32)
        self.empty = {
            "video": "",
            "seeds": np.zeros(0, dtype=np.int64),
            "action": nothing,
            "action_normalized": nothing,
        }

    def process(self, row: Row) -> Row:
        drawn = _Drawn()
        relative = video_path(row)
        write_video(self._output_dir / relative, self._clips(row, drawn), fps=self._recipe.timebase.model_fps)
        return {
            "video": relative.as_posix(),
            "seeds": np.array(drawn.seeds, dtype=np.int64),
            "action": self._given(row, drawn),
            "action_normalized": np.stack(drawn.action_normalized),
        }

    def _clips(self, row: Row, drawn: _Drawn) -> Iterator[np.ndarray]:
        """The video's frames in order, each once: a chunk's first frame is the one before it, drawn again."""
        last = int(row["num_positions"]) - 1
        filled = -1
        for start, chunk in zip(row["window_starts"], self._chunks(row), strict=True):
            drawn.add(chunk)
            stop = min(int(start) + self._recipe.action_chunk, last)
            yield chunk.frames[filled + 1 - int(start) : stop + 1 - int(start)]
            filled = stop

    def _chunks(self, row: Row) -> Iterator[Chunk]:
        starts = self._starts(row)
        for group in range(0, len(starts), WINDOWS_AT_ONCE):
            chosen = starts[group : group + WINDOWS_AT_ONCE]
            for chunks in roll_out(
                self._batcher.run, self._processor, chosen, mode=self._recipe.mode, **self._sampling
            ):
                yield from chunks

    def _starts(self, row: Row) -> Sequence[Start]:
        """One start for a chain, one per window otherwise; chunk c of either has the sample's seed + c."""
        canvas = Canvas(*(int(size) for size in row["canvas"]))
        seed = window_seed(self._recipe.seed, row["input_digest"], int(row["sample"]))
        actions = row["actions"] if len(row["actions"]) else None
        shared = {"canvas": canvas, "task": row["task"]}
        if self._recipe.chaining == "autoregressive":
            num_chunks = len(row["window_starts"])
            return [Start(frame=row["frames"][0], seed=seed, num_chunks=num_chunks, actions=actions, **shared)]
        return [
            Start(frame=frame, seed=seed + number, actions=actions[start:][: self._recipe.action_chunk], **shared)
            for number, (frame, start) in enumerate(zip(row["frames"], row["window_starts"], strict=True))
        ]

    def _given(self, row: Row, drawn: _Drawn) -> np.ndarray:
        """Physical actions of each chunk. Those that were given are told as they came, before they were clamped."""
        given = np.stack(drawn.action)
        for number, start in enumerate(row["window_starts"]):
            rows = row["actions"][int(start) :][: self._recipe.action_chunk]
            given[number, : len(rows)] = rows
        return given

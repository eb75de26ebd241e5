"""Rollouts on disk: where their videos are, a row per frame, and what the finished run hands on.

One row per frame of each video. `action` leads from that frame to the next; the last frame of a video has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from pipeline.actions import merge_windows
from pipeline.errors import ResultError
from pipeline.outputs.checks import MAX_SHARE_CLAMPED
from pipeline.outputs.lerobot_dataset import SyntheticEpisode
from pipeline.outputs.merging import merged_tables
from pipeline.recipe import Recipe
from pipeline.storage import open_path


def video_path(row: Mapping[str, Any]) -> PurePosixPath:
    """Below the output folder. The key is in the name, so a video of other settings never takes this one's place."""
    episode, sample = int(row["episode_index"]), int(row["sample"])
    return PurePosixPath("videos") / f"episode_{episode:06d}" / f"sample_{sample:02d}-{row['key'][:16]}.mp4"


def rollout_schema(recipe: Recipe) -> pa.Schema:
    """Columns with names and units in their metadata. Actions are float32 [raw_action_dim]."""
    action = pa.list_(pa.float32(), recipe.raw_action_dim)
    normalization = recipe.normalizer.method
    names = {"names": ",".join(recipe.action_names), "embodiment": recipe.embodiment.domain_name}
    unit = "as the names say" if normalization != "none" else "model's own scale"
    return pa.schema(
        [
            pa.field("video", pa.string(), metadata={"unit": "path below the output folder"}),
            pa.field("video_frame", pa.int64()),
            pa.field("timestamp", pa.float64(), metadata={"unit": "s, from the start of the video"}),
            pa.field("episode_index", pa.int64()),
            pa.field("sample", pa.int64()),
            pa.field(
                "frame_index", pa.int64(), metadata={"unit": "frame of the dataset at this moment, recorded or not"}
            ),
            pa.field("task", pa.string()),
            pa.field("chunk", pa.int64()),
            pa.field("horizon_step", pa.int64(), metadata={"unit": "frames since the chunk's first; 0 is given"}),
            pa.field("seed", pa.int64()),
            pa.field("is_synthetic", pa.bool_()),
            pa.field("action", action, metadata={**names, "unit": unit}),
            pa.field("action_normalized", action, metadata={"unit": f"model's own scale ({normalization})"}),
            pa.field("action_valid", pa.bool_()),
        ]
    )


def rollout_table(row: Mapping[str, Any], recipe: Recipe) -> pa.Table:
    """The rows of one video. `row` is a segment with `video`, `seeds` [W], `action`, `action_normalized` [W, chunk, D].

    Frame 0 is the given one as the VAE draws it; it belongs to chunk 0 at step 0.
    """
    num_frames = int(row["num_positions"])
    positions = np.arange(num_frames)
    starts = [int(start) for start in row["window_starts"]]
    chunks = _chunk_of_frames(starts, recipe.action_chunk, num_frames)
    columns: dict[str, Any] = {
        "video": [row["video"]] * num_frames,
        "video_frame": positions,
        "timestamp": positions / recipe.timebase.model_fps,
        "episode_index": np.full(num_frames, row["episode_index"], dtype=np.int64),
        "sample": np.full(num_frames, row["sample"], dtype=np.int64),
        "frame_index": positions * recipe.timebase.stride,
        "task": [row["task"]] * num_frames,
        "chunk": chunks,
        "horizon_step": positions - np.array(starts)[chunks],
        "seed": np.asarray(row["seeds"], dtype=np.int64)[chunks],
        "is_synthetic": np.ones(num_frames, dtype=bool),
        "action_valid": positions < num_frames - 1,
    }
    schema = rollout_schema(recipe)
    for name in ("action", "action_normalized"):
        merged = merge_windows(np.asarray(row[name], dtype=np.float32), starts, 0, num_frames - 1)
        columns[name] = pa.array([*merged, None], type=schema.field(name).type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def synthetic_episodes(rollouts: str | Path | UPath, output_dir: str | Path | UPath) -> Iterator[SyntheticEpisode]:
    """The videos of a merged `rollouts/` folder as episodes of a dataset, in its order; a row group is in memory.

    Those of a single action are left out, because LeRobot cannot describe a video of one frame. Raises ResultError when
    the rows are not those of whole videos.
    """
    output_dir = open_path(output_dir)
    for table in merged_tables(rollouts):
        for rows in _videos_of(table):
            valid = rows.filter(rows["action_valid"])
            if valid.num_rows < 2:
                continue
            yield SyntheticEpisode(
                task=rows["task"][0].as_py(),
                video=output_dir / rows["video"][0].as_py(),
                actions=np.array(valid["action"].to_pylist(), dtype=np.float32),
                source_episode_index=rows["episode_index"][0].as_py(),
                source_frame_indexes=valid["frame_index"].to_numpy(),
                sample=rows["sample"][0].as_py(),
            )


def _videos_of(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of each video: from its frame 0 to the next one's."""
    frames = table["video_frame"].to_numpy()
    starts = [0, *(np.flatnonzero(frames[1:] == 0) + 1).tolist()] if len(frames) else []
    for start, stop in pairwise([*starts, table.num_rows]):
        rows = table.slice(start, stop - start)
        if not np.array_equal(frames[start:stop], np.arange(stop - start)) or len(pc.unique(rows["video"])) != 1:
            raise ResultError(
                f"{rows['video'][0]}: expected a row for each frame, from 0 on, found frames {frames[start:stop]}. The "
                "merged rows were changed: run the same command again."
            )
        yield rows


class RolloutChecks:
    """Running sums over rollout tables."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.num_videos = self.num_frames = self.num_actions = self.num_single_actions = 0
        self._num_values = self._num_clamped = 0

    def add(self, table: pa.Table) -> None:
        """Counts one or more whole videos."""
        valid = table.filter(table["action_valid"])
        self.num_frames += table.num_rows
        self.num_actions += valid.num_rows
        last_frames = table.filter(pc.invert(table["action_valid"]))
        self.num_videos += last_frames.num_rows
        self.num_single_actions += int(pc.sum(pc.less(last_frames["video_frame"], 2)).as_py() or 0)
        if valid.num_rows:
            actions = np.array(valid["action"].to_pylist(), dtype=np.float64)
            self._num_values += actions.size
            self._num_clamped += round(self._recipe.normalizer.share_clamped(actions) * actions.size)

    @property
    def _remedy(self) -> str:
        if self._recipe.mode == "policy":
            return "The model chose them so: check that it was trained with this normalisation and these statistics."
        return "The model sees them cut off: check that the statistics are of these actions, at this frame rate."

    @property
    def share_clamped(self) -> float | None:
        return self._num_clamped / self._num_values if self._num_values else None

    def to_json(self) -> dict[str, Any]:
        """`share_clamped`: of the action values, which share lay outside what the model was trained on."""
        return {
            "videos": self.num_videos,
            "frames": self.num_frames,
            "actions": self.num_actions,
            "share_clamped": self.share_clamped,
        }

    def lines(self) -> list[str]:
        share = "–" if self.share_clamped is None else f"{self.share_clamped:.1%}"
        return [
            f"rollouts   {self.num_videos} videos, {self.num_frames} frames; action values outside [-1, 1]: {share}"
        ]

    def warnings(self) -> list[str]:
        told = []
        if (self.share_clamped or 0) > MAX_SHARE_CLAMPED:
            told.append(
                f"{self.share_clamped:.0%} of the action values lie outside [-1, 1] once normalised "
                f"({self._recipe.normalizer.method}). {self._remedy}"
            )
        if self.num_single_actions:
            told.append(f"{self.num_single_actions} videos have a single action; a LeRobot dataset leaves them out.")
        return told


def _chunk_of_frames(starts: list[int], action_chunk: int, num_frames: int) -> np.ndarray:
    """[num_frames] number of the chunk that drew each frame: of two that could have, the earlier one."""
    stops = np.array([start + action_chunk for start in starts])
    return np.searchsorted(stops, np.arange(num_frames))

"""LeRobot v3.0: `meta/episodes/**/*.parquet`, and Parquet and video files that hold many episodes each.

An episode's frame k is at `videos/<camera>/from_timestamp + k / fps` seconds of the file that its chunk and file
index name. The episode list stays in Arrow arrays: 100,000 episodes are a few megabytes and no Python objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.datasets.base import Episode, VideoSpan
from pipeline.datasets.lerobot import LeRobotDataset
from pipeline.datasets.lerobot_info import LeRobotInfo
from pipeline.errors import DatasetError, EpisodeError, VideoError

_REQUIRED = ("episode_index", "length", "data/chunk_index", "data/file_index")
_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class LeRobotV3Dataset(LeRobotDataset):
    """A LeRobot dataset of codebase version v3.0."""

    format = "lerobot_v3"

    def __init__(self, root: Path, info: LeRobotInfo) -> None:
        super().__init__(root, info)
        table = _read_episodes(root / "meta" / "episodes", info.cameras)
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self._indexes = table["episode_index"].to_numpy()
        self._find_cameras([camera for camera in info.cameras if _has_columns(table.column_names, camera)])

    def episode_indexes(self) -> Sequence[int]:
        return self._indexes.tolist()

    @property
    def num_episodes(self) -> int:
        return len(self._indexes)

    def episode(self, episode_index: int) -> Episode:
        length, task = self._value(episode_index, "length"), self._task(episode_index)
        if length is not None and length > 0:
            return Episode(int(episode_index), length, task)
        problem = f"{self.root / 'meta/episodes'} says its length is {length}; expected at least one frame"
        return Episode(int(episode_index), 0, task, problem)

    def video_span(self, episode_index: int, camera: str) -> VideoSpan:
        self._check_camera(camera)
        chunk, file, from_s, to_s = (self._value(episode_index, f"videos/{camera}/{field}") for field in _VIDEO_FIELDS)
        if None in (chunk, file, from_s, to_s):
            raise VideoError(
                f"{self.root}: expected meta/episodes to name a video file and span for episode {episode_index}, "
                f"camera {camera!r}, found chunk {chunk}, file {file}, {from_s}..{to_s} s; leave the episode out"
            )
        path = self.info.format_path("video_path", chunk_index=chunk, file_index=file, video_key=camera)
        return VideoSpan(path, self.fps, from_s, to_s)

    def _data_path(self, episode_index: int) -> str:
        chunk, file = (self._value(episode_index, f"data/{field}") for field in ("chunk_index", "file_index"))
        if chunk is None or file is None:
            raise EpisodeError(
                f"{self.root}: expected meta/episodes to name a data file for episode {episode_index}, found chunk "
                f"{chunk}, file {file}; leave the episode out"
            )
        return self.info.format_path("data_path", chunk_index=chunk, file_index=file)

    def _task(self, episode_index: int) -> str:
        tasks = self._value(episode_index, "tasks") if "tasks" in self._columns else None
        return (tasks[0] or "") if tasks else ""

    def _value(self, episode_index: int, column: str) -> Any:
        row = int(np.searchsorted(self._indexes, episode_index))
        if row == len(self._indexes) or self._indexes[row] != episode_index:
            raise self._unknown_episode(episode_index)
        return self._columns[column][row].as_py()


def _read_episodes(folder: Path, cameras: Sequence[str]) -> pa.Table:
    """The episode list, sorted by episode_index, without the statistics that make up most of the files."""
    tables = [_read_file(path, cameras) for path in sorted(folder.rglob("*.parquet"))]
    if not any(table.num_rows for table in tables):
        raise DatasetError(
            f"{folder}: expected Parquet files that list episodes, found none; fetch meta/episodes again"
        )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(
            f"{folder}: expected files with the same columns, found {error}; fetch them again"
        ) from error
    return _sorted(folder, table)


def _read_file(path: Path, cameras: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            columns = _wanted(path, file.schema_arrow.names, cameras)
            return file.read(columns=columns).select(columns)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: expected a Parquet file, found {error}; fetch it again") from error


def _wanted(path: Path, columns: Sequence[str], cameras: Sequence[str]) -> list[str]:
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise DatasetError(f"{path}: expected columns {', '.join(_REQUIRED)}, found no {', '.join(missing)}")
    videos = [column for camera in cameras if _has_columns(columns, camera) for column in _video_columns(camera)]
    return [*_REQUIRED, *(["tasks"] if "tasks" in columns else []), *videos]


def _video_columns(camera: str) -> list[str]:
    return [f"videos/{camera}/{field}" for field in _VIDEO_FIELDS]


def _has_columns(columns: Sequence[str], camera: str) -> bool:
    return set(_video_columns(camera)) <= set(columns)


def _sorted(folder: Path, table: pa.Table) -> pa.Table:
    indexes = table["episode_index"]
    if indexes.null_count or pc.count_distinct(indexes).as_py() < len(indexes):
        raise DatasetError(f"{folder}: expected each episode_index once, found some missing or twice; fetch it again")
    order = pc.sort_indices(indexes)
    return table.take(order)

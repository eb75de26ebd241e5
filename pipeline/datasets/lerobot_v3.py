"""LeRobot v3.0: `meta/episodes/**/*.parquet`, and Parquet and video files that hold many episodes each.

An episode's frame k is at `videos/<camera>/from_timestamp + k / fps` seconds of the file that its chunk and file
index name. The episode list stays in Arrow arrays: 100,000 episodes are a few megabytes. Columns that are looked into
become lists, once: taking a value out of an Arrow array costs thirty times as much as out of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from pipeline.datasets.base import Episode, VideoSpan, length_problem
from pipeline.datasets.lerobot import LeRobotDataset
from pipeline.datasets.lerobot_info import META, LeRobotInfo
from pipeline.datasets.remote_file import opened
from pipeline.datasets.video import MAX_TIME_S
from pipeline.errors import DatasetError, EpisodeError, VideoError
from pipeline.storage import file_sizes, inside

_EPISODES = f"{META}/episodes"
_MAX_EPISODES = 10_000_000
_NUM_READING_THREADS = 8
_REQUIRED = ("episode_index", "length", "data/chunk_index", "data/file_index")
_VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class LeRobotV3Dataset(LeRobotDataset):
    """A LeRobot dataset of codebase version v3.0."""

    format = "lerobot_v3"

    def __init__(self, root: Path | UPath, info: LeRobotInfo) -> None:
        super().__init__(root, info)
        self._episodes_folder = root / _EPISODES
        table = _read_episodes(root, info.cameras)
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self._indexes = table["episode_index"].to_numpy()
        self._find_cameras([camera for camera in info.cameras if _has_columns(table.column_names, camera)])

    def _forget(self) -> None:
        super()._forget()
        self._lists: dict[str, list[Any]] = {}
        self._rows_by_index: dict[int, int] = {}
        self._paths: dict[tuple[str, str, int, int], str] = {}

    def episode_indexes(self) -> Sequence[int]:
        return self._indexes.tolist()

    @property
    def num_episodes(self) -> int:
        return len(self._indexes)

    def episode(self, episode_index: int) -> Episode:
        length, task = self._value(episode_index, "length"), self._task(episode_index)
        problem = length_problem(self._episodes_folder, length)
        return Episode(int(episode_index), 0 if problem else length, task, problem)

    def video_span(self, episode_index: int, camera: str) -> VideoSpan:
        self._check_camera(camera)
        row = self._row(episode_index)
        chunk, file, from_s, to_s = (self._column(f"videos/{camera}/{field}")[row] for field in _VIDEO_FIELDS)
        if None in (chunk, file, from_s, to_s) or not 0 <= from_s <= to_s <= MAX_TIME_S:
            raise VideoError(
                f"{self.root}: expected meta/episodes to name a video file and span for episode {episode_index}, "
                f"camera {camera!r}, found chunk {chunk}, file {file}, {from_s}..{to_s} s; leave the episode out"
            )
        return VideoSpan(self._path("video_path", chunk, file, camera), self.fps, from_s, to_s)

    def _data_path(self, episode_index: int) -> str:
        chunk, file = (self._value(episode_index, f"data/{field}") for field in ("chunk_index", "file_index"))
        if chunk is None or file is None:
            raise EpisodeError(
                f"{self.root}: expected meta/episodes to name a data file for episode {episode_index}, found chunk "
                f"{chunk}, file {file}; leave the episode out"
            )
        return self._path("data_path", chunk, file)

    def _path(self, field: str, chunk: int, file: int, camera: str = "") -> str:
        key = (field, camera, chunk, file)
        if key not in self._paths:
            names = {"video_key": camera} if camera else {}
            self._paths[key] = self.info.format_path(field, chunk_index=chunk, file_index=file, **names)
        return self._paths[key]

    def _task(self, episode_index: int) -> str:
        tasks = self._value(episode_index, "tasks") if "tasks" in self._columns else None
        return (tasks[0] or "") if tasks else ""

    def _value(self, episode_index: int, column: str) -> Any:
        return self._column(column)[self._row(episode_index)]

    def _column(self, name: str) -> list[Any]:
        if name not in self._lists:
            self._lists[name] = self._columns[name].to_pylist()
        return self._lists[name]

    def _row(self, episode_index: int) -> int:
        if not self._rows_by_index:
            self._rows_by_index = {index: row for row, index in enumerate(self._indexes.tolist())}
        if episode_index not in self._rows_by_index:
            raise self._unknown_episode(episode_index)
        return self._rows_by_index[episode_index]


def _read_episodes(root: Path | UPath, cameras: Sequence[str]) -> pa.Table:
    """The episode list, sorted by episode_index, without the statistics that make up most of the files."""
    folder = inside(root, _EPISODES, said_by=root)
    sizes = {name: size for name, size in file_sizes(folder, recursive=True).items() if name.endswith(".parquet")}

    def read(name: str) -> pa.Table:
        return _read_file(inside(root, f"{_EPISODES}/{name}", said_by=root), sizes[name], cameras)

    with ThreadPoolExecutor(_NUM_READING_THREADS) as pool:
        tables = list(pool.map(read, sorted(sizes)))
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
    return _sorted(folder, _typed(folder, table))


def _read_file(path: Path | UPath, size: int, cameras: Sequence[str]) -> pa.Table:
    try:
        with opened(path, size) as source, pq.ParquetFile(source) as file:
            columns = _wanted(path, file.schema_arrow.names, cameras)
            if file.metadata.num_rows > _MAX_EPISODES:
                raise pa.ArrowInvalid(f"{file.metadata.num_rows} episodes, more than {_MAX_EPISODES}")
            return file.read(columns=columns, use_threads=False).select(columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a Parquet file, found {error}; fetch it again") from error


def _wanted(path: Path | UPath, columns: Sequence[str], cameras: Sequence[str]) -> list[str]:
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise DatasetError(f"{path}: expected columns {', '.join(_REQUIRED)}, found no {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise DatasetError(f"{path}: expected columns of different names, found two of one name; fetch it again")
    videos = [column for camera in cameras if _has_columns(columns, camera) for column in _video_columns(camera)]
    return [*_REQUIRED, *(["tasks"] if "tasks" in columns else []), *videos]


def _video_columns(camera: str) -> list[str]:
    return [f"videos/{camera}/{field}" for field in _VIDEO_FIELDS]


def _has_columns(columns: Sequence[str], camera: str) -> bool:
    return set(_video_columns(camera)) <= set(columns)


def _typed(folder: Path | UPath, table: pa.Table) -> pa.Table:
    """The same columns as int64, float64 and lists of texts. Whole numbers that pandas has made floats of pass."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        try:
            columns[name] = _numbers(column, _type_of(name)) if name != "tasks" else column.cast(_type_of(name))
            columns[name].validate(full=True)  # that texts are UTF-8
        except pa.ArrowException as error:
            raise DatasetError(
                f"{folder}: expected column {name!r} to hold {_type_of(name)}, found {column.type} ({error}); fetch "
                "the files again"
            ) from error
    return pa.table(columns)


def _type_of(column: str) -> pa.DataType:
    if column == "tasks":
        return pa.list_(pa.string())
    return pa.float64() if column.endswith("_timestamp") else pa.int64()


def _numbers(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    found = column.type
    if not (pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_null(found)):
        raise pa.ArrowInvalid("no numbers")
    if pa.types.is_floating(found) and pa.types.is_integer(wanted):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(wanted)


def _sorted(folder: Path | UPath, table: pa.Table) -> pa.Table:
    indexes = table["episode_index"]
    if indexes.null_count or pc.count_distinct(indexes).as_py() < len(indexes):
        raise DatasetError(f"{folder}: expected each episode_index once, found some missing or twice; fetch it again")
    if len(indexes) > _MAX_EPISODES or pc.min(indexes).as_py() < 0:
        raise DatasetError(
            f"{folder}: expected at most {_MAX_EPISODES} episodes, numbered from 0, found {len(indexes)} from "
            f"{pc.min(indexes).as_py()} on; fetch it again"
        )
    order = pc.sort_indices(indexes)
    return table.take(order)

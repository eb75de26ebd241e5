"""What LeRobot records beside the pictures: one Parquet row per frame (`data/`). Imports PyArrow and NumPy.

A v3.0 file holds many episodes, a v2.x file one. Either way an episode's rows are those with its `episode_index`; only
the row groups that can hold it (by their statistics) and only the columns asked for are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from pipeline.datasets.remote_file import opened
from pipeline.errors import EpisodeError

_EPISODE, _FRAME = "episode_index", "frame_index"
_MAX_ROWS = 50_000_000  # in the row groups of one episode: Parquet can say in a kilobyte what takes a terabyte to hold


def read_episode_rows(
    path: Path | UPath, episode_index: int, num_frames: int, keys: Sequence[str]
) -> dict[str, np.ndarray]:
    """Those of `keys` that the file has: float64 [num_frames, width] each, frames in order.

    Raises `EpisodeError` naming the file when it is missing or damaged, or does not hold exactly the episode's frames;
    `StorageError` where an object store does not hand it out.
    """
    try:
        with opened(path) as source, pq.ParquetFile(source) as file:
            table = _episode_table(file, episode_index, keys)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise EpisodeError(
            f"{path}: expected the recording of episode {episode_index}, found nothing; fetch it again"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise EpisodeError(f"{path}: expected a Parquet file, found {error}; fetch it again") from error
    _check_rows(path, table, episode_index, num_frames)
    return {key: _matrix(path, key, table[key]) for key in keys if key in table.column_names}


def _episode_table(file: pq.ParquetFile, episode_index: int, keys: Sequence[str]) -> pa.Table:
    recorded = file.schema_arrow.names
    columns = [name for name in dict.fromkeys([_EPISODE, _FRAME, *keys]) if name in recorded]
    if len(set(recorded)) < len(recorded):
        raise pa.ArrowInvalid(f"two columns of one name among {', '.join(recorded)}")
    groups = list(range(file.num_row_groups))
    if len(groups) > 1:
        groups = [i for i in groups if _may_hold(file, i, episode_index)]
    num_rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    if num_rows > _MAX_ROWS:
        raise pa.ArrowInvalid(f"{num_rows} rows to read for one episode, more than {_MAX_ROWS}")
    table = file.read_row_groups(groups, columns=columns, use_threads=False)
    if _EPISODE not in recorded:
        return table
    return table.filter(pc.equal(table[_EPISODE], episode_index))


def _may_hold(file: pq.ParquetFile, group: int, episode_index: int) -> bool:
    row_group = file.metadata.row_group(group)
    for i in range(row_group.num_columns):
        column = row_group.column(i)
        found = column.statistics if column.path_in_schema == _EPISODE else None
        if found is not None and found.has_min_max and isinstance(found.min, int) and isinstance(found.max, int):
            return found.min <= episode_index <= found.max
    return True


def _check_rows(path: Path | UPath, table: pa.Table, episode_index: int, num_frames: int) -> None:
    if table.num_rows != num_frames:
        raise EpisodeError(
            f"{path}: expected {num_frames} rows of episode {episode_index}, found {table.num_rows}; the recording and "
            "the metadata contradict each other: fetch the file again or leave the episode out"
        )
    if _FRAME in table.column_names and table[_FRAME].to_pylist() != list(range(num_frames)):
        raise EpisodeError(
            f"{path}: expected frame_index 0..{num_frames - 1} in order for episode {episode_index}, found gaps or "
            "another order; fetch the file again or leave the episode out"
        )


def _matrix(path: Path | UPath, key: str, column: pa.ChunkedArray) -> np.ndarray:
    """float64 [T, width] of a scalar, list or nested list column; a missing number becomes NaN."""
    values, num_rows = column.combine_chunks(), len(column)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        if values.null_count or pc.count_distinct(pc.list_value_length(values)).as_py() > 1:
            raise EpisodeError(f"{path}: expected rows of one width in {key!r}, found rows of different widths")
        values = values.flatten()
    try:
        flat = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise EpisodeError(f"{path}: expected numbers in {key!r}, found {values.type}; leave it out") from error
    return flat.reshape(num_rows, -1)

"""Records: the only truth about what is done. One Parquet file per segment, named by its key, complete or not there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_SUFFIX = ".parquet"


class RecordStore:
    """The `records/` folder of an output folder."""

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / "records"

    def path(self, key: str) -> Path:
        # Two levels keep a folder of a million records listable.
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def write(self, key: str, table: pa.Table) -> Path:
        """Writes beside its place, flushes to disk, then renames: a record is never half there."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
        return path

    def read(self, key: str) -> pa.Table:
        return pq.read_table(self.path(key), partitioning=None)

    def keys(self) -> set[str]:
        """Keys of all complete records; leftovers of an interrupted write do not count."""
        return {path.stem for path in self.folder.glob(f"??/*{_SUFFIX}") if not path.name.startswith(".")}


def remove_leftovers(output_dir: Path) -> None:
    """Deletes what an interrupted run was writing when it died: nobody will finish those files."""
    for folder in ("records", "videos"):
        for partial in (output_dir / folder).glob("**/.*.partial"):
            partial.unlink(missing_ok=True)
    for partial in output_dir.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)


def write_atomically[T](path: Path, write: Callable[[Path], T]) -> T:
    """Calls `write(partial_path)`, puts its file in place at once, returns its result; on failure nothing is left."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        result = write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return result

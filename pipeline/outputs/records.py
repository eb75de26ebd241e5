"""Records: the only truth about what is done. One Parquet file per segment, named by its key, complete or not there."""

from __future__ import annotations

import os
import uuid
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


def write_atomically(path: Path, write) -> None:
    """Calls `write(partial_path)` and puts the result in place at once; on failure nothing is left."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

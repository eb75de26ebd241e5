"""After a run: its records become the few Parquet files that people open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.outputs.records import RecordStore

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_GROUP = 65_536


def merge_records(
    store: RecordStore,
    keys: Sequence[str],
    schema: pa.Schema,
    folder: Path,
    *,
    manifest: Mapping[str, Any],
    look: Callable[[pa.Table], None],
) -> None:
    """Writes the records of `keys`, in their order, to `folder`; `look` sees every table on its way.

    The folder is replaced as a whole, so that rows of another run never stand beside these. Without a single record
    there is nothing to put in its place, and it stays as it is.
    """
    if not keys:
        return
    schema = schema.with_metadata({"manifest": json.dumps(manifest)})
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, tables in enumerate(_in_files(store, keys)):
        path = partial / f"{folder.name}-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in tables:
                look(table)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _in_files(store: RecordStore, keys: Sequence[str]) -> Iterator[Iterator[pa.Table]]:
    """Groups of row groups: each outer item is one file's worth. Records are read one at a time."""
    groups = _row_groups(store, keys)
    for first in groups:

        def one_file(first: pa.Table = first) -> Iterator[pa.Table]:
            num_rows = first.num_rows
            yield first
            while num_rows < _ROWS_PER_FILE and (table := next(groups, None)) is not None:
                num_rows += table.num_rows
                yield table

        yield one_file()


def _row_groups(store: RecordStore, keys: Sequence[str]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for key in keys:
        pending.append(store.read(key))
        if sum(table.num_rows for table in pending) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)

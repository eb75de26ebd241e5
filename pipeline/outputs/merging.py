"""After a run: its records become the few Parquet files that people open, and everything that comes later reads those.

Conservation is checked here: every record that is asked for goes in exactly once, and the files hold as many rows as
the records. Otherwise nothing is put in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipeline.errors import ResultError
from pipeline.outputs.records import RecordStore
from pipeline.outputs.writing import replacing
from pipeline.storage import list_files, local_copy, open_path

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True)
class Merged:
    """What a merge put in place: it was counted, and the counts agree."""

    num_records: int
    num_rows: int
    num_files: int


def merge_records(
    store: RecordStore,
    keys: Sequence[str],
    schema: pa.Schema,
    folder: str | Path | UPath,
    *,
    manifest: Mapping[str, Any],
    look: Callable[[pa.Table], None],
) -> Merged:
    """Writes the records of `keys`, in their order, to `folder`; `look` sees every table on its way.

    The folder is replaced as a whole, so that rows of another run never stand beside these (`writing` says what a
    reader of an object store may see meanwhile). A record's rows lie in one row group. Without a single record there is
    nothing to put in the folder's place, and it stays as it is. So it does after an error: ResultError when a key comes
    twice or rows got lost, RecordError for a damaged record, FileNotFoundError for a missing one.
    """
    if not keys:
        return Merged(0, 0, 0)
    _require_distinct(keys)
    folder = open_path(folder)
    schema = schema.with_metadata({"manifest": json.dumps(manifest)})
    tally = _Tally()
    num_rows, num_files = 0, 0
    with replacing(folder) as new:
        new.path.mkdir(parents=True)
        for groups in _in_files(_row_groups(tally.count(store.tables(keys)))):
            name = f"{folder.name}-{num_files:05d}.parquet"
            num_rows += _write_file(new.path / name, schema, groups, look)
            num_files += 1
            new.hand_over(name)
        if (tally.num_records, tally.num_rows) != (len(keys), num_rows):
            raise ResultError(
                f"{folder}: expected the {tally.num_rows} rows of {len(keys)} records, found {num_rows} rows of "
                f"{tally.num_records} records written. Nothing was replaced; run the same command again."
            )
    return Merged(len(keys), num_rows, num_files)


def merged_tables(folder: str | Path | UPath) -> Iterator[pa.Table]:
    """The rows of a folder of `merge_records`, in their order, one row group at a time: records are whole in each.

    Raises FileNotFoundError where nothing was merged.
    """
    folder = open_path(folder)
    names = sorted(name for name in list_files(folder) if name.endswith(".parquet"))
    if not names:
        raise FileNotFoundError(f"{folder}: expected merged rows, found no Parquet file there")
    for name in names:
        with local_copy(folder / name) as path, pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def read_merged(folder: str | Path | UPath) -> pa.Table:
    """All rows of a folder of `merge_records` at once, with the manifest in the schema's metadata."""
    return pa.concat_tables(merged_tables(folder))


@dataclass
class _Tally:
    """What the records that passed by hold."""

    num_records: int = 0
    num_rows: int = 0

    def count(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.num_records += 1
            self.num_rows += table.num_rows
            yield table


def _require_distinct(keys: Sequence[str]) -> None:
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ResultError(
            f"expected each record once, found {twice} twice among {len(keys)} keys: its rows would be there twice. "
            "Does the plan hold an episode twice?"
        )


def _write_file(path: Path, schema: pa.Schema, groups: Iterable[pa.Table], look: Callable[[pa.Table], None]) -> int:
    """Returns the number of rows that the file, once closed, says it has."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in groups:
            look(group)
            writer.write_table(group.replace_schema_metadata(schema.metadata), row_group_size=max(1, group.num_rows))
    return pq.read_metadata(path).num_rows


def _in_files(groups: Iterator[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """Each outer item is one file's worth of row groups, and must be used up before the next."""

    def one_file(first: pa.Table) -> Iterator[pa.Table]:
        num_rows = first.num_rows
        yield first
        while num_rows < _ROWS_PER_FILE and (group := next(groups, None)) is not None:
            num_rows += group.num_rows
            yield group

    while (first := next(groups, None)) is not None:
        yield one_file(first)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    num_rows = 0
    for table in tables:
        pending.append(table)
        num_rows += table.num_rows
        if num_rows >= _ROWS_PER_GROUP:
            yield pa.concat_tables(pending)
            pending, num_rows = [], 0
    if pending:
        yield pa.concat_tables(pending)

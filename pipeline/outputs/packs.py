"""Packs: many records in one Parquet file, and the index that finds each of them. Owns that file's format.

A pack is an ordinary Parquet file, readable by anybody. A record's rows are contiguous and lie in one row group, so one
read brings them. The footer holds the index under `record_index`: an Arrow stream, base64, with the columns `key` and
`num_rows` in the order of the rows. It costs some 45 bytes a record, so that the keys of a million records are had by
reading the ends of a few dozen files. All records of a pack share one schema, metadata included.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from pipeline.errors import RecordError
from pipeline.outputs.writing import write_file
from pipeline.storage import read_range

_INDEX = b"record_index"
_NUM_BYTES = b"num_bytes"
_INDEX_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("num_rows", pa.int64())])

# A row group is what is read at once: small enough that a few dozen fit in memory, large enough to be worth a request.
_ROWS_PER_GROUP = 16_384
_BYTES_PER_GROUP = 4 * 2**20

# The end of a file that is read at first: the footer of a full pack is about this long.
_TAIL_BYTES = 4 * 2**20
_MAGIC_BYTES = 8  # at the end of every Parquet file: the footer's length, and PAR1


@dataclass(frozen=True)
class Place:
    """Where a record lies: `pack` counts the packs that were searched; rows count from the row group's first."""

    pack: int
    group: int
    first_row: int
    num_rows: int


class Pack:
    """The index of one pack, in memory: about 80 bytes a record."""

    def __init__(self, path: Path | UPath, footer: pq.FileMetaData) -> None:
        """Raises RecordError when the footer's index and its row groups do not belong together."""
        index = _decode_index(path, footer)
        self.path = path
        self.keys: pa.Array = index["key"].combine_chunks()
        self.num_rows = index["num_rows"].to_numpy()
        self.num_bytes = int(index.schema.metadata[_NUM_BYTES])
        group_rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        group_starts = np.concatenate([[0], np.cumsum(group_rows, dtype=np.int64)])
        starts = np.cumsum(self.num_rows) - self.num_rows
        # A record without rows is in no group; a last one without rows must not look beyond the groups.
        self._group = np.searchsorted(group_starts[:-1], starts, side="right") - 1
        self._first_row = starts - group_starts[self._group]
        ends_in_group = starts + self.num_rows <= group_starts[self._group + 1]
        if int(self.num_rows.sum()) != footer.num_rows or not ends_in_group.all():
            raise _damaged(path, "its index does not belong to its rows")

    @classmethod
    def open(cls, path: Path | UPath) -> Pack:
        """Reads the end of the file. Raises RecordError for anything but a whole pack."""
        return cls(path, read_footer(path))

    def place(self, pack: int, number: int) -> Place:
        """Where the record with this number in `keys` lies; `pack` is handed on."""
        return Place(pack, int(self._group[number]), int(self._first_row[number]), int(self.num_rows[number]))


def locate(packs: Sequence[Pack], keys: Sequence[str]) -> Iterator[Place | None]:
    """For each key, where the first of `packs` that has it holds it; None where none has."""
    wanted = pa.array(keys, pa.string())
    pack_of, number_of = np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
    for number, pack in enumerate(packs):
        found = pc.index_in(wanted, value_set=pack.keys).fill_null(-1).to_numpy()
        is_new = (found >= 0) & (pack_of < 0)
        pack_of[is_new], number_of[is_new] = number, found[is_new]
    for pack, number in zip(pack_of.tolist(), number_of.tolist(), strict=True):
        yield None if pack < 0 else packs[pack].place(pack, number)


def read_footer(path: Path | UPath) -> pq.FileMetaData:
    """One read from the end of the file, two when the footer is long. Raises RecordError when it is no whole pack."""
    tail = read_range(path, -_TAIL_BYTES)
    try:
        (length,) = struct.unpack("<I", tail[-_MAGIC_BYTES:-4])
        if length + _MAGIC_BYTES > len(tail):
            tail = read_range(path, -(length + _MAGIC_BYTES))
        return pq.read_metadata(pa.BufferReader(tail))
    except (struct.error, pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error)) from error


def read_group(path: Path | UPath, footer: pq.FileMetaData, group: int) -> pa.Table:
    """The rows of one row group, by one read, their checksums verified; of a pack without rows the empty table.

    Raises RecordError when they are not what was written.
    """
    if not footer.num_row_groups:
        return _without_index(footer.schema.to_arrow_schema().empty_table())
    start, stop = _byte_range(footer.row_group(group))
    content = read_range(path, start, stop)
    try:
        source = pa.PythonFile(_Window(content, start), mode="r")
        file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
        return _without_index(file.read_row_group(group, use_threads=False))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error)) from error


def write_pack(path: Path | UPath, schema: pa.Schema, records: Iterable[tuple[str, pa.Table]]) -> Pack:
    """Writes records (key, rows) of `schema`, in their order, and returns the pack as it is read back.

    Equal records in equal order give equal bytes with the same version of pyarrow.
    """
    write_file(path, lambda partial: _write(partial, schema, records))
    return Pack.open(path)


def _write(path: Path, schema: pa.Schema, records: Iterable[tuple[str, pa.Table]]) -> None:
    keys: list[str] = []
    num_rows: list[int] = []
    num_bytes = 0
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        pending = _Pending(writer)
        for key, table in records:
            pending.add(table)
            keys.append(key)
            num_rows.append(table.num_rows)
            num_bytes += table.nbytes
        pending.write()
        writer.add_key_value_metadata({_INDEX: _encode_index(keys, num_rows, num_bytes)})


class _Pending:
    """Records that become the next row group."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pa.Table] = []
        self._num_rows = self._num_bytes = 0

    def add(self, table: pa.Table) -> None:
        """Begins a new group when the table would make this one too large; a group never ends amid a record."""
        is_full = self._num_rows + table.num_rows > _ROWS_PER_GROUP or self._num_bytes + table.nbytes > _BYTES_PER_GROUP
        if is_full:
            self.write()
        self._tables.append(table)
        self._num_rows += table.num_rows
        self._num_bytes += table.nbytes

    def write(self) -> None:
        if self._num_rows:
            # In one piece: where pages end would otherwise depend on how the rows came.
            group = pa.concat_tables(self._tables).combine_chunks()
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._tables, self._num_rows, self._num_bytes = [], 0, 0


class _Window(io.RawIOBase):
    """A part of a file, at the place where the whole file has it."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start, self._position = content, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._start + len(self._content)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size()}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        first = self._position - self._start
        assert first >= 0, "a row group's pages are read, and nothing before them"
        found = self._content[first:] if size < 0 else self._content[first : first + size]
        self._position += len(found)
        return found


def _byte_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [
        min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset) for column in columns
    ]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _encode_index(keys: Sequence[str], num_rows: Sequence[int], num_bytes: int) -> bytes:
    schema = _INDEX_SCHEMA.with_metadata({_NUM_BYTES: str(num_bytes)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.table([pa.array(keys, pa.string()), pa.array(num_rows, pa.int64())], schema=schema))
    return base64.b64encode(sink.getvalue())


def _decode_index(path: Path | UPath, footer: pq.FileMetaData) -> pa.Table:
    encoded = (footer.metadata or {}).get(_INDEX)
    if encoded is None:
        raise _damaged(path, "it has no index of records, so it is no pack")
    try:
        index = pa.ipc.open_stream(base64.b64decode(encoded)).read_all()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if not index.schema.equals(_INDEX_SCHEMA) or _NUM_BYTES not in (index.schema.metadata or {}):
        raise _damaged(path, f"its index has the columns {index.schema.names}")
    return index


def _without_index(table: pa.Table) -> pa.Table:
    metadata = {name: value for name, value in (table.schema.metadata or {}).items() if name != _INDEX}
    return table.replace_schema_metadata(metadata or None)


def _damaged(path: Path | UPath, found: str) -> RecordError:
    return RecordError(
        f"{path}: expected a pack of records, found a damaged or foreign file ({found}). Delete it and run the same "
        "command again: what it held is done anew, all other records stay."
    )

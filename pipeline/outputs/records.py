"""Records: the only truth about what is done. A segment's result, under its key, whole or not there.

`records/<first two of the key>/<key>.parquet` are loose records, as they are written. `records/packs/` holds those that
`compact` has put together since; a record that is in both is the same one, and the pack's counts. Every record tells
its own key, so that a renamed or copied file is noticed. Everything here works on a disk and on an object store.

Damage is never passed over. What is not a whole record, because a disk lied about what it had written or somebody put
the file there, raises RecordError when it is read, naming the file: delete it and run again, and that segment is done
anew. `keys` only lists, so it counts such a file until then, and a merge fails rather than come out shorter.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipeline.errors import RecordError
from pipeline.outputs.compaction import compact_records
from pipeline.outputs.packs import Pack, Place, locate, read_footer, read_group
from pipeline.outputs.writing import is_leftover, remove_abandoned, write_file
from pipeline.storage import is_local, list_files, open_path, read_bytes, remove_files

_SUFFIX = ".parquet"
_PACKS = "packs"
_KEY = b"record_key"

_READERS = 16  # an object store answers after tens of milliseconds: so many are asked at once
_AHEAD = 16  # row groups and loose records that are read before they are needed
_GROUPS_KEPT = 64  # 4 MiB each; packs that are read in turns, as after interruptions, need one each
_LISTINGS = 5


@dataclass(frozen=True)
class Listing:
    """What was in `records/` a moment ago."""

    loose: set[str]  # keys
    packs: tuple[Pack, ...]  # by name
    leftovers: tuple[str, ...]  # files below `records/` that somebody was writing, or still is

    def keys(self) -> set[str]:
        found = set(self.loose)
        for pack in self.packs:
            found.update(pack.keys.to_pylist())
        return found


class RecordStore:
    """The `records/` folder of an output folder."""

    def __init__(self, output_dir: str | Path | UPath) -> None:
        """Looks nothing up."""
        self.folder = open_path(output_dir) / "records"
        self._packs: dict[str, Pack] = {}  # by name: a pack never changes

    def path(self, key: str) -> Path | UPath:
        """Where the loose record is, or would be."""
        # Two levels keep a folder of a million records listable.
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def write(self, key: str, table: pa.Table) -> Path | UPath:
        """Writes a loose record: never half there, and replacing a loose one. One in a pack goes on counting.

        Raises StorageError when the disk is full.
        """
        path = self.path(key)
        labelled = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: key})
        write_file(path, lambda part: pq.write_table(labelled, part, compression="zstd", write_page_checksum=True))
        return path

    def read(self, key: str) -> pa.Table:
        """Raises FileNotFoundError where there is no such record, RecordError where it is damaged."""
        return next(iter(self.tables([key])))

    def tables(self, keys: Iterable[str]) -> Iterator[pa.Table]:
        """The records of `keys`, in their order, some being read ahead; a few hundred megabytes at most are in memory.

        Each row group of a pack is read once, as long as the order of the keys is more or less that of the packs.
        Raises FileNotFoundError for a key without a record, RecordError for a damaged one.
        """
        for _, found in self.stream(keys):
            if isinstance(found, Exception):
                raise found
            yield found

    def stream(self, keys: Iterable[str]) -> Iterator[tuple[str, pa.Table | Exception]]:
        """Like `tables`, with each key, and with the error in place of a record that is damaged or not there."""
        keys = list(keys)
        packs = self._open_packs()
        with _Reader(self, packs) as reader:
            waiting: deque[tuple[Future[pa.Table], list[tuple[str, Place | None]]]] = deque()
            for source, members in groupby(zip(keys, locate(packs, keys), strict=True), key=_source):
                waiting.append((reader.ask(source), list(members)))
                if len(waiting) > _AHEAD:
                    yield from _settle(*waiting.popleft())
            while waiting:
                yield from _settle(*waiting.popleft())

    def keys(self) -> set[str]:
        """Keys of all records, by one listing and the ends of the packs; no record is read.

        Raises RecordError when a pack is damaged, because nobody knows then what is done.
        """
        return self.listing().keys()

    def listing(self) -> Listing:
        """What is there, also while actors write and a driver compacts."""
        loose, leftovers = set(), []
        for name in list_files(self.folder):
            folder, _, file = name.rpartition("/")
            if is_leftover(file):
                leftovers.append(name)
            elif file.endswith(_SUFFIX) and not file.startswith(".") and folder == file[:2]:
                loose.add(file.removesuffix(_SUFFIX))
        # Packs after loose records: what vanished from here in between is in a pack by now.
        return Listing(loose, tuple(self._open_packs()), tuple(leftovers))

    def compact(self, min_records: int = 1000, *, order: Iterable[str] = ()) -> int:
        """Puts loose records into packs, when there are `min_records` or more; returns how many were.

        For the one process that holds the output folder; others may go on writing and reading. `order` is the order in
        which the records will be read, the plan's: packs keep to it, which is what makes reading them fast. Records of
        other runs follow, sorted. Killed at any moment it leaves every record where `read` finds it; the next call
        removes what is there twice. A damaged record stays loose, for `read` to tell of. Raises StorageError when the
        disk is full: a pack needs its room before the loose records give up theirs.
        """
        return compact_records(self, min_records=min_records, order=order)

    def read_loose(self, key: str) -> pa.Table:
        """Raises FileNotFoundError, or RecordError when the file is damaged or another key's."""
        path = self.path(key)
        try:
            content = read_bytes(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: expected a record, found none there, and none in the packs") from error
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table = file.read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, str(error)) from error
        metadata = dict(table.schema.metadata or {})
        own_key = metadata.pop(_KEY, b"").decode(errors="replace")
        if own_key != key:
            raise _damaged(path, f"the record of {own_key}" if own_key else "no key in it")
        return table.replace_schema_metadata(metadata or None)

    def pack_path(self, name: str) -> Path | UPath:
        return self.folder / _PACKS / f"{name}{_SUFFIX}"

    def _open_packs(self) -> list[Pack]:
        for _ in range(_LISTINGS):
            names = [name for name in list_files(self.folder / _PACKS) if _is_pack(name)]
            try:
                self._packs = self._indexes(sorted(names))
            except FileNotFoundError:
                continue  # a compaction has just put what was in it into another one
            return list(self._packs.values())
        raise RecordError(
            f"{self.folder / _PACKS}: expected the packs that are listed there, found them gone {_LISTINGS} times in a "
            "row. Does another process delete files there? Stop it and run the same command again."
        )

    def _indexes(self, names: Sequence[str]) -> dict[str, Pack]:
        missing = [name for name in names if name not in self._packs]
        with ThreadPoolExecutor(_READERS) as pool:
            opened = list(pool.map(lambda name: Pack.open(self.folder / _PACKS / name), missing))
        known = self._packs | dict(zip(missing, opened, strict=True))
        return {name: known[name] for name in names}


def remove_leftovers(output_dir: str | Path | UPath) -> set[str]:
    """Deletes what an interrupted run was writing when it died, and returns the keys that the same listing found.

    For the one process that holds the output folder, before its actors write: whoever else writes loses their file. An
    object store has nothing half-written but folders that were not put in place any more.
    """
    store, output_dir = RecordStore(output_dir), open_path(output_dir)
    listing = store.listing()
    remove_files(store.folder, listing.leftovers)
    if is_local(output_dir):
        videos = output_dir / "videos"
        remove_files(videos, [name for name in list_files(videos) if is_leftover(name.rpartition("/")[2])])
    remove_abandoned(output_dir)
    return listing.keys()


class _Reader:
    """Reads loose records and row groups in threads. A row group that is asked for again soon is not read again."""

    def __init__(self, store: RecordStore, packs: Sequence[Pack]) -> None:
        self._store, self._packs = store, packs
        self._groups: OrderedDict[tuple[int, int], Future[pa.Table]] = OrderedDict()
        self._footers: dict[int, pq.FileMetaData] = {}
        self._locks = [Lock() for _ in packs]
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="records")

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, source: str | tuple[int, int]) -> Future[pa.Table]:
        """`source` is the key of a loose record, or a pack and one of its row groups."""
        if isinstance(source, str):
            return self._pool.submit(self._store.read_loose, source)
        if source not in self._groups:
            self._groups[source] = self._pool.submit(self._read_group, *source)
            if len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(source)
        return self._groups[source]

    def _read_group(self, pack: int, group: int) -> pa.Table:
        path = self._packs[pack].path
        with self._locks[pack]:
            if pack not in self._footers:
                self._footers[pack] = read_footer(path)
        return read_group(path, self._footers[pack], group)


def _source(member: tuple[str, Place | None]) -> str | tuple[int, int]:
    key, place = member
    return key if place is None else (place.pack, place.group)


def _settle(
    future: Future[pa.Table], members: Sequence[tuple[str, Place | None]]
) -> Iterator[tuple[str, pa.Table | Exception]]:
    try:
        table = future.result()
    except (RecordError, FileNotFoundError) as error:
        for key, _ in members:
            yield key, error
        return
    for key, place in members:
        yield key, table if place is None else table.slice(place.first_row, place.num_rows)


def _is_pack(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".") and "/" not in name


def _damaged(path: Path | UPath, found: str) -> RecordError:
    return RecordError(
        f"{path}: expected a whole record, found a damaged or foreign file ({found}). Delete it and run the same "
        "command again: this one segment is done anew."
    )

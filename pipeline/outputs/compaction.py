"""Compaction: loose records become packs, so that a million segments are a few dozen files for whoever reads them.

A pack is put in place, whole and flushed, before anything that is in it is deleted: at every moment every record is
somewhere. Many small packs are in time put together, too. What is in the packs depends on nothing but the records and
their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from pipeline.fingerprint import digest
from pipeline.outputs.packs import Pack, locate, write_pack
from pipeline.storage import is_local, remove_files

if TYPE_CHECKING:
    from pipeline.outputs.records import RecordStore

# A pack is full at the first of the two. Bytes are those in memory; on disk it is less.
_RECORDS_PER_PACK = 65_536
_BYTES_PER_PACK = 2**30

_MAX_SMALL_PACKS = 8  # half full and less; so many may lie about before they are put together


def compact_records(store: RecordStore, *, min_records: int, order: Iterable[str]) -> int:
    """See `RecordStore.compact`."""
    listing = store.listing()
    packs, doubled = _told_apart(listing.packs)
    loose = sorted(listing.loose)
    packed = [key for key, place in zip(loose, locate(packs, loose), strict=True) if place is not None]
    _remove(store, packed, doubled)
    left = listing.loose.difference(packed)
    if len(left) < min_records:
        return 0
    small = [pack for pack in packs if _is_small(pack)]
    joined = small if len(small) >= _MAX_SMALL_PACKS else []
    todo = _in_order(left.union(*(pack.keys.to_pylist() for pack in joined)), order)
    num_packed = 0
    while todo:
        pack, todo = _next_pack(store, todo)
        if pack is not None:
            _flush(pack.path.parent)
            done = [key for key in pack.keys.to_pylist() if key in left]
            _remove(store, done, [])
            num_packed += len(done)
    if joined:
        _remove(store, [], _told_apart(store.listing().packs)[1])
    return num_packed


def _next_pack(store: RecordStore, todo: Sequence[str]) -> tuple[Pack | None, list[str]]:
    """Packs records from the front of `todo` that have one schema; returns what is left to do, other schemas last."""
    batch, rest = todo[:_RECORDS_PER_PACK], todo[_RECORDS_PER_PACK:]
    choice = _Choice(store.stream(batch))
    pack = None
    if choice.schema is not None:
        # The name stands for what was to be packed, so that no other pack can have it.
        pack = write_pack(store.pack_path(digest(list(batch))[:32]), choice.schema, choice.records())
    return pack, [*batch[choice.num_seen :], *rest, *choice.others]


class _Choice:
    """Of records that are read in turn, those that are whole and have the first one's schema, until a pack is full."""

    def __init__(self, stream: Iterator[tuple[str, pa.Table | Exception]]) -> None:
        self._stream = stream
        self.num_seen = 0
        self.others: list[str] = []  # whole, with another schema
        self._first = next(self._whole(), None)
        self.schema = None if self._first is None else self._first[1].schema

    def records(self) -> Iterator[tuple[str, pa.Table]]:
        """Can be asked for once."""
        assert self._first is not None, "without a whole record there is no pack"
        num_bytes = self._first[1].nbytes
        yield self._first
        while num_bytes < _BYTES_PER_PACK and (found := next(self._whole(), None)) is not None:
            key, table = found
            if table.schema.equals(self.schema, check_metadata=True):
                num_bytes += table.nbytes
                yield key, table
            else:
                self.others.append(key)

    def _whole(self) -> Iterator[tuple[str, pa.Table]]:
        for key, found in self._stream:
            self.num_seen += 1
            if isinstance(found, pa.Table):
                yield key, found


def _told_apart(packs: Sequence[Pack]) -> tuple[list[Pack], list[Pack]]:
    """Packs that are needed, and those of which every record is in another: put together, and not deleted any more."""
    needed = [pack for pack in packs if not _is_small(pack)]
    doubled = []
    small = [pack for pack in packs if _is_small(pack)]
    for pack in sorted(small, key=lambda pack: (-len(pack.keys), pack.path.name)):
        elsewhere = np.zeros(len(pack.keys), dtype=bool)
        for other in needed:
            elsewhere |= pc.is_in(pack.keys, value_set=other.keys).to_numpy(zero_copy_only=False)
        (doubled if elsewhere.all() else needed).append(pack)
    return needed, doubled


def _is_small(pack: Pack) -> bool:
    return len(pack.keys) < _RECORDS_PER_PACK // 2 and pack.num_bytes < _BYTES_PER_PACK // 2


def _in_order(keys: set[str], order: Iterable[str]) -> list[str]:
    ordered = list(dict.fromkeys(key for key in order if key in keys))
    return [*ordered, *sorted(keys.difference(ordered))]


def _remove(store: RecordStore, loose: Sequence[str], packs: Sequence[Pack]) -> None:
    paths = [*(store.path(key) for key in loose), *(pack.path for pack in packs)]
    remove_files(store.folder, [f"{path.parent.name}/{path.name}" for path in paths])


def _flush(folder: Path | UPath) -> None:
    """Makes a rename outlast a power cut: what the new file replaces is deleted next."""
    if not is_local(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

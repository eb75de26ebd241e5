"""Identity made of content: digests of settings and of files, wherever they lie. Imports `pipeline.storage` alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.storage import is_local, request

# Of a checkpoint: a few files of many gigabytes, which are the same for all that a run does.
WEIGHT_BLOCKS = 64
# Of a dataset: thousands of files of some megabytes. Each block is a request to an object store, and two encoders'
# outputs that agree in size and in their first kilobytes do not agree in seventeen places.
RECORDING_BLOCKS = 16

_BLOCK_BYTES = 64 * 1024


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path | UPath, *, num_blocks: int = WEIGHT_BLOCKS, size: int | None = None) -> str:
    """Hex SHA-256 of a file's size and content, cheap for large files. The same on a disk and in an object store.

    Files of up to `num_blocks` + 1 blocks of 64 KiB are read whole; of larger ones the first and last block and
    `num_blocks` - 1 evenly spaced ones between them. That tells apart checkpoints and videos that were really produced
    separately, without reading 30 GB to start a run; it is no defence against somebody who edits single bytes on
    purpose. `size` in bytes, where it is known from a listing, saves a request.

    Raises FileNotFoundError where there is no file, StorageError where an object store does not hand it out.
    """
    if size is None:
        size = path.stat().st_size if is_local(path) else request(lambda: path.fs.info(path.path), path)["size"]
    hasher = hashlib.sha256(str(size).encode())
    ranges = _sampled(size, num_blocks)
    blocks = request(lambda: _read_local(path, ranges), path) if is_local(path) else _read_remote(path, ranges)
    for block in blocks:
        hasher.update(block)
    return hasher.hexdigest()


def _sampled(size: int, num_blocks: int) -> list[tuple[int, int]]:
    """(start, stop) in bytes of what is read of a file."""
    if size <= (num_blocks + 1) * _BLOCK_BYTES:
        return [(0, size)] if size else []
    starts = [block * (size - _BLOCK_BYTES) // num_blocks for block in range(num_blocks + 1)]
    return [(start, start + _BLOCK_BYTES) for start in starts]


def _read_local(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    blocks = []
    with path.open("rb") as file:
        for start, stop in ranges:
            file.seek(start)
            blocks.append(file.read(stop - start))
    return blocks


def _read_remote(path: UPath, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """All blocks at once; those whose request failed are asked for again."""
    blocks: dict[tuple[int, int], bytes] = {}

    def ask() -> list[bytes]:
        missing = [limits for limits in ranges if limits not in blocks]
        starts, stops = [start for start, _ in missing], [stop for _, stop in missing]
        answers = path.fs.cat_ranges([path.path] * len(missing), starts, stops, on_error="return")
        answers = list(starmap(_whole, zip(missing, answers, strict=True)))
        blocks.update(
            (limits, answer) for limits, answer in zip(missing, answers, strict=True) if isinstance(answer, bytes)
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [blocks[limits] for limits in ranges]

    return request(ask, path)


def _whole(limits: tuple[int, int], answer: bytes | BaseException) -> bytes | BaseException:
    expected = limits[1] - limits[0]
    if isinstance(answer, BaseException) or len(answer) == expected:
        return answer
    return ConnectionError(f"{expected} bytes were asked for, {len(answer)} came")

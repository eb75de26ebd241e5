"""One file of a dataset, as a library reads it: by its path on a disk, as a file object from an object store.

FFmpeg and Arrow take an error in a file object for a damaged file, for its end, or hand it on at the next call that has
nothing to do with it. So none reaches them: the file seems to end, and the error comes out when they are done.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from upath import UPath

from pipeline.storage import is_local, read_range, request

_BLOCK_BYTES = 1024 * 1024
_NUM_KEPT = 32  # blocks; an MP4's index and its pictures are read in turns
_MAX_AHEAD = 8  # blocks in one request, reached by doubling where one follows the other


@contextlib.contextmanager
def opened(path: Path | UPath, size: int | None = None) -> Iterator[Path | RemoteFile]:
    """The path itself where it is on a disk, else a file object. `size` in bytes, where known, saves a request.

    For an object store raises FileNotFoundError where there is no file, and StorageError, in place of whatever the
    reading library made of it, where its content could not be had.
    """
    if is_local(path):
        yield path
        return
    with RemoteFile(path, size) as file:
        try:
            yield file
        finally:
            if file.error is not None:
                raise file.error


class RemoteFile(io.RawIOBase):
    """A seekable, buffered view of an object. Each request is tried again; `error` is what made that pointless."""

    def __init__(self, path: UPath, size: int | None = None) -> None:
        super().__init__()
        self.error: Exception | None = None
        self._path = path
        self._size = request(lambda: path.fs.info(path.path), path)["size"] if size is None else size
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._last_fetched, self._ahead = -1, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fills `buffer`, unless the file ends, or seems to because of an error."""
        stop = min(self._position + len(buffer), self._size)
        if self.error is not None or stop <= self._position:
            return 0
        try:
            content = self._content(self._position, stop)
        except Exception as error:
            self.error = error
            return 0
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _content(self, start: int, stop: int) -> bytes:
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        if last - first >= _NUM_KEPT:
            return self._ask(start, stop)
        parts = [self._block(number, last) for number in range(first, last + 1)]
        return b"".join(parts)[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def _block(self, number: int, last: int) -> bytes:
        if number not in self._blocks:
            self._fetch_from(number, last)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch_from(self, number: int, last: int) -> None:
        """Blocks `number..last`, and more of them the longer the file is read without a gap."""
        self._ahead = min(2 * self._ahead, _MAX_AHEAD) if number == self._last_fetched + 1 else 1
        count = max(last - number + 1, self._ahead)
        start = number * _BLOCK_BYTES
        content = self._ask(start, min(start + count * _BLOCK_BYTES, self._size))
        for offset in range(0, len(content), _BLOCK_BYTES):
            self._last_fetched = number + offset // _BLOCK_BYTES
            self._blocks[self._last_fetched] = content[offset : offset + _BLOCK_BYTES]
        while len(self._blocks) > _NUM_KEPT + _MAX_AHEAD:
            self._blocks.popitem(last=False)

    def _ask(self, start: int, stop: int) -> bytes:
        def ask() -> bytes:
            content = read_range(self._path, start, stop)
            if len(content) != stop - start:
                raise ConnectionError(f"{stop - start} bytes were asked for, {len(content)} came")
            return content

        return request(ask, self._path)

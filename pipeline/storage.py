"""Where data lives: local paths, `s3://` and `hf://`, behind pathlib's interface (universal-pathlib over fsspec).

Owns what those libraries leave open: which errors pass by themselves, what it takes for a file to appear at once, and
how one of two writers wins. `hf://` is for reading. Where an S3 endpoint is and who asks is told by the environment
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, …), as for every AWS tool. Imports `pipeline.errors` alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tenacity
from upath import UPath

from pipeline.errors import ConfigError, StorageError

PROTOCOLS = ("s3", "hf")
ATTEMPTS = 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

# Listings must be fresh: another process may have written since. botocore itself tries a failed request again, too.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False, "config_kwargs": {"retries": {"max_attempts": 5, "mode": "standard"}}},
    "hf": {},
}
_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
# Of aiohttp, botocore, fsspec and httpx: named, because which of them is installed is the file system's affair.
_PASSING_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ReadError",
    "ReadTimeout",
    "ReadTimeoutError",
    "RemoteProtocolError",
    "ResponseParserError",
    "ResponseStreamingError",
}


def open_path(location: str | Path | UPath) -> UPath:
    """The path object for a local path (`~` is the user's home), `s3://bucket/key` or `hf://datasets/org/name/…`.

    A local one is a `pathlib.Path`, too. Nothing is looked up. Raises ConfigError for any other scheme.
    """
    if isinstance(location, UPath):
        return location
    text = str(location)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return UPath(Path(text).expanduser())
    if scheme not in PROTOCOLS:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise ConfigError(f"{text}: expected a local path, or one that begins with {known}; found {scheme}://.")
    return UPath(text, **_OPTIONS[scheme])


def is_local(path: Path | UPath) -> bool:
    return isinstance(path, Path)


def absolute(location: str | Path | UPath) -> str:
    """The same place as a text that every process of a run understands, whatever its working directory is."""
    path = open_path(location)
    return str(path.resolve()) if is_local(path) else str(path)


def is_passing(error: BaseException) -> bool:
    """Whether the same operation may well succeed a moment later: a missing file or a full disk does not pass."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _PASSING_STATUSES:
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def with_retries[ResultT](operation: Callable[[], ResultT], what: object) -> ResultT:
    """What `operation` returns; it is tried again, with growing pauses, while its error is one that passes.

    It must be harmless to run twice. Raises StorageError naming `what` when patience is at an end; other errors at
    once and as they are.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
    )
    try:
        return retrying(operation)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        raise StorageError(
            f"{what}: expected the storage to answer, found {type(cause).__name__}: {cause} ({ATTEMPTS} attempts). "
            "Check the disk, the network or the endpoint; the same command goes on from here."
        ) from cause


def read_bytes(path: Path | UPath) -> bytes:
    """A file's content. Raises FileNotFoundError where there is none, StorageError where it cannot be had."""
    return with_retries(path.read_bytes, path)


def write_atomically[ResultT](path: Path | UPath, write: Callable[[Path], ResultT]) -> ResultT:
    """Calls `write(partial_path)`, puts its file in place at once, and returns its result.

    The partial file is always a local one: beside its place on a disk, flushed before it is renamed; in a temporary
    folder for an object store, which gets it in one PUT or one multipart upload. On failure nothing is left, and what
    was there before stays.
    """
    return _write_beside(path, write) if is_local(path) else _upload(path, write)


def create(path: Path | UPath, content: bytes) -> bool:
    """Writes a file that must not be there yet; False where it is. Of several that try at once, one gets True.

    On an object store this is a conditional PUT (`If-None-Match: *`).
    """
    if is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        try:
            partial.write_bytes(content)
            os.link(partial, path)  # whole from the first moment on, which O_EXCL would not be
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True
    try:
        with_retries(lambda: path.fs.pipe_file(path.path, content, mode="create"), path)
    except FileExistsError:
        # A request that was tried again finds what it wrote itself when only its answer was lost.
        return read_bytes(path) == content
    return True


def remove(path: Path | UPath) -> None:
    """Deletes a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        with_retries(path.unlink if is_local(path) else lambda: path.fs.rm_file(path.path), path)


def list_files(folder: Path | UPath) -> Iterator[str]:
    """Relative paths, with forward slashes, of all files below `folder`, hidden ones too; none where it is missing.

    One listing, page by page where it is an object store's. In no order.
    """
    if is_local(folder):
        for parent, _, names in os.walk(folder):
            inside = os.path.relpath(parent, folder)
            yield from names if inside == "." else (f"{inside}/{name}" for name in names)
        return
    prefix = folder.path.rstrip("/") + "/"
    for name in with_retries(lambda: folder.fs.find(folder.path), folder):
        yield name.removeprefix(prefix)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _write_beside[ResultT](path: Path, write: Callable[[Path], ResultT]) -> ResultT:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(_partial(path))
    try:
        result = write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return result


def _upload[ResultT](path: UPath, write: Callable[[Path], ResultT]) -> ResultT:
    with tempfile.TemporaryDirectory(prefix="upload-") as scratch:
        partial = Path(scratch) / "partial"
        result = write(partial)
        with_retries(lambda: path.fs.put_file(str(partial), path.path), path)
    return result

"""Where data lives: local paths, `s3://` and `hf://`, behind pathlib's interface (universal-pathlib over fsspec).

Owns what those libraries leave open: which errors pass by themselves, what it takes for a file to appear at once, how
one of two writers wins, and that a path from somebody's data stays inside that data's folder. `hf://` is for reading.
Where an S3 endpoint is, who asks and how often a request is tried is told by the environment (`AWS_ENDPOINT_URL`,
`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, `AWS_MAX_ATTEMPTS`, …), as for every AWS tool; timeouts by fsspec's `FSSPEC_S3`.
Imports `pipeline.errors` alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import tenacity
from upath import UPath

from pipeline.errors import ConfigError, DatasetError, PipelineError, StorageError

PROTOCOLS = ("s3", "hf")
# No new attempt later than this. An endpoint that takes connections and never answers costs a few minutes nevertheless:
# s3fs waits 15 s for an answer, and it and botocore ask five times each before they hand on the error.
PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_FILES_PER_REQUEST = 1000  # S3's own limit of one request to delete

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False},  # listings must be fresh: another process may have written since
    "hf": {"block_size": 64 * 1024},  # by which a range is read too far; five megabytes if nobody says
}
_MAX_NAME_BYTES = 255  # of a file or folder, in all file systems that matter
_PASSING_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.EINTR, errno.EIO, errno.ENETUNREACH, errno.EPIPE, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
# Of aiohttp, botocore, fsspec and httpx: named, because which of them is installed is the file system's affair.
_PASSING_NAMES = {
    "ClientConnectionError", "ClientPayloadError", "ConnectError", "ConnectTimeout", "ConnectTimeoutError",
    "EndpointConnectionError", "FSTimeoutError", "HTTPClientError", "IncompleteRead", "IncompleteReadError",
    "ReadError", "ReadTimeout", "ReadTimeoutError", "RemoteProtocolError", "ResponseParserError",
    "ResponseStreamingError",
}  # fmt: skip


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


def impatient(path: Path | UPath, timeout_s: float) -> Path | UPath:
    """The same place, over connections that are given up after `timeout_s` of silence; a local path as it is.

    For what is pointless once it is late: one request that hangs must not outlast everything that depends on it.
    """
    if is_local(path) or path.protocol != "s3":
        return path
    known = path.storage_options.get("config_kwargs", {})
    timeouts = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
    return UPath(str(path), **{**path.storage_options, "config_kwargs": {**known, **timeouts}})


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
        stop=tenacity.stop_after_delay(PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
    )
    try:
        return retrying(operation)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        raise StorageError(
            f"{what}: expected the storage to answer, found {type(cause).__name__}: {cause} "
            f"({error.last_attempt.attempt_number} attempts). Check the disk, the network or the endpoint; the same "
            "command goes on from here."
        ) from cause


def request[ResultT](operation: Callable[[], ResultT], path: Path | UPath, purpose: str = "read") -> ResultT:
    """`with_retries` of a file system: what an object store refuses, to read or to write, is a StorageError, too.

    Raises FileNotFoundError where there is nothing and FileExistsError where nothing should be. A disk's other errors
    stay as they are.
    """
    try:
        return with_retries(operation, path)
    except (FileNotFoundError, FileExistsError, PipelineError):
        raise
    except Exception as error:  # of botocore, aiohttp, httpx, huggingface_hub: they share no class
        if is_local(path):
            raise
        raise StorageError(
            f"{path}: expected to {purpose} it, found {type(error).__name__}: {error}. Check the address, the "
            "credentials and what they allow."
        ) from error


def read_bytes(path: Path | UPath) -> bytes:
    """A file's content. Raises FileNotFoundError where there is none, StorageError where it cannot be had."""
    return request(path.read_bytes if is_local(path) else lambda: path.fs.cat_file(path.path), path)


def kind(path: Path | UPath) -> Literal["file", "folder"] | None:
    """What is at `path`; None where nothing is. Raises StorageError where that cannot be found out.

    fsspec's own `isfile` takes an endpoint that does not answer for a file that is not there.
    """
    if is_local(path):
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    try:
        found = request(lambda: path.fs.info(path.path), path)["type"]
    except FileNotFoundError:
        return None
    return "folder" if found == "directory" else "file"


def file_sizes(folder: Path | UPath, *, recursive: bool) -> dict[str, int]:
    """Relative path, with forward slashes → size in bytes, of the files in or below `folder`; none where it is missing.

    One listing, page by page, and no request for each file where it is an object store's.
    """
    if is_local(folder):
        names = list_files(folder) if recursive else (entry.name for entry in _entries(folder))
        found = ((name, _stat(folder / name)) for name in names)
        return {name: status.st_size for name, status in found if status is not None and stat.S_ISREG(status.st_mode)}
    prefix = folder.path.rstrip("/") + "/"
    try:
        found = request(partial(_details, folder, recursive), folder)
    except FileNotFoundError:
        return {}
    return {
        details["name"].removeprefix(prefix): details["size"]
        for details in found
        if details["type"] == "file" and details["name"].startswith(prefix)
    }


def folder_names(folder: Path | UPath) -> list[str]:
    """Names of the files and folders in `folder`, sorted."""
    if is_local(folder):
        return sorted(entry.name for entry in _entries(folder))
    found = request(partial(_details, folder, False), folder)
    return sorted(details["name"].rstrip("/").rsplit("/", 1)[-1] for details in found)


def stays_inside(relative: str) -> bool:
    """Whether a path from somebody's data, taken as text, is one of a file below the folder that it is relative to."""
    path = PurePosixPath(relative)
    try:
        fits = all(len(part.encode()) <= _MAX_NAME_BYTES for part in path.parts)
    except UnicodeEncodeError:  # half a surrogate pair, which no file system stores
        return False
    return bool(path.parts) and fits and not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def inside(root: Path | UPath, relative: str, *, said_by: object) -> Path | UPath:
    """`root / relative`, which is below `root`, also after all links. `relative` has forward slashes, and no trust.

    Links in a snapshot folder of the Hugging Face cache may lead to that repository's own `blobs`. Raises DatasetError
    naming `said_by`, the metadata in which the path stands, and where it leads.
    """
    path = root.joinpath(*PurePosixPath(relative).parts) if stays_inside(relative) else None
    if path is not None and not is_local(root):
        return path
    real = None if path is None else os.path.realpath(path)
    if real is not None and _leads_inside(os.path.realpath(root), real):
        return path
    leads = "" if real is None else f", which leads to {real}"
    raise DatasetError(
        f"{said_by}: expected a path inside the dataset {root}, found {relative!r}{leads}; copy the files into the "
        "dataset's folder, or point dataset.root at the folder that really holds them"
    )


def write_atomically[ResultT](path: Path | UPath, write: Callable[[Path], ResultT]) -> ResultT:
    """Calls `write(partial_path)`, puts its file in place at once, and returns its result.

    The partial file is always a local one: beside its place on a disk, flushed before it is renamed; in a temporary
    folder for an object store, which gets it in one PUT or one multipart upload. On failure nothing is left, and what
    was there before stays.
    """
    return _write_beside(path, write) if is_local(path) else _upload(path, write)


def create(path: Path | UPath, content: bytes) -> bool:
    """Writes a file that must not be there yet; False where it is. Of several that try at once, one gets True.

    Let `content` say who wrote it: an answer that was lost on its way is made up for by a look at what is there.
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
        request(lambda: path.fs.pipe_file(path.path, content, mode="create"), path, "write")
    except FileExistsError:
        # A request that was tried again finds what it wrote itself when only its answer was lost.
        return read_bytes(path) == content
    return True


def remove(path: Path | UPath) -> None:
    """Deletes a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        request(path.unlink if is_local(path) else lambda: path.fs.rm_file(path.path), path, "delete")


def read_range(path: Path | UPath, start: int, stop: int | None = None) -> bytes:
    """Bytes `start..stop` of a file, to its end where `stop` is None; a negative `start` counts from the end.

    Fewer where the file is shorter. Raises FileNotFoundError where there is none, StorageError where it cannot be had.
    """

    def local() -> bytes:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            first = file.seek(max(0, start + size) if start < 0 else start)
            return file.read((size if stop is None else stop) - first)

    return request(local if is_local(path) else lambda: path.fs.cat_file(path.path, start=start, end=stop), path)


@contextlib.contextmanager
def local_copy(path: Path | UPath) -> Iterator[Path]:
    """A file's content as a local file, for libraries that read nothing else: itself, or a copy that goes again.

    Raises FileNotFoundError where an object store has none; a disk is not asked.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="download-") as scratch:
        copy = Path(scratch) / path.name
        request(lambda: path.fs.get_file(path.path, str(copy)), path)
        yield copy


def remove_files(folder: Path | UPath, names: Sequence[str]) -> None:
    """Deletes files by their paths relative to `folder`; those that are not there are no error.

    On an object store a thousand go with one request.
    """
    if is_local(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        return
    for first in range(0, len(names), _FILES_PER_REQUEST):
        paths = [f"{folder.path.rstrip('/')}/{name}" for name in names[first : first + _FILES_PER_REQUEST]]
        with contextlib.suppress(FileNotFoundError):  # not one of them was there
            request(lambda paths=paths: folder.fs.rm(paths), folder, "delete files in")


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
    for name in request(lambda: folder.fs.find(folder.path), folder, "list"):
        yield name.removeprefix(prefix)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # gone by now, or a link to nothing
        return None


def _details(folder: UPath, recursive: bool) -> list[dict[str, Any]]:
    found = folder.fs.find(folder.path, detail=True).values() if recursive else folder.fs.ls(folder.path, detail=True)
    return [details for details in found if details["name"].rstrip("/") != folder.path.rstrip("/")]


def _leads_inside(real_root: str, real: str) -> bool:
    if real == real_root or real.startswith(real_root.rstrip(os.sep) + os.sep):
        return True
    repository, separator, revision = real_root.rpartition(f"{os.sep}snapshots{os.sep}")
    return bool(separator and revision) and real.startswith(f"{repository}{os.sep}blobs{os.sep}")


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
        partial = Path(scratch) / path.name  # by whose ending s3fs tells the store what it is
        result = write(partial)
        request(lambda: path.fs.put_file(str(partial), path.path), path, "write")
    return result

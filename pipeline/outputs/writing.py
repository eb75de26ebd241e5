"""How this room puts things where they belong: a file at once, a folder as a whole, and a full disk told as such.

On a disk a folder is replaced by renaming. An object store cannot rename, and its readers list a folder whenever they
like. There, all new files are first brought to a hidden place beside the folder, then the old ones go, then the new
ones are copied into place by the store itself, the one that tells of a complete folder last. So a reader finds the old
files, for a few seconds a part of the old or of the new ones, then the new ones; never some of each. All the while the
hidden file `.being-replaced` is there. Whoever dies in between leaves it, too few files, and the hidden place, which
`remove_leftovers` clears; the same command brings the folder again.

Uploads that were cut off amid their parts show in no listing, but are paid for: a lifecycle rule of the bucket
(`AbortIncompleteMultipartUpload`) ends them. We end none ourselves, because they may be somebody else's.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from pipeline.errors import PipelineError, StorageError
from pipeline.storage import is_local, list_files, open_path, remove_files, request, write_atomically

PARTIAL_SUFFIX = ".partial"
BEING_REPLACED = ".being-replaced"  # in a folder of an object store, whose content is ours to delete then

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CONNECTIONS = 8
_ABANDONED_AFTER_S = 3600


def write_file[ResultT](path: Path | UPath, write: Callable[[Path], ResultT]) -> ResultT:
    """`storage.write_atomically`, which also says so when the disk is full: StorageError, and nothing is left."""
    with full_disk_told(path):
        return write_atomically(path, write)


@contextmanager
def full_disk_told(path: Path | UPath) -> Iterator[None]:
    """Turns the error of a disk, or of a quota, that is full into a StorageError, whoever noticed it."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        where = path.parent if is_local(path) else f"{tempfile.gettempdir()}, from where files are uploaded"
        raise StorageError(
            f"{path}: expected room for this file, found a disk full at {where}. Free space and run the same command "
            "again: what is recorded stays."
        ) from error


class NewFolder:
    """A folder in the making: `path` is local and there is nothing at it yet."""

    def __init__(self, path: Path, staging: UPath | None) -> None:
        self.path = path
        self._staging = staging

    def hand_over(self, name: str) -> None:
        """Says that the file `path / name` is complete. On an object store it is brought there and gone here."""
        file = self.path / name
        if self._staging is None:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            return
        target = f"{self._staging.path}/{name}"
        request(lambda: self._staging.fs.put_file(str(file), target), self._staging / name, "write")
        file.unlink()


@contextmanager
def replacing(folder: str | Path | UPath, *, last: str | None = None) -> Iterator[NewFolder]:
    """A new folder to fill; it takes the place of `folder`, and of all that is in it, when all went well.

    After an error `folder` is as it was. `last` names a file that tells that the folder is complete: on an object store
    it comes last and goes first. Raises StorageError where there is no room or the store does not answer.
    """
    folder = open_path(folder)
    with full_disk_told(folder):
        if is_local(folder):
            with _beside(folder) as new:
                yield new
        else:
            with _staged(folder, last) as new:
                yield new


@contextmanager
def _beside(folder: Path) -> Iterator[NewFolder]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", suffix=PARTIAL_SUFFIX, dir=folder.parent) as scratch:
        new, replaced = Path(scratch) / folder.name, Path(scratch) / "replaced"
        yield NewFolder(new, None)
        if folder.exists():
            folder.rename(replaced)
        try:
            new.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise


@contextmanager
def _staged(folder: UPath, last: str | None) -> Iterator[NewFolder]:
    staging = folder.parent / f".{folder.name}-{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-") as scratch:
            new = NewFolder(Path(scratch) / folder.name, staging)
            yield new
            _in_parallel(new.hand_over, list(list_files(new.path)))
        _publish(folder, staging, last)
    finally:
        remove_files(staging, list(list_files(staging)))


def _publish(folder: UPath, staging: UPath, last: str | None) -> None:
    def copy(name: str) -> None:
        source, target = f"{staging.path}/{name}", f"{folder.path.rstrip('/')}/{name}"
        request(lambda: folder.fs.cp_file(source, target), folder / name, "write")

    names = set(list_files(staging))
    final = [name for name in names if name == last]
    mark = folder / BEING_REPLACED
    request(lambda: mark.fs.pipe_file(mark.path, b""), mark, "write")
    remove_files(folder, final)
    remove_files(folder, [name for name in list_files(folder) if name != BEING_REPLACED])
    _in_parallel(copy, sorted(names.difference(final)))
    _in_parallel(copy, final)
    remove_files(folder, [BEING_REPLACED])


def _in_parallel(action: Callable[[str], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for done in [pool.submit(action, name) for name in names]:
            done.result()


def is_leftover(file: str) -> bool:
    """Whether a file, or a folder, of this name is one that was not put in place."""
    return file.startswith(".") and file.endswith(PARTIAL_SUFFIX)


def remove_abandoned(output_dir: Path | UPath) -> None:
    """Deletes folders that a dead run was about to put in place, and the small files beside them, at the top level.

    A partial file of the last hour may be one that this very process is writing, and stays.
    """
    if not is_local(output_dir):
        _remove_staged(output_dir)
        return
    for path in output_dir.glob(f".*{PARTIAL_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.stat().st_mtime < time.time() - _ABANDONED_AFTER_S:
            path.unlink(missing_ok=True)


def _remove_staged(output_dir: UPath) -> None:
    try:
        entries = request(lambda: output_dir.fs.ls(output_dir.path, detail=True), output_dir, "list")
    except FileNotFoundError:
        return
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory" and is_leftover(name):
            remove_files(output_dir / name, list(list_files(output_dir / name)))


def _is_full(error: BaseException | None) -> bool:
    """Also where a library tells it as the cause of an error of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False

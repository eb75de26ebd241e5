"""A remote folder as a local one: fetched once per node and content, however many processes ask for it at once.

For checkpoints: safetensors are mapped into memory, so they must lie on a disk. Imports `storage` and `fingerprint`.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from upath import UPath

from pipeline.errors import StorageError
from pipeline.fingerprint import digest
from pipeline.storage import request, stays_inside

_CONNECTIONS = 8
# What tells one content from another in a listing, as far as the store says it.
_IDENTITY = ("size", "ETag", "etag", "last_commit", "blob_id", "LastModified")


def staging_root() -> Path:
    """Where staged folders lie: `$XDG_CACHE_HOME` or `~/.cache`, and there a folder of ours."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "robot-video-labelling" / "staged"


def stage_folder(folder: UPath, wanted: Sequence[str]) -> Path:
    """A local folder with those files of a remote one that match `wanted` (patterns such as `vae/*`).

    Content that changed is another folder; of several processes on a node that ask at once one fetches and the others
    wait. Raises StorageError where nothing matches, or the storage does not answer.
    """
    files = _listing(folder, wanted)
    if not files:
        raise StorageError(
            f"{folder}: expected files such as {', '.join(wanted)}, found none. Check the location and your rights to "
            "list it."
        )
    staged = staging_root() / digest([str(folder), files])[:32]
    staged.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{staged}.lock"):
        if not staged.is_dir():
            _fetch(folder, list(files), staged)
    return staged


def _listing(folder: UPath, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Relative path → what the listing tells of its content."""
    prefix = folder.path.rstrip("/") + "/"
    found: dict[str, dict[str, Any]] = request(lambda: folder.fs.find(folder.path, detail=True), folder, "list")
    return {
        name.removeprefix(prefix): {field: str(info[field]) for field in _IDENTITY if field in info}
        for name, info in sorted(found.items())
        if any(fnmatch.fnmatch(name.removeprefix(prefix), pattern) for pattern in wanted)
    }


def _fetch(folder: UPath, names: Sequence[str], staged: Path) -> None:
    """All files, beside the place; then the place at once."""
    partial = staged.with_name(f".{staged.name}.{uuid.uuid4().hex}.partial")

    def fetch(name: str) -> None:
        if not stays_inside(name):
            raise StorageError(f"{folder}: expected file names inside this folder, found {name!r}.")
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = folder / name
        request(lambda: source.fs.get_file(source.path, str(target)), source)

    partial.mkdir()
    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(fetch, names))
        partial.rename(staged)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise

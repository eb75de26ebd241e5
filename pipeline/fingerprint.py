"""Identity made of content: digests of settings and of files. Imports the standard library only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 64 * 1024
_NUM_SAMPLED_BLOCKS = 64


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hex SHA-256 of a file's size and content, cheap for large files.

    Files of up to 65 blocks of 64 KiB are read whole; of larger ones the first and last block and 63 evenly spaced
    ones between them. That tells apart checkpoints and videos that were really produced separately, without reading
    30 GB to start a run; it is no defence against somebody who edits single bytes on purpose.
    """
    size = path.stat().st_size
    hasher = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= (_NUM_SAMPLED_BLOCKS + 1) * _BLOCK_BYTES:
            hasher.update(file.read())
        else:
            for block in range(_NUM_SAMPLED_BLOCKS + 1):
                file.seek(block * (size - _BLOCK_BYTES) // _NUM_SAMPLED_BLOCKS)
                hasher.update(file.read(_BLOCK_BYTES))
    return hasher.hexdigest()

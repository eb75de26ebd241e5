"""JSON and JSON lines, as LeRobot metadata and caption files use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.errors import DatasetError
from pipeline.storage import read_bytes


def read_json_lines(path: Path | UPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for every line that is not empty.

    Raises `DatasetError` naming the file and line, `StorageError` where an object store does not hand the file out.
    """
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(f"{path}:{number}", line, "one JSON object on the line", "mend the line")


def read_json_object(path: Path | UPath) -> dict[str, Any]:
    """A file that holds one JSON object. Raises as `read_json_lines` does."""
    return _parse(str(path), _read_text(path), "a JSON file", "fetch it again")


def _read_text(path: Path | UPath) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a UTF-8 text file, found {error}; fetch it again") from error


def _parse(where: str, text: str, expected: str, what_to_do: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text, as is seen on writing
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: expected {expected}, found {error}; {what_to_do}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a JSON object, found {type(value).__name__}; {what_to_do}")
    return value

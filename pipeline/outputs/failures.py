"""Failures: which segments came to no record, and why. One small file each, beside the records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from pipeline.errors import OutputError
from pipeline.outputs.writing import write_file
from pipeline.storage import is_local, list_files, open_path, read_bytes, remove_files

# failed: an error of the segment's own; quarantined: it killed whatever process worked on it.
Kind = Literal["failed", "quarantined"]

_SUFFIX = ".json"
_LONGEST_TEXT_BYTES = 4096
_CONNECTIONS = 16


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a segment without a record. Texts that came from data are stored as they are."""

    key: str
    episode_index: int
    positions: tuple[int, int]  # those that it would have answered for: label_start, label_stop
    kind: Kind
    error_type: str
    error: str
    attempts: int
    signal: str  # that ended its process, such as SIGSEGV, or empty
    exit_code: int | None  # of its process, where that ended by itself
    last_words: str  # of its process
    run_id: str
    at: str  # ISO


class FailureStore:
    """The `failures/` folder of an output folder."""

    def __init__(self, output_dir: str | Path | UPath) -> None:
        self.folder = open_path(output_dir) / "failures"

    def path(self, key: str) -> UPath:
        return self.folder / f"{key}{_SUFFIX}"

    def write(self, outcome: Outcome) -> None:
        """At once, in the place of an earlier one. Of the error the first 4 KiB stay, of the last words the last."""
        bounded = replace(outcome, error=_head(outcome.error), last_words=_tail(outcome.last_words))
        text = json.dumps(asdict(bounded), indent=2, allow_nan=False) + "\n"
        write_file(self.path(outcome.key), lambda partial: partial.write_bytes(text.encode("ascii")))

    def keys(self) -> set[str]:
        """Keys of all outcomes, by one listing."""
        names = (name for name in list_files(self.folder) if name.endswith(_SUFFIX))
        return {name.removesuffix(_SUFFIX) for name in names if not name.startswith(".") and "/" not in name}

    def read(self, keys: Iterable[str]) -> list[Outcome]:
        """In the order of `keys`; those that have gone meanwhile are left out.

        Raises OutputError for a file that holds no outcome, and StorageError where one cannot be had.
        """
        if is_local(self.folder):
            found = [self._read(key) for key in keys]
        else:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                found = list(pool.map(self._read, keys))
        return [outcome for outcome in found if outcome is not None]

    def remove(self, keys: Iterable[str]) -> None:
        """Those that are not there are no error."""
        remove_files(self.folder, [f"{key}{_SUFFIX}" for key in keys])

    def _read(self, key: str) -> Outcome | None:
        path = self.path(key)
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            return None
        try:
            return _parse(json.loads(content), key)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise OutputError(
                f"{path}: expected what became of a failed segment, found something else ({type(error).__name__}: "
                f"{error}). Delete the file: its segment is then tried again by the same command."
            ) from error


def _parse(found: dict[str, Any], key: str) -> Outcome:
    """Raises ValueError, TypeError or KeyError for anything else than what `write` writes."""
    values = {field.name: found[field.name] for field in fields(Outcome)}
    start, stop = values["positions"]
    outcome = Outcome(**{**values, "positions": (start, stop)})
    texts = (outcome.error_type, outcome.error, outcome.signal, outcome.last_words, outcome.run_id, outcome.at)
    numbers = (outcome.episode_index, start, stop, outcome.attempts, outcome.exit_code or 0)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a field is of another type")
    if outcome.kind not in ("failed", "quarantined"):
        raise ValueError(f"kind {outcome.kind!r}")
    if outcome.key != key:
        raise ValueError(f"key {outcome.key!r}")
    return outcome


def _head(text: str) -> str:
    """The first 4 KiB of a text, and how much was left out. A lone surrogate is three bytes, as in WTF-8."""
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_TEXT_BYTES:
        return text
    mark = f" … ({len(encoded)} bytes in all)"
    return _decoded(encoded[: _LONGEST_TEXT_BYTES - len(mark.encode())]) + mark


def _tail(text: str) -> str:
    return _decoded(text.encode("utf-8", "surrogatepass")[-_LONGEST_TEXT_BYTES:])


def _decoded(encoded: bytes) -> str:
    """Without the part of a character that is left at a cut."""
    kept = encoded.lstrip(bytes(range(0x80, 0xC0)))
    for length in range(len(kept), max(len(kept) - 4, -1), -1):
        try:
            return kept[:length].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            continue
    raise AssertionError("UTF-8 has no characters of more than four bytes")

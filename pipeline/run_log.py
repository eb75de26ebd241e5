"""The run's log: what happened, one event a line, for people or as JSON. Written by the driver alone.

Owns the events and their fields, how a line looks, and where it goes: `logs/<run_id>.log` in the output folder and,
as far as it does not disturb the bar, stderr.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from upath import UPath

from pipeline.printable import printable
from pipeline.progress import Standing
from pipeline.storage import is_local, open_path, read_bytes, write_atomically

LogFormat = Literal["text", "json"]
LOG_EVERY_S = 30.0
MAX_UPLOAD_BYTES = 16 * 1024**2
# Of one value: the last words of a process may be a whole traceback, and an error may quote a file.
_MAX_VALUE_CHARACTERS = 4000
_PER_SEGMENT = {"segment_failed", "segment_quarantined"}


class Bar(Protocol):
    """What has the terminal's last line for itself."""

    def write_above(self, line: str) -> None:
        """Shows a line without tearing the bar."""


class RunLog:
    """A context manager; each method is an event. No failure to write a log ever disturbs the run.

    The file gets every event. stderr gets: with `json` every event, too; with `text` warnings and errors, while what
    goes well is the bar's to tell. Of failed segments there may be thousands, so with a bar they go to the file only.
    """

    def __init__(
        self,
        output_dir: str | Path | UPath,
        run_id: str,
        *,
        log_format: LogFormat = "text",
        bar: Bar | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """`stream` is stderr by default. `bar` is None where none is drawn."""
        self._run_id = run_id
        self._log = logging.Logger("run")  # this run's own: no other library's settings reach it
        self._file = _LogFile(open_path(output_dir) / "logs" / f"{run_id}.log")
        screen = _Screen(stream or sys.stderr, bar, shows_all=log_format == "json")
        for handler in (self._file, screen):
            handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
            self._log.addHandler(handler)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def last_error(self) -> str:
        """Why the file could not be written; empty where it could."""
        return self._file.last_error

    def run_started(
        self, *, job: str, output_dir: str, segments: int, windows: int, settings: Mapping[str, Any]
    ) -> None:
        """`segments` and `windows` are those that are left to do."""
        self._tell(
            logging.INFO,
            "run_started",
            run_id=self._run_id,
            job=job,
            output_dir=output_dir,
            segments=segments,
            windows=windows,
            settings=dict(settings),
        )

    def lease_taken(self, *, holder: str, taken_from: str = "") -> None:
        """`taken_from` is the dead run whose lease it was."""
        level = logging.WARNING if taken_from else logging.INFO
        self._tell(level, "lease_taken", holder=holder, taken_from=taken_from)

    def progress(self, standing: Standing) -> None:
        """To be told every `LOG_EVERY_S`."""
        told = standing.to_json(datetime.now(UTC))
        self._tell(logging.INFO, "progress", **{name: told[name] for name in told if name not in ("at", "run_id")})

    def segment_failed(self, *, key: str, episode_index: int, error_type: str, error: str) -> None:
        self._tell(
            logging.WARNING,
            "segment_failed",
            key=key,
            episode_index=episode_index,
            error_type=error_type,
            error=error,
        )

    def segment_quarantined(
        self, *, key: str, episode_index: int, error_type: str, error: str, attempts: int | None = None
    ) -> None:
        """`error` says how its process died: signal or exit code, and last words."""
        self._tell(
            logging.ERROR,
            "segment_quarantined",
            key=key,
            episode_index=episode_index,
            error_type=error_type,
            error=error,
            attempts=attempts,
        )

    def engine_restarted(self, *, reason: str) -> None:
        self._tell(logging.WARNING, "engine_restarted", reason=reason)

    def stopping(self, *, signal_name: str, grace_s: float) -> None:
        """Of what is in flight, whatever ends within `grace_s` is kept."""
        self._tell(logging.WARNING, "stopping", signal=signal_name, grace_s=grace_s)

    def run_ended(self, *, exit_code: int, wall_s: float, segments: Mapping[str, int], limit: str) -> None:
        """`segments` counts the plan's as the summary does; `limit` says which stage was the limit."""
        level = logging.ERROR if exit_code else logging.INFO
        told = {"exit_code": exit_code, "wall_s": round(wall_s, 3), "segments": dict(segments), "limit": limit}
        self._tell(level, "run_ended", **told)

    def close(self) -> None:
        """Puts the file of an object store in its place. Harmless a second time."""
        for handler in list(self._log.handlers):
            handler.close()
            self._log.removeHandler(handler)

    def _tell(self, level: int, event: str, **fields: Any) -> None:
        self._log.log(level, event, extra={"event": event, "fields": fields})


class _JsonLines(logging.Formatter):
    """One object a line, in ASCII: whatever a terminal would obey is an escape already."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"at": _at(record), "level": record.levelname.lower(), "event": record.event}
        fields = {name: _shortened(value) for name, value in record.fields.items()}
        assert not head.keys() & fields.keys(), fields.keys()
        return json.dumps(head | fields, default=str).replace("\x7f", "\\u007f")


class _TextLines(logging.Formatter):
    """`2026-01-31T12:00:00+00:00 WARNING segment failed: key=… error=…`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(
            f"{name}={printable(_shortened(value))}" for name, value in record.fields.items() if value not in ("", None)
        )
        return f"{_at(record)} {record.levelname} {record.event.replace('_', ' ')}: {fields}"


class _Screen(logging.Handler):
    """stderr, above the bar where there is one."""

    def __init__(self, stream: TextIO, bar: Bar | None, *, shows_all: bool) -> None:
        super().__init__(logging.INFO if shows_all else logging.WARNING)
        self._stream = stream
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        if self._bar is not None and record.event in _PER_SEGMENT:
            return
        line = self.format(record)
        try:
            if self._bar is not None:
                self._bar.write_above(line)
            else:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # the terminal was closed: the file has it all
            return


class _LogFile(logging.Handler):
    """Appends to a local file; for an object store, to a temporary one that is uploaded when the run ends."""

    def __init__(self, path: UPath) -> None:
        super().__init__(logging.INFO)
        self.last_error = ""
        self._path = path
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._stream: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            stream = self._opened()
            stream.write(self.format(record) + "\n")
            stream.flush()
        except OSError as error:
            self.last_error = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        if self._stream is not None:
            try:
                self._stream.close()
                if self._scratch is not None:
                    self._upload(Path(self._stream.name))
            except Exception as error:  # of whatever kind an object store has: the labels are safe without a log
                self.last_error = f"{type(error).__name__}: {error}"
            finally:
                self._stream = None
                if self._scratch is not None:
                    self._scratch.cleanup()
        super().close()

    def _opened(self) -> TextIO:
        if self._stream is None:
            self._stream = self._local_path().open("a", encoding="utf-8", errors="backslashreplace")
        return self._stream

    def _local_path(self) -> Path:
        if is_local(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._path
        self._scratch = tempfile.TemporaryDirectory(prefix="run-log-")
        return Path(self._scratch.name) / self._path.name

    def _upload(self, local: Path) -> None:
        """What the runs before wrote, and this one's lines after it: the newest of them where it gets too much."""
        try:
            earlier = read_bytes(self._path)
        except FileNotFoundError:
            earlier = b""
        content = _last_lines(earlier + local.read_bytes(), MAX_UPLOAD_BYTES)
        write_atomically(self._path, lambda partial: partial.write_bytes(content))


def _last_lines(content: bytes, max_bytes: int) -> bytes:
    if len(content) <= max_bytes:
        return content
    return content[-max_bytes:].partition(b"\n")[2]


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")


def _shortened(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= _MAX_VALUE_CHARACTERS:
        return value
    half = _MAX_VALUE_CHARACTERS // 2
    return f"{value[:half]} … {value[-half:]}"

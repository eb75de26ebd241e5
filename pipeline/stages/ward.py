"""The ward: segments whose process died run here one at a time, in a process of their own, and the culprit is known.

Knows no Ray: `on_ray` makes an actor of it, where an engine would be.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

from pipeline.errors import StageError
from pipeline.stages.stage import Road, Row

_LAST_WORDS_BYTES = 4096
_READ_BYTES = 64 * 1024
# Of what Python's fault handler prints: the line that names the fault, and one of no use that is longer than all else.
_FAULT = "Fatal Python error"
_NOISE = "Extension modules:"


@dataclass(frozen=True)
class Death:
    """How a process ended that worked on a segment alone. Either a signal or an exit code is known."""

    signal: str  # such as "SIGSEGV"; "" where it ended by itself
    exit_code: int | None
    last_words: str  # the end of what it wrote to stderr about this segment

    def __str__(self) -> str:
        how = f"killed by {self.signal}" if self.signal else f"ended with exit code {self.exit_code}"
        words = self.last_words.strip().splitlines()
        if not words:
            return f"{how}, without a word"
        return f"{how}, last words: {next((line for line in words if line.startswith(_FAULT)), words[-1])}"


class Ward:
    """Holds one child process with the whole road in it, and starts another when it dies."""

    def __init__(self, road: Road) -> None:
        self._road = road
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the ward

    def is_there(self) -> bool:
        """Answered as soon as this process is."""
        return True

    def treat(self, row: Row) -> Row | Death:
        """The status row of a segment that lived, or how its process died.

        Raises StageError when not even the empty road can be built: then no segment is to blame.
        """
        child = self._living_child()
        said_before = os.fstat(self._stderr.fileno()).st_size
        with contextlib.suppress(BrokenPipeError):
            _send(child, row)
        try:
            return pickle.load(child.stdout)
        except EOFError:
            return self._examine(child, said_before)

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _living_child(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            said_before = os.fstat(self._stderr.fileno()).st_size
            # The same modules as here, wherever this process was given them from.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.stages.alone"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
            try:
                with contextlib.suppress(BrokenPipeError):
                    _send(child, self._road)
                pickle.load(child.stdout)
            except EOFError:
                death = self._examine(child, said_before)
                raise StageError(
                    f"A process of its own could not be set up for segments whose process had died: it was {death}"
                ) from None
            self._child = child
        return self._child

    def _examine(self, child: subprocess.Popen[bytes], said_before: int) -> Death:
        code = child.wait()
        self._child = None
        size = os.fstat(self._stderr.fileno()).st_size
        start = max(said_before, size - _READ_BYTES)
        said = os.pread(self._stderr.fileno(), size - start, start).decode(errors="replace")
        return Death(_signal_name(-code) if code < 0 else "", code if code >= 0 else None, _shortened(said))


def _send(child: subprocess.Popen[bytes], value: object) -> None:
    pickle.dump(value, child.stdin)
    child.stdin.flush()


def _shortened(said: str) -> str:
    """Its beginning and its end, where it is long: a fault is named first, an exception last."""
    said = "".join(line for line in said.splitlines(keepends=True) if not line.startswith(_NOISE))
    half = _LAST_WORDS_BYTES // 2
    return said if len(said) <= 2 * half else f"{said[:half]}\n…\n{said[-half + 3 :]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

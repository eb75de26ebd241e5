"""One input given to one reader: how it ended, how long it took, how much memory it wanted, and where it read.

Owns what counts as bad: any error that is not a PipelineError, too much time, too much memory, and opening a file that
lies beside the input's folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

from pipeline.errors import PipelineError

CPU_LIMIT_S = 10.0  # of this process' own time, so that a busy machine condemns nobody
WALL_LIMIT_S = 60.0
MEMORY_LIMIT_MIB = 1024
ACCEPTED = "accepted"

_IN_OPEN, _IN_NONBLOCK, _EVENT_BYTES = 0x20, os.O_NONBLOCK, 64 * 1024
_REPOSITORY = Path(__file__).resolve().parents[2]


class TookTooLong(BaseException):
    """Raised by the clock inside a reader; no `except Exception` swallows it."""


@dataclass(frozen=True)
class Outcome:
    """How one input ended: `kind` is "accepted" or the error's class name."""

    kind: str
    is_bad: bool
    where: str = ""
    message: str = ""
    seconds: float = 0.0
    growth_mib: float = 0.0


@dataclass
class Tally:
    """The outcomes of one target. Of each kind of bad ending at each place one input is kept."""

    target: str
    tried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    bad: dict[tuple[str, str], tuple[str, Mapping[str, bytes]]] = field(default_factory=dict)
    num_bad: int = 0
    slowest_s: float = 0.0
    largest_mib: float = 0.0

    def add(self, outcome: Outcome, files: Mapping[str, bytes]) -> None:
        self.tried += 1
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.largest_mib = max(self.largest_mib, outcome.growth_mib)
        if outcome.is_bad:
            self.num_bad += 1
            self.bad.setdefault((outcome.kind, outcome.where), (outcome.message, files))
        else:
            self.kinds[outcome.kind] += 1


class Examiner:
    """Gives inputs to readers in a folder of its own, with forbidden files beside it."""

    def __init__(self, folder: Path, bait: Mapping[str, bytes]) -> None:
        """`bait` are the files beside the inputs, such as a traversal would like to reach."""
        self.input_folder = folder / "input"
        outside = folder / "outside"
        _write_files(outside, bait)
        self._fence = _Fence(outside)

    def accept(self, files: Mapping[str, bytes], read: Callable[[Path], object]) -> None:
        """Raises what comes out for files that are known to be good. Imports happen here, which no input has to pay."""
        shutil.rmtree(self.input_folder, ignore_errors=True)
        _write_files(self.input_folder, files)
        read(self.input_folder)

    def examine(self, files: Mapping[str, bytes], read: Callable[[Path], object]) -> Outcome:
        shutil.rmtree(self.input_folder, ignore_errors=True)
        _write_files(self.input_folder, files)
        self._fence.opened()
        started, before_mib = time.perf_counter(), _start_measuring_memory()
        kind, is_bad, where, message = ACCEPTED, False, "", ""
        try:
            with _clock():
                read(self.input_folder)
        except PipelineError as error:
            kind, message = type(error).__name__, str(error)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # among them Rust's panics, which are no Exception
            kind, is_bad, where = type(error).__name__, True, _place(error.__traceback__)
            message = "".join(traceback.format_exception(error, limit=-8))
        seconds, growth_mib = time.perf_counter() - started, _peak_mib() - before_mib
        if growth_mib > MEMORY_LIMIT_MIB:
            kind, is_bad, message = "TooMuchMemory", True, f"{growth_mib:.0f} MiB; {kind} {message}"
        if opened := self._fence.opened():
            kind, is_bad, message = "ReadOutside", True, f"opened {', '.join(opened)}; {kind} {message}"
        return Outcome(kind, is_bad, where, message, seconds, growth_mib)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _place(trace: TracebackType | None) -> str:
    """The innermost line of this project that the error went through."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_REPOSITORY / "pipeline")]
    last = (ours or frames)[-1]
    name = Path(last.filename)
    return f"{name.relative_to(_REPOSITORY) if name.is_relative_to(_REPOSITORY) else name.name}:{last.lineno}"


# --------------------------------------------------------------------------------------------------- time and memory


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    """Raises TookTooLong inside the block once its time is up. Main thread only, as all signal handling."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"more than {CPU_LIMIT_S:g} s of computing, or {WALL_LIMIT_S:g} s in all")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_mib(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"no {name}: the kernel tells it on Linux"
    return int(found[1]) / 1024


def _start_measuring_memory() -> float:
    """Resident MiB now; the kernel's high-water mark begins anew here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


# ----------------------------------------------------------------------------------------------------- files outside


class _Fence:
    """Tells whether anything in a folder was opened, by whatever library: the kernel's own notification (inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(_IN_NONBLOCK)
        for path in (folder, *(inner for inner in folder.rglob("*") if inner.is_dir())):
            watched = libc.inotify_add_watch(self._descriptor, str(path).encode(), _IN_OPEN)
            assert watched >= 0, os.strerror(ctypes.get_errno())

    def opened(self) -> list[str]:
        """Names of what was opened since the last call."""
        events = b""
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self._descriptor, _EVENT_BYTES):
                events += block
        return sorted(set(_names(events)))


def _names(events: bytes) -> Iterator[str]:
    """inotify_event: int wd; uint32 mask, cookie, len; char name[len]."""
    while events:
        length = int.from_bytes(events[12:16], "little")
        yield events[16 : 16 + length].rstrip(b"\x00").decode() or "the folder"
        events = events[16 + length :]

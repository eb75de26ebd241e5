"""The lease: one run per output folder, on disks and object stores alike.

Owns `lease/`: numbered files of which the highest says who holds the folder. Taking over is creating the next number,
which `storage.create` grants to one contender only; the holder renews by rewriting its own. Which holders are dead is
told without comparing the clocks of two machines: by the process itself where that can be seen from here, else by
watching whether the file still changes. `read_lease` is for those who only look.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from upath import UPath

from pipeline.errors import LeaseError, StorageError
from pipeline.outputs.holder import Holder, Machine, is_moment
from pipeline.printable import printable
from pipeline.storage import create, impatient, is_local, list_files, open_path, read_bytes, remove, write_atomically

_NAME = re.compile(r"\d{8}\.json")
_ROUNDS = 20  # each lost one means that somebody else won
_SHORTEST_TIMEOUT_S = 5.0  # of one request
_LONGEST_WATCH_S = 600.0  # whatever a lease file says


@dataclass(frozen=True, kw_only=True)
class Periods:
    """How a lease lives, in seconds."""

    renew_s: float = 10.0
    # Without a renewal for this long the holder stops, and others take the lease: it is the holder's own word.
    dead_after_s: float = 60.0
    # After winning on an object store, before looking whether it is still so: some ignore the PUT's condition.
    settle_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """What one lease file says. `token` tells apart two that look alike; `counter` grows with every renewal."""

    token: str
    holder: Holder
    counter: int
    renewed_at: str  # ISO, by the holder's clock
    dead_after_s: float
    released: bool = False

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> LeaseState | None:
        """None for anything that is no lease file, such as one that another version writes."""
        try:
            fields = json.loads(content)
            state = cls(**{**fields, "holder": Holder(**fields["holder"])})
            is_sound = isinstance(state.released, bool) and float(state.dead_after_s) > 0 and state.holder.is_sound
            return state if is_sound and is_moment(state.renewed_at) else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def read_lease(output_dir: str | Path | UPath) -> LeaseState | None:
    """The newest holder of a folder, or None where there never was one, or where its file cannot be read as one."""
    folder = _folder(output_dir)
    newest = max(_generations(folder), default=0)
    content = _content(folder, newest) if newest else None
    return None if content is None else LeaseState.from_bytes(content)


@contextlib.contextmanager
def hold_lease(
    output_dir: str | Path | UPath,
    *,
    run_id: str,
    on_lost: Callable[[str], None] = lambda reason: None,
    say: Callable[[str], None] = lambda text: None,
    periods: Periods | None = None,
    machine: Machine | None = None,
) -> Iterator[Lease]:
    """Holds the folder's lease for the duration of the block.

    `on_lost(reason)` is called once, in a thread of the lease, when it is taken away: the run must stop writing.
    `say` is told why it takes a while. `machine` is where this process claims to run. Raises LeaseError where a living
    run holds the folder, StorageError where that cannot be found out.
    """
    periods, holder = periods or Periods(), Holder.here(run_id, machine or Machine.here())
    folder = impatient(_folder(output_dir), max(_SHORTEST_TIMEOUT_S, periods.dead_after_s / 6))
    try:
        lease = _acquire(folder, holder, periods=periods, say=say, on_lost=on_lost)
    except OSError as error:
        raise StorageError(
            f"{folder}: expected to be able to keep a lease there, found {type(error).__name__}: {error}. Check the "
            "output folder's permissions and free space, or choose another --output_dir."
        ) from error
    try:
        yield lease
    finally:
        lease.release()


class Lease:
    """A lease that was won. Its two threads are daemons: they do not keep a process alive, and a fork has none."""

    def __init__(
        self,
        folder: Path | UPath,
        generation: int,
        state: LeaseState,
        *,
        periods: Periods,
        taken_from: Holder | None,
    ) -> None:
        self.folder, self.generation, self.taken_from = folder, generation, taken_from
        self._state, self._periods = state, periods
        self._pid = os.getpid()
        self._over, self._changing = threading.Event(), threading.Lock()
        self._lost_because = self._trouble = ""
        self._renewer = threading.Thread(target=self._renew_on, name="lease-renewer", daemon=True)
        # On its own, because a renewal may hang in the network for longer than the lease lives.
        self._warden = threading.Thread(target=self._watch_time, name="lease-warden", daemon=True)

    def start(self, renewed: float, on_lost: Callable[[str], None]) -> None:
        """Keeps it from now on. `renewed` is the monotonic time before which nobody can have seen it."""
        self._renewed, self._on_lost = renewed, on_lost
        self._renewer.start()
        self._warden.start()

    @property
    def holder(self) -> Holder:
        return self._state.holder

    @property
    def lost_because(self) -> str:
        """Empty as long as the lease is ours."""
        return self._lost_because

    def check(self) -> None:
        """Raises LeaseError when the lease was lost."""
        if self._lost_because:
            raise LeaseError(f"{self.folder}: {self._lost_because}")

    def release(self) -> None:
        """Gives the lease back; harmless twice, after it was lost, and in a forked process.

        A storage that is out of order is no error here: the lease ends by itself when it is no longer renewed.
        """
        if os.getpid() != self._pid:
            return
        with self._changing:
            was_over = self._over.is_set()
            self._over.set()
        if was_over:
            return
        # A renewal on its way must not land after the release.
        self._renewer.join(timeout=self._periods.dead_after_s)
        with contextlib.suppress(StorageError, OSError):
            if self._why_gone():
                return
            try:
                self._write(replace(self._state, released=True, renewed_at=_now()))
            except (StorageError, OSError):
                remove(_path(self.folder, self.generation))  # for which there is room on a full disk, too

    def _renew_on(self) -> None:
        while not self._over.wait(self._periods.renew_s):
            began = time.monotonic()
            try:
                if gone := self._why_gone():
                    self._lose(gone)
                    return
                self._state = replace(self._state, counter=self._state.counter + 1, renewed_at=_now())
                self._write(self._state)
                self._renewed, self._trouble = began, ""
            except Exception as error:  # whatever a storage can think of: tolerated until the time is over
                self._trouble = f" ({type(error).__name__}: {error})"

    def _watch_time(self) -> None:
        while True:
            left = self._renewed + self._periods.dead_after_s - time.monotonic()
            if left <= 0:
                self._lose(
                    f"the lease could not be renewed for {self._periods.dead_after_s:g} s{self._trouble}, so another "
                    "run may have taken it. Check the storage, then run the same command again: what is recorded stays."
                )
                return
            began = time.monotonic()
            if self._over.wait(left):
                return
            if time.monotonic() - began > left + self._periods.renew_s:
                # The whole process was suspended, and wrote nothing meanwhile. The renewer looks first whether
                # anybody has come: this long it is given.
                awake_s = self._periods.dead_after_s - 2 * self._periods.renew_s
                self._renewed = max(self._renewed, time.monotonic() - awake_s)

    def _why_gone(self) -> str:
        """Empty where the lease is ours still; else what has become of it."""
        newest = max(_generations(self.folder), default=0)
        content = _content(self.folder, newest) if newest else None
        if content is None:
            return "the lease file was deleted while this run held it. Run the same command again."
        found = LeaseState.from_bytes(content)
        if newest == self.generation and found is not None and found.token == self._state.token:
            return ""
        who = "a run that left no readable name" if found is None else found.holder.describe()
        return f"this run was taken for dead, and its lease was taken by {who}. It stops; the other one goes on."

    def _write(self, state: LeaseState) -> None:
        path = _path(self.folder, self.generation)
        write_atomically(path, lambda partial: partial.write_bytes(state.to_bytes()))

    def _lose(self, reason: str) -> None:
        with self._changing:
            if self._over.is_set():
                return
            self._lost_because = reason
            self._over.set()
        self._on_lost(reason)


def _acquire(
    folder: Path | UPath,
    holder: Holder,
    *,
    periods: Periods,
    say: Callable[[str], None],
    on_lost: Callable[[str], None],
) -> Lease:
    state = LeaseState(
        token=uuid.uuid4().hex, holder=holder, counter=0, renewed_at=_now(), dead_after_s=periods.dead_after_s
    )
    for _ in range(_ROUNDS):
        newest = max(_generations(folder), default=0)
        content = _content(folder, newest) if newest else None
        found = LeaseState.from_bytes(content) if content is not None else None
        is_free = content is None or (found is not None and found.released)
        if not is_free and not _is_dead(folder, newest, content, holder=holder, periods=periods, say=say):
            continue  # it has changed hands meanwhile
        state, mine, began = replace(state, renewed_at=_now()), newest + 1, time.monotonic()
        if not _won(folder, mine, state, periods):
            continue
        lease = Lease(folder, mine, state, periods=periods, taken_from=None if is_free or not found else found.holder)
        lease.start(began, on_lost)
        with contextlib.suppress(StorageError, OSError):  # what stays of them is in nobody's way
            for generation in _generations(folder):
                if generation < mine:
                    remove(_path(folder, generation))
        return lease
    raise LeaseError(f"{folder}: expected to win or to meet a holder, found {_ROUNDS} times that others came first.")


def _won(folder: Path | UPath, generation: int, state: LeaseState, periods: Periods) -> bool:
    """Whether this generation was created here, and is the newest still.

    It may not be: a contender that was held up for long can create a number that others have used and deleted.
    """
    path, content = _path(folder, generation), state.to_bytes()
    if not create(path, content):
        return False
    if not is_local(folder):
        time.sleep(periods.settle_s)
    if max(_generations(folder), default=0) == generation:
        return _content(folder, generation) == content
    if _content(folder, generation) == content:
        remove(path)
    return False


def _is_dead(
    folder: Path | UPath,
    generation: int,
    content: bytes,
    *,
    holder: Holder,
    periods: Periods,
    say: Callable[[str], None],
) -> bool:
    """True for a dead holder, False where the lease has changed hands meanwhile. Raises LeaseError for a living one."""
    found = LeaseState.from_bytes(content)
    sign = found.holder.sign_of_life(seen_from=holder.machine) if found else "unknown"
    if found and sign == "alive":
        raise LeaseError(_refusal(folder, found, _ago(found.renewed_at)))
    if sign == "dead":
        return True
    own_word = float(found.dead_after_s) if found else 0.0
    patience_s = min(max(own_word, periods.dead_after_s), _LONGEST_WATCH_S)
    who = found.holder.describe() if found else "a run whose lease file cannot be read"
    say(f"{folder} is held by {who}. Watching for up to {patience_s:g} s whether it is still renewed.")
    watched_from = time.monotonic()
    while time.monotonic() - watched_from < patience_s:
        time.sleep(min(periods.renew_s, patience_s) / 4)
        if max(_generations(folder), default=0) != generation:
            return False
        seen = _content(folder, generation)
        if seen == content:
            continue
        renewed = LeaseState.from_bytes(seen) if seen is not None else None
        if renewed is None or renewed.released or found is None or renewed.token != found.token:
            return False
        raise LeaseError(_refusal(folder, renewed, "a moment ago, as seen from here"))
    return True


def _refusal(folder: Path | UPath, state: LeaseState, renewed: str) -> str:
    holder = state.holder
    return printable(
        f"{folder.parent}: expected no other run on this output folder, found {holder.describe()}, which holds it "
        f"since {holder.since} ({_ago(holder.since)}); last renewed {renewed}. Follow it (jobs/status.py --follow), "
        f"stop it (on {holder.host}: kill {holder.pid}), or give this run another --output_dir."
    )


def _folder(output_dir: str | Path | UPath) -> Path | UPath:
    return open_path(output_dir) / "lease"


def _path(folder: Path | UPath, generation: int) -> Path | UPath:
    return folder / f"{generation:08d}.json"


def _generations(folder: Path | UPath) -> list[int]:
    return [int(name[:8]) for name in list_files(folder) if _NAME.fullmatch(name)]


def _content(folder: Path | UPath, generation: int) -> bytes | None:
    try:
        return read_bytes(_path(folder, generation))
    except FileNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _ago(moment: str) -> str:
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

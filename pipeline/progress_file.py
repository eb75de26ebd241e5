"""`progress/<run_id>.json` in the output folder: what a run tells those who look at it from elsewhere.

Owns when it is written, and that no failure to write it ever disturbs the run.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from upath import UPath

from pipeline.progress import Progress, Standing
from pipeline.storage import open_path, write_atomically

WRITE_EVERY_S = 5.0
# An object store that hangs must not hold up a run that is over.
_PATIENCE_S = 10.0


def progress_path(output_dir: str | Path | UPath, run_id: str) -> UPath:
    return open_path(output_dir) / "progress" / f"{run_id}.json"


class ProgressFile:
    """Writes standings, at most one every five seconds; the last one always."""

    def __init__(
        self,
        output_dir: str | Path | UPath,
        run_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = progress_path(output_dir, run_id)
        self._clock = clock
        self._now = now
        self._written_s: float | None = None
        self.last_error = ""  # why the latest attempt failed; empty where it did not

    def write(self, standing: Standing, *, last: bool = False) -> bool:
        """Whether it was written. Within five seconds of the attempt before it is not, unless it is the `last`."""
        at_s = self._clock()
        if not last and self._written_s is not None and at_s - self._written_s < WRITE_EVERY_S:
            return False
        self._written_s = at_s
        text = json.dumps(standing.to_json(self._now()), indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(self._path, lambda partial: partial.write_text(text))
        except Exception as error:  # labels matter, this file does not, whatever the storage comes up with
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        self.last_error = ""
        return True

    @contextlib.contextmanager
    def following(self, progress: Progress) -> Iterator[None]:
        """Writes from a thread of its own as long as the block runs, and once more when it ends, however it ends."""
        try:
            with every(WRITE_EVERY_S, lambda: self.write(progress.standing(self._clock())), at_once=True):
                yield
        finally:
            self.write(progress.standing(self._clock()), last=True)


@contextlib.contextmanager
def every(period_s: float, action: Callable[[], object], *, at_once: bool = False) -> Iterator[None]:
    """Calls `action` every `period_s` from a thread of its own as long as the block runs; `at_once`: also right away.

    What `action` raises ends these calls, and never the block.
    """
    over = threading.Event()

    def keep_calling() -> None:
        if at_once:
            action()
        while not over.wait(period_s):
            action()

    thread = threading.Thread(target=keep_calling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_PATIENCE_S)

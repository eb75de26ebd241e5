"""What came of each segment, as it comes: counted, written down where it failed, and told to the log.

Owns the rule which errors are a segment's own. A storage that does not answer is nobody's fault: such segments are left
for the next run, and where they come one after the other the run stops instead of failing all that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, StorageError
from pipeline.outputs.failures import Outcome
from pipeline.outputs.summary import Tally
from pipeline.plan import Segment
from pipeline.run_log import RunLog
from pipeline.stages.stage import DROPPED

if TYPE_CHECKING:
    from pipeline.run import Prepared

# So many segments in a row, without one that worked, whose input could not be read for reasons of the storage: one bad
# spot on a disk costs its segments, a storage that is down costs none.
STORAGE_ERRORS_IN_A_ROW = 8
RECORDS_PER_PACKING = 5000
_WRITERS = 8


class Bookkeeper:
    """A context manager. Leaving it waits until every failure is written down."""

    def __init__(self, prepared: Prepared, tally: Tally, log: RunLog) -> None:
        self._tally, self._failures, self._log = tally, prepared.failures, log
        self._run_id = prepared.recipe.run_id
        self._pack = partial(prepared.store.compact, order=[segment.key for segment in prepared.plan.segments])
        self._segments = {segment.key: segment for segment in tally.segments}
        self._held_back: list[Outcome] = []  # errors of the storage, until it is seen to work again
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="failures")
        self._writing: list[Future[None]] = []
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="packer")
        self._packing: Future[int] | None = None
        self._num_loose = 0

    def __enter__(self) -> Bookkeeper:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writers.shutdown(wait=True)
        self._packer.shutdown(wait=True)
        if exception[0] is None:
            for done in (*self._writing, self._packing):
                if done is not None:
                    done.result()

    def take(self, status: Mapping[str, Any]) -> None:
        """One status row. Raises StageError where going on would fail segments that nothing is wrong with."""
        if status["error_type"] == DROPPED:
            return
        self._tally.add(status)
        if not status["error"]:
            self._accept_storage_errors()
            self._pack_now_and_then()
            return
        outcome = self._outcome(status)
        if outcome.error_type != StorageError.__name__:
            self._write(outcome)
        elif status["failed_stage"] == "record":
            raise StageError(f"{outcome.error} The run stops; what was recorded is kept.")
        else:
            self._held_back.append(outcome)
            if len(self._held_back) >= STORAGE_ERRORS_IN_A_ROW:
                raise StageError(
                    f"{outcome.error} It was so for {len(self._held_back)} segments in a row. The run stops, and they "
                    "are left for the next one."
                )

    def _pack_now_and_then(self) -> None:
        """Beside the run, so that a folder never holds more loose records than one listing likes."""
        self._num_loose += 1
        if self._num_loose >= RECORDS_PER_PACKING and (self._packing is None or self._packing.done()):
            if self._packing is not None:
                self._packing.result()
            self._num_loose, self._packing = 0, self._packer.submit(self._pack)

    def finish(self) -> None:
        """The road is at its end. A few errors of the storage that were never followed by anything are failures."""
        self._accept_storage_errors()

    def _accept_storage_errors(self) -> None:
        for outcome in self._held_back:
            self._write(outcome)
        self._held_back = []

    def _outcome(self, status: Mapping[str, Any]) -> Outcome:
        segment: Segment = self._segments[status["key"]]
        death = status.get("death")
        return Outcome(
            key=segment.key,
            episode_index=segment.episode_index,
            positions=(segment.label_start, segment.label_stop),
            kind="quarantined" if death else "failed",
            error_type=status["error_type"],
            error=status["error"],
            attempts=int(status.get("attempts", 1)),
            signal=death.signal if death else "",
            exit_code=death.exit_code if death else None,
            last_words=death.last_words if death else "",
            run_id=self._run_id,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _write(self, outcome: Outcome) -> None:
        self._writing.append(self._writers.submit(self._failures.write, outcome))
        self._tally.add_outcome(outcome)
        about = {"key": outcome.key, "episode_index": outcome.episode_index, "error_type": outcome.error_type}
        if outcome.kind == "quarantined":
            self._log.segment_quarantined(**about, error=outcome.error, attempts=outcome.attempts)
        else:
            self._log.segment_failed(**about, error=outcome.error)

"""Which errors are a segment's own, which stop the run, and what is left on disk of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import bookkeeping
from pipeline.bookkeeping import STORAGE_ERRORS_IN_A_ROW, Bookkeeper
from pipeline.errors import StageError
from pipeline.outputs.failures import FailureStore
from pipeline.outputs.records import RecordStore
from pipeline.outputs.summary import Tally
from pipeline.plan import Plan, Segment
from pipeline.run_log import RunLog
from pipeline.stages.ward import Death


def segment(number: int) -> Segment:
    return Segment(
        key=f"{number:064x}",
        input_digest="content",
        episode_index=number,
        task="Push.",
        num_positions=9,
        window_starts=(0, 4),
        label_start=0,
        label_stop=8,
    )


SEGMENTS = tuple(segment(number) for number in range(20))


@dataclass(frozen=True)
class Recipe:
    run_id: str = "run"


@dataclass(frozen=True)
class Run:
    """As much of a prepared run as its books need, with real stores."""

    output_dir: Path
    recipe: Recipe = field(default_factory=Recipe)
    plan: Plan = field(default_factory=lambda: Plan(SEGMENTS, 0))

    @property
    def failures(self) -> FailureStore:
        return FailureStore(self.output_dir)

    @property
    def store(self) -> RecordStore:
        return RecordStore(self.output_dir)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def tally() -> Tally:
    return Tally(SEGMENTS)


def books(run: Run, tally: Tally) -> Bookkeeper:
    return Bookkeeper(run, tally, RunLog(run.output_dir, "run"))


def status(number: int, error_type: str = "", stage: str = "load", **more: object) -> dict:
    error = f"{error_type} of {number}" if error_type else ""
    told = {"error_type": error_type, "error": error, "failed_stage": stage if error else ""}
    return SEGMENTS[number].to_row() | {"load_s": 1.0, "infer_s": 1.0, "record_s": 1.0} | told | more


def test_a_segments_own_error_is_written_down_at_once(run, tally):
    with books(run, tally) as kept:
        kept.take(status(0))
        kept.take(status(1, "VideoError"))
    [outcome] = run.failures.read(run.failures.keys())
    assert (outcome.key, outcome.kind, outcome.error_type) == (SEGMENTS[1].key, "failed", "VideoError")
    assert (outcome.episode_index, outcome.positions, outcome.attempts, outcome.run_id) == (1, (0, 8), 1, "run")
    assert (tally.windows_done, tally.windows_lost) == (2, 2)


def test_a_death_is_a_quarantine(run, tally):
    death = Death("SIGSEGV", None, "Fatal Python error")
    with books(run, tally) as kept:
        kept.take(status(3, "ProcessDied", death=death, attempts=4))
    [outcome] = run.failures.read(run.failures.keys())
    assert (outcome.kind, outcome.signal, outcome.exit_code, outcome.attempts) == ("quarantined", "SIGSEGV", None, 4)
    assert outcome.last_words == "Fatal Python error"
    assert "quarantined" in (run.output_dir / "logs" / "run.log").read_text()


def test_what_was_dropped_is_neither_done_nor_failed(run, tally):
    with books(run, tally) as kept:
        kept.take(status(0, "Dropped"))
    assert (tally.windows_done, tally.outcomes, run.failures.keys()) == (0, {}, set())


def test_one_bad_spot_of_the_storage_costs_its_segment_alone(run, tally):
    with books(run, tally) as kept:
        kept.take(status(0, "StorageError"))
        assert tally.outcomes == {}, "not yet: perhaps the storage is down"
        kept.take(status(1))
        kept.finish()
    assert run.failures.keys() == {SEGMENTS[0].key}


def test_a_storage_that_is_down_stops_the_run_and_fails_nothing(run, tally):
    with books(run, tally) as kept:
        for number in range(STORAGE_ERRORS_IN_A_ROW - 1):
            kept.take(status(number, "StorageError"))
        with pytest.raises(StageError, match="left for the next"):
            kept.take(status(STORAGE_ERRORS_IN_A_ROW, "StorageError"))
    assert run.failures.keys() == set()
    assert tally.outcomes == {}


def test_a_record_that_cannot_be_written_stops_the_run_at_once(run, tally):
    with pytest.raises(StageError, match="StorageError of 0"), books(run, tally) as kept:
        kept.take(status(0, "StorageError", stage="record"))
    assert run.failures.keys() == set()


def test_a_few_storage_errors_at_the_very_end_are_failures(run, tally):
    with books(run, tally) as kept:
        kept.take(status(0, "StorageError"))
        kept.finish()
    assert run.failures.keys() == {SEGMENTS[0].key}


def test_records_are_packed_beside_the_run(run, tally, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(bookkeeping, "RECORDS_PER_PACKING", 5)
    monkeypatch.setattr(RecordStore.compact, "__defaults__", (1,))
    with books(run, tally) as kept:
        for number in range(12):
            run.store.write(SEGMENTS[number].key, pa.table({"x": [number]}))
            kept.take(status(number))
    listing = run.store.listing()
    assert listing.packs
    assert listing.keys() == {one.key for one in SEGMENTS[:12]}

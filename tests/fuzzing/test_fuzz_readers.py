"""Whatever is in a file, only typed errors come out of its reader: a short run of every target, always the same one.

`jobs/fuzz_readers.py` runs the same targets for longer.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import valid_inputs
from examination import ACCEPTED, Examiner, Tally
from reader_targets import TARGET_NAMES, make_target
from rounds import run_examples

from pipeline.errors import VideoError

NUM_EXAMPLES = 50


@pytest.fixture(scope="session")
def examiner(tmp_path_factory) -> Examiner:
    return Examiner(tmp_path_factory.mktemp("fuzzing"), valid_inputs.outside())


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_only_typed_errors_come_out(name, examiner):
    target = make_target(name)
    tally = Tally(name)
    run_examples(target, examiner, tally, num_examples=NUM_EXAMPLES, seed=None)
    told = [f"{kind} at {where}: {message}" for (kind, where), (message, _) in tally.bad.items()]
    assert not told, " and ".join(told)
    assert tally.tried >= NUM_EXAMPLES // 2
    assert set(tally.kinds) - {ACCEPTED}, "nothing was refused, so the inputs are too harmless"


# What follows shows that a bad ending is noticed at all.


def test_success_and_typed_errors_are_good_endings(examiner):
    def refuse(folder: Path) -> None:
        raise VideoError(f"not this one: {(folder / 'a.mp4').read_bytes()!r}")

    assert examiner.examine({"a.mp4": b"x"}, lambda folder: None).kind == ACCEPTED
    refused = examiner.examine({"a.mp4": b"x"}, refuse)
    assert (refused.kind, refused.is_bad) == ("VideoError", False)


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), SystemExit(2), BaseException("a panic of Rust's")])
def test_any_other_error_is_a_bad_ending(examiner, error):
    def fail(folder: Path) -> None:
        raise error

    outcome = examiner.examine({}, fail)
    assert (outcome.kind, outcome.is_bad) == (type(error).__name__, True)


def test_a_file_outside_the_folder_is_a_bad_ending_whoever_opens_it(examiner):
    """NumPy reads in C, where Python's own hooks see nothing."""
    outcome = examiner.examine({"a": b""}, lambda folder: np.fromfile(folder / "../outside/file-000.mp4", np.uint8))
    assert (outcome.kind, outcome.is_bad) == ("ReadOutside", True)
    assert "file-000.mp4" in outcome.message
    assert not examiner.examine({"a": b""}, lambda folder: np.fromfile(folder / "a", np.uint8)).is_bad


def test_much_memory_is_a_bad_ending_although_it_is_given_back(examiner, monkeypatch):
    monkeypatch.setattr("examination.MEMORY_LIMIT_MIB", 32)
    outcome = examiner.examine({}, lambda folder: np.ones(64 * 2**17).sum())
    assert (outcome.kind, outcome.is_bad) == ("TooMuchMemory", True)
    assert not examiner.examine({}, lambda folder: None).is_bad


def test_a_hang_is_a_bad_ending(examiner, monkeypatch):
    def forever(folder: Path) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr("examination.WALL_LIMIT_S", 0.05)
    outcome = examiner.examine({}, forever)
    assert (outcome.kind, outcome.is_bad) == ("TookTooLong", True)

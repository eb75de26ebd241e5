"""One row in, one row out: what a stage does with a failed row, and with a row that it fails on."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.stages.stage import DROPPED, SickProcess, Stage


class Double(Stage):
    """Turns `frames` into `action`."""

    name = "double"
    consumes = ("frames",)
    empty = MappingProxyType({"action": np.zeros(0)})

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_calls = 0

    def process(self, row):
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return {"action": 2 * row["frames"]}


def row(**changes) -> dict:
    return {
        **{"key": "k", "episode_index": 3, "frames": np.ones(2), "error_type": "", "error": "", "failed_stage": ""},
        **changes,
    }


def test_a_good_row_gains_the_payload_and_loses_what_ends_here():
    given = row()
    out = Double()(given)
    assert out["action"].tolist() == [2, 2]
    assert "frames" not in out
    assert (out["key"], out["episode_index"], out["error_type"], out["error"]) == ("k", 3, "", "")
    assert out["double_s"] > 0
    assert "action" not in given, "the caller's row stays as it was"
    assert given["frames"].tolist() == [1, 1]


def test_a_failed_row_passes_through_without_work_and_drops_its_payload():
    stage = Double()
    out = stage(row(error_type="VideoError", error="gone.mp4 is missing"))
    assert stage.num_calls == 0
    assert (out["error_type"], out["error"]) == ("VideoError", "gone.mp4 is missing")
    assert "frames" not in out
    assert out["action"].size == 0
    assert (out["key"], out["double_s"]) == ("k", 0.0)


def test_a_users_error_is_told_as_it_is():
    out = Double(VideoError("gone.mp4 is missing"))(row())
    assert (out["error_type"], out["error"]) == ("VideoError", "gone.mp4 is missing")
    assert out["action"].size == 0
    assert "frames" not in out


def test_an_error_of_ours_says_where_it_happened():
    out = Double(KeyError("nothing"))(row())
    assert out["error_type"] == "KeyError"
    assert "test_stage.py" in out["error"]
    assert "in process" in out["error"]


def test_an_error_without_words_is_a_failure_too():
    """A row counts as failed by its text: an empty one would pass for success."""
    for error in (AssertionError(), RuntimeError("")):
        out = Double(error)(row())
        assert out["error"], type(error)
        assert Double()(out | {"frames": np.ones(2)})["action"].size == 0


def test_a_users_error_without_words_is_a_failure_too():
    assert Double(VideoError())(row())["error"]


def test_all_rows_have_the_same_columns_and_types():
    """Ray Data joins rows of a stage into one table."""
    rows = [Double()(row()), Double(ValueError("x"))(row()), Double()(row(error="x", error_type="X"))]
    assert len({frozenset(out) for out in rows}) == 1
    assert len({tuple((name, type(out[name])) for name in sorted(out)) for out in rows}) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_being_stopped_is_no_failed_segment(error):
    with pytest.raises(error):
        Double(error())(row())


def test_a_failure_says_which_stage_it_met():
    assert Double(ValueError("x"))(row())["failed_stage"] == "double"
    assert Double()(row(error="x", error_type="X", failed_stage="load"))["failed_stage"] == "load"


def test_a_dropped_row_costs_no_work_and_looks_like_any_other():
    stage = Double()
    out = stage.drop(row())
    assert (stage.num_calls, out["error_type"]) == (0, DROPPED)
    assert frozenset(out) == frozenset(Double()(row()))
    failed = stage.drop(row(error_type="VideoError", error="gone"))
    assert failed["error_type"] == "VideoError", "a failure stays what it is"


def test_a_sick_process_is_no_failed_segment():
    with pytest.raises(SickProcess):
        Double(SickProcess("CUDA error"))(row())

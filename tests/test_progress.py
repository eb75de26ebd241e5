"""What a run says of how far it is: the rate of the last minute, and nothing nicer."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.progress import Progress, Rate, Standing
from pipeline.progress_file import WRITE_EVERY_S, ProgressFile, every, progress_path

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class Clock:
    """Says what it is told."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def utc(self) -> datetime:
        return NOON + timedelta(seconds=self.now_s)


def standing(**changes) -> Standing:
    fields = {
        "run_id": "abc",
        "phase": "running",
        "windows_total": 1200,
        "windows_done": 540,
        "windows_lost": 0,
        "segments_failed": 0,
        "segments_quarantined": 0,
        "windows_per_s": 3.0,
    }
    return Standing(**fields | changes)


def test_nothing_is_known_before_the_first_window():
    rate = Rate(started_s=100)
    assert rate.per_second(100) is None
    assert rate.per_second(4000) is None, "a model may take long to load: that is no rate of 0"


def test_a_rate_is_not_made_of_a_few_milliseconds():
    rate = Rate(started_s=100)
    rate.add(100.01, 50)
    assert rate.per_second(100.01) is None
    assert rate.per_second(102) == 25


def test_a_run_younger_than_a_minute_counts_from_its_start():
    rate = Rate(started_s=0)
    rate.add(10, 20)
    rate.add(20, 60)
    assert rate.per_second(20) == 3
    assert rate.per_second(30) == 2, "ten seconds in which nothing came"


def test_what_was_before_the_last_minute_is_forgotten():
    rate = Rate(started_s=0)
    for second in range(1, 601):
        rate.add(second, 10 * second)
    for second in range(601, 661):
        rate.add(second, 6000 + (second - 600))
    assert rate.per_second(660) == 1, "an average since the start would say 9"
    assert len(rate._readings) < 70, "a week's run keeps a minute"


def test_a_slow_start_does_not_weigh_on_what_follows():
    rate = Rate(started_s=0)
    rate.add(600, 60)
    assert rate.per_second(600) == 1


def test_at_a_standstill_the_rate_drops_to_zero():
    rate = Rate(started_s=0)
    rate.add(100, 30)
    assert rate.per_second(159.9) == 0.5
    assert rate.per_second(160) == 0
    assert rate.per_second(100000) == 0


@given(st.lists(st.tuples(st.floats(0.001, 200), st.integers(0, 1000)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_rate_is_what_came_in_the_last_minute(steps):
    """Held against the definition, summed up over all readings."""
    rate, at, done, readings = Rate(started_s=0), 0.0, 0, []
    for pause, windows in steps:
        at += pause
        done += windows
        rate.add(at, done)
        readings.append((at, windows))
    now = at + 2
    recent = sum(windows for when, windows in readings if when > now - 60)
    expected = recent / min(60, now) if done else None
    assert rate.per_second(now) == (None if expected is None else pytest.approx(expected))


def test_the_rest_takes_as_long_as_the_last_minute_says():
    assert standing().eta_s == 220
    assert standing(windows_lost=60).eta_s == 200, "nobody waits for the windows of a failed segment"
    assert standing(windows_per_s=0.0).eta_s is None
    assert standing(windows_per_s=None).eta_s is None
    assert standing(windows_done=1200, windows_per_s=None).eta_s == 0
    assert standing(windows_done=1100, windows_lost=100, windows_per_s=0.0).eta_s == 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, " 45% 540/1200 windows, 3/s, 4 min left"),
        ({"windows_per_s": 0.0}, " 45% 540/1200 windows, 0/s, time left unknown"),
        ({"windows_done": 0, "windows_per_s": None}, "  0% 0/1200 windows, no rate known yet"),
        ({"windows_done": 1199}, " 99% 1199/1200 windows, 3/s, 0 s left"),
        ({"windows_done": 1200}, "100% 1200/1200 windows, 3/s, 0 s left"),
        ({"phase": "stopping"}, " 45% 540/1200 windows, stopping"),
        ({"phase": "merging", "segments_failed": 2}, " 45% 540/1200 windows, merging, failed 2"),
        ({"phase": "ended", "segments_failed": 2}, " 45% 540/1200 windows, failed 2"),
        ({"phase": "ended", "windows_done": 1200}, "100% 1200/1200 windows"),
        ({"windows_total": 0, "windows_done": 0}, "100% 0/0 windows, 3/s, 0 s left"),
        ({"segments_failed": 2}, " 45% 540/1200 windows, 3/s, 4 min left, failed 2"),
        (
            {"segments_failed": 2, "segments_quarantined": 1, "windows_per_s": 0.0123},
            " 45% 540/1200 windows, 0.0123/s, 14 h 54 min left, failed 2, quarantined 1",
        ),
        (
            {"windows_total": 1_200_000, "windows_per_s": 1234.5, "windows_done": 200},
            "  0% 200/1200000 windows, 1234/s, 16 min left",
        ),
        ({"windows_total": 1_200_000, "windows_per_s": 2.0}, "  0% 540/1200000 windows, 2/s, 6 d 22 h left"),
    ],
)
def test_the_line(changes, line):
    assert standing(**changes).line() == line


COUNTS = st.integers(0, 9_999_999)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.none() | st.floats(0, 1e5))
@settings(max_examples=200, deadline=None)
def test_a_line_fits_a_hundred_columns(total, done, failed, quarantined, rate):
    shown = standing(
        windows_total=total,
        windows_done=min(done, total),
        segments_failed=failed,
        segments_quarantined=quarantined,
        windows_per_s=rate and max(rate, 0.01),
    )
    assert len(shown.line()) <= 100
    assert (shown.percent == 100) == (done >= total)


def test_json_has_the_agreed_fields():
    told = standing(segments_failed=2, segments_quarantined=1).to_json(NOON)
    assert told == {
        "run_id": "abc",
        "at": "2026-01-31T12:00:00+00:00",
        "windows_done": 540,
        "windows_total": 1200,
        "windows_per_s": 3.0,
        "eta_s": 220.0,
        "segments_failed": 2,
        "segments_quarantined": 1,
        "phase": "running",
    }


def test_progress_goes_from_starting_to_running_with_what_comes():
    progress = Progress("abc", 100, started_s=0)
    assert progress.standing(50).phase == "starting"
    progress.feed(60, 30, 1, 2, windows_lost=10)
    assert progress.standing(60) == standing(
        windows_total=100,
        windows_done=30,
        windows_lost=10,
        segments_failed=1,
        segments_quarantined=2,
        windows_per_s=0.5,
    )
    progress.enter("stopping")
    progress.feed(61, 40, 1, 2)
    assert progress.standing(61).phase == "stopping", "what still comes in does not start the run again"


def test_the_file_is_written_at_most_every_five_seconds_and_at_the_end(tmp_path):
    clock = Clock()
    file = ProgressFile(tmp_path, "abc", clock=clock, now=clock.utc)
    path = tmp_path / "progress" / "abc.json"
    assert path == progress_path(tmp_path, "abc")

    assert file.write(standing(windows_done=1))
    clock.now_s += WRITE_EVERY_S - 0.1
    assert not file.write(standing(windows_done=2))
    assert json.loads(path.read_text())["windows_done"] == 1
    clock.now_s += 0.1
    assert file.write(standing(windows_done=3))
    assert file.write(standing(windows_done=4, phase="ended"), last=True)
    told = json.loads(path.read_text())
    assert (told["windows_done"], told["phase"]) == (4, "ended")
    assert told["at"] == clock.utc().isoformat(timespec="seconds")
    assert [entry.name for entry in path.parent.iterdir()] == ["abc.json"], "no partial file stays"


def test_a_file_that_cannot_be_written_is_no_concern_of_the_run(tmp_path):
    (tmp_path / "progress").write_text("a file where a folder should be")
    clock = Clock()
    file = ProgressFile(tmp_path, "abc", clock=clock)
    assert not file.write(standing())
    assert "progress" in file.last_error
    (tmp_path / "progress").unlink()
    assert not file.write(standing()), "a disk in trouble is not asked more often either"
    assert file.write(standing(), last=True)
    assert file.last_error == ""


def test_the_file_follows_a_run_to_its_end_however_it_ends(tmp_path):
    progress = Progress("abc", 100, started_s=0)
    file = ProgressFile(tmp_path, "abc", clock=Clock(10))

    def stopped() -> None:
        with file.following(progress):
            progress.feed(5, 10, 0, 0)
            progress.enter("stopping")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    told = json.loads((tmp_path / "progress" / "abc.json").read_text())
    assert (told["windows_done"], told["phase"], told["windows_per_s"]) == (10, "stopping", 1.0)


def test_the_file_on_an_object_store(s3):
    folder = s3.url("runs/followed")
    file = ProgressFile(folder, "abc")
    assert file.write(standing()), file.last_error
    assert json.loads(progress_path(folder, "abc").read_bytes())["windows_done"] == 540


def test_something_is_done_every_so_often_until_the_block_ends():
    enough, calls = threading.Event(), []

    def action() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            enough.set()

    with every(0.005, action):
        assert enough.wait(10)
    num_calls = len(calls)
    assert threading.current_thread().name not in calls
    assert not [thread for thread in threading.enumerate() if thread.name in calls]
    assert len(calls) == num_calls


def test_at_once_means_before_the_first_period():
    called = threading.Event()
    with every(3600, called.set, at_once=True):
        assert called.wait(10)

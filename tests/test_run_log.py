"""The run's log: every event in the file, what matters on stderr, and no trouble of its own."""

from __future__ import annotations

import io
import json
import os
import re
from datetime import datetime

import pytest

from pipeline.printable import printable
from pipeline.progress import Standing
from pipeline.run_log import MAX_UPLOAD_BYTES, RunLog, _last_lines
from pipeline.storage import open_path

STANDING = Standing(
    run_id="abc",
    phase="running",
    windows_total=40,
    windows_done=10,
    windows_lost=0,
    segments_failed=1,
    segments_quarantined=0,
    windows_per_s=2.0,
)


class Bar:
    """Keeps what is shown above it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_above(self, line: str) -> None:
        self.lines.append(line)


def tell_everything(log: RunLog) -> None:
    log.run_started(job="label_inverse", output_dir="out", segments=5, windows=40, settings={"engine.seed": 0})
    log.lease_taken(holder="a@b, pid 3")
    log.progress(STANDING)
    log.segment_failed(key="k1", episode_index=3, error_type="VideoError", error="gone.mp4 is missing")
    log.segment_quarantined(key="k2", episode_index=4, error_type="SIGSEGV", error="last words: …", attempts=3)
    log.engine_restarted(reason="CUDA error: device lost")
    log.stopping(signal_name="SIGTERM", grace_s=30)
    log.run_ended(exit_code=3, wall_s=12.34567, segments={"planned": 5, "recorded": 3}, limit="infer was the limit.")


EVENTS = [
    *("run_started", "lease_taken", "progress", "segment_failed", "segment_quarantined", "engine_restarted"),
    *("stopping", "run_ended"),
]


def file_of(folder) -> str:
    return (folder / "logs" / "abc.log").read_text()


def test_json_lines_hold_every_event_with_its_fields(tmp_path):
    stream = io.StringIO()
    with RunLog(tmp_path, "abc", log_format="json", stream=stream) as log:
        tell_everything(log)
    assert stream.getvalue() == file_of(tmp_path)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in told] == EVENTS
    assert all(datetime.fromisoformat(line["at"]).tzinfo is not None for line in told)
    assert [line["level"] for line in told] == [
        *("info", "info", "info", "warning", "error", "warning", "warning", "error")
    ]
    by_event = {line.pop("event"): line for line in told}
    for line in by_event.values():
        del line["at"], line["level"]
    assert by_event["run_started"] == {
        "run_id": "abc",
        "job": "label_inverse",
        "output_dir": "out",
        "segments": 5,
        "windows": 40,
        "settings": {"engine.seed": 0},
    }
    assert by_event["progress"] == {
        "windows_done": 10,
        "windows_total": 40,
        "windows_per_s": 2.0,
        "eta_s": 15.0,
        "segments_failed": 1,
        "segments_quarantined": 0,
        "phase": "running",
    }
    assert by_event["segment_failed"] == {
        "key": "k1",
        "episode_index": 3,
        "error_type": "VideoError",
        "error": "gone.mp4 is missing",
    }
    assert by_event["segment_quarantined"]["attempts"] == 3
    assert by_event["stopping"] == {"signal": "SIGTERM", "grace_s": 30}
    assert by_event["run_ended"]["wall_s"] == 12.346


def test_text_is_a_line_an_event_in_the_file_and_warnings_on_stderr(tmp_path):
    stream = io.StringIO()
    with RunLog(tmp_path, "abc", stream=stream) as log:
        tell_everything(log)
    lines = file_of(tmp_path).splitlines()
    assert len(lines) == len(EVENTS)
    assert re.fullmatch(
        r"\S+ WARNING segment failed: key=k1 episode_index=3 error_type=VideoError error=gone\.mp4 is missing", lines[3]
    )
    assert stream.getvalue().splitlines() == lines[3:], "the bar or its lines tell what goes well"


def test_with_a_bar_segments_go_to_the_file_and_the_rest_above_it(tmp_path):
    stream, bar = io.StringIO(), Bar()
    with RunLog(tmp_path, "abc", bar=bar, stream=stream) as log:
        tell_everything(log)
    assert stream.getvalue() == ""
    assert [re.match(r"\S+ \w+ ([a-z ]+):", line)[1] for line in bar.lines] == [
        *("engine restarted", "stopping", "run ended")
    ]
    assert "segment quarantined: key=k2" in file_of(tmp_path)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_came_from_data_neither_moves_a_cursor_nor_makes_up_a_line(tmp_path, log_format):
    stream = io.StringIO()
    evil = "a\x1b[2J\x9b\x7f\u202e\u2028\r\n2026-01-31 INFO run ended: exit_code=0 " + os.fsdecode(b"\xff")
    with RunLog(tmp_path, "abc", log_format=log_format, stream=stream) as log:
        log.segment_failed(key="k", episode_index=0, error_type="VideoError", error=evil)
    (line,) = file_of(tmp_path).split("\n")[:-1]
    assert printable(line) == line
    assert stream.getvalue() == line + "\n"
    if log_format == "json":
        assert json.loads(line)["error"] == evil


def test_a_long_story_is_cut_in_the_middle(tmp_path):
    with RunLog(tmp_path, "abc", log_format="json", stream=io.StringIO()) as log:
        log.segment_failed(key="k", episode_index=0, error_type="E", error="begin" + 100_000 * "x" + "end")
    told = json.loads(file_of(tmp_path))["error"]
    assert len(told) < 5000
    assert told.startswith("begin")
    assert told.endswith("end")


def test_the_same_run_goes_on_in_the_same_file(tmp_path):
    for attempt in (1, 2):
        with RunLog(tmp_path, "abc", stream=io.StringIO()) as log:
            log.lease_taken(holder=f"attempt {attempt}")
    assert [line.rpartition(" ")[2] for line in file_of(tmp_path).splitlines()] == ["1", "2"]


def test_lines_are_in_the_file_before_the_run_ends(tmp_path):
    """Whatever kills the driver next."""
    log = RunLog(tmp_path, "abc", stream=io.StringIO())
    log.engine_restarted(reason="device lost")
    assert "device lost" in file_of(tmp_path)
    log.close()


def test_a_full_disk_and_a_closed_terminal_are_no_concern_of_the_run(tmp_path):
    (tmp_path / "logs").symlink_to("/proc/self/nowhere")
    stream = io.StringIO()
    with RunLog(tmp_path, "abc", stream=stream) as log:
        log.engine_restarted(reason="device lost")
        assert "device lost" in stream.getvalue()
        stream.close()
        log.engine_restarted(reason="device lost")
        assert log.last_error
    assert not (tmp_path / "logs").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_disk_that_fills_up_is_no_concern_of_the_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "abc.log").symlink_to("/dev/full")
    with RunLog(tmp_path, "abc", stream=io.StringIO()) as log:
        tell_everything(log)
        assert "No space left" in log.last_error


def test_an_object_store_gets_the_log_when_the_run_ends_after_what_was_there(s3):
    folder = s3.url("runs/logged")
    for attempt in (1, 2):
        with RunLog(folder, "abc", log_format="json", stream=io.StringIO()) as log:
            log.lease_taken(holder=f"attempt {attempt}")
        assert log.last_error == ""
    told = [json.loads(line) for line in (open_path(folder) / "logs" / "abc.log").read_bytes().splitlines()]
    assert [line["holder"] for line in told] == ["attempt 1", "attempt 2"]


def test_a_run_that_logged_nothing_uploads_nothing(s3):
    folder = s3.url("runs/silent")
    with RunLog(folder, "abc", stream=io.StringIO()):
        pass
    assert not (open_path(folder) / "logs" / "abc.log").exists()


def test_of_too_much_the_newest_whole_lines_stay():
    assert _last_lines(b"one\ntwo\nthree\n", 100) == b"one\ntwo\nthree\n"
    assert _last_lines(b"one\ntwo\nthree\n", 10) == b"three\n"
    assert MAX_UPLOAD_BYTES >= 1024**2

"""What a terminal gets to see: a real pseudo-terminal for the bar, a pipe for plain lines, nothing for a cursor."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import LabelConfig
from pipeline.errors import DatasetError
from pipeline.printable import printable, printable_lines
from pipeline.progress import Progress
from pipeline.stopping import EXIT_STOPPED, Stopped
from pipeline.terminal import LINE_EVERY_S, ProgressBar, run_job


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Run:
    """A run of 40 windows, and how it feeds a bar."""

    bar: ProgressBar
    clock: Clock
    progress: Progress
    windows: int = 0
    lost: int = 0

    def after(self, seconds: float, windows: int = 0, lost: int = 0) -> None:
        """So many windows are done `seconds` later; or one segment failed, whose windows are lost."""
        self.clock.now_s += seconds
        self.windows += windows
        self.lost += lost
        self.progress.feed(self.clock.now_s, self.windows, 1 if self.lost else 0, 0, windows_lost=self.lost)
        self.bar(self.progress)


def run_on(stream, num_windows: int = 40, **settings) -> Run:
    clock = Clock()
    bar = ProgressBar("labelling", stream=stream, clock=clock, **settings)
    run = Run(bar, clock, Progress("abc", num_windows, started_s=0))
    run.bar(run.progress)
    return run


@pytest.fixture
def terminal():
    """A terminal of 100 columns; `read` gives what has been written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    stream = os.fdopen(theirs, "w", buffering=1)
    chunks: list[bytes] = []

    def keep_reading() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return
            chunks.append(chunk)

    reader = threading.Thread(target=keep_reading)
    reader.start()

    def read() -> str:
        """Everything that was written, when the writer is through."""
        stream.close()
        reader.join()
        return b"".join(chunks).decode()

    yield stream, read
    if not stream.closed:
        stream.close()
    reader.join()
    os.close(ours)


def test_a_terminal_gets_a_bar_with_the_honest_rate(terminal):
    stream, read = terminal
    run = run_on(stream)
    with run.bar:
        assert run.bar.bar is run.bar
        run.after(10, windows=10)
        run.after(10, lost=20)
        run.after(0.05, windows=1)
        run.after(100)
        run.after(1, windows=9)
    shown = read()
    draws = [draw.strip() for draw in re.split(r"[\r\n]+", shown) if draw.strip()]
    assert any("10/40 windows, 1/s, 30 s left" in draw for draw in draws)
    assert any("10/40 windows, 0.5/s, 20 s left, failed 1" in draw for draw in draws), "lost windows are not waited for"
    assert not any("11/40 windows, 0.5" in draw for draw in draws), "not drawn more often than ten times a second"
    assert any("11/40 windows, 0/s, time left unknown, failed 1" in draw for draw in draws)
    assert draws[-1].startswith("labelling  50%|")
    assert "20/40 windows" in draws[-1]
    assert all(len(draw) <= 100 for draw in draws)
    assert shown.endswith("\n")


def test_a_bar_shows_a_standstill_without_being_called(terminal):
    """Nothing comes, so nobody calls: the bar asks by itself."""
    stream, read = terminal
    run = run_on(stream)
    run.after(10, windows=10)
    with run.bar:
        run.clock.now_s += 100
        run.bar.refresh()
    assert "10/40 windows, 0/s, time left unknown" in read()


def test_lines_above_a_bar_leave_it_whole(terminal):
    stream, read = terminal
    run = run_on(stream)
    with run.bar:
        run.after(10, windows=10)
        run.bar.write_above("WARNING stopping: signal=SIGTERM")
        run.after(10, windows=10)
    lines = read().replace("\r\n", "\n").split("\n")
    assert any(line.rpartition("\r")[2] == "WARNING stopping: signal=SIGTERM" for line in lines)
    assert "20/40 windows" in lines[-2].rpartition("\r")[2]


def test_a_terminal_that_was_closed_does_not_stop_the_run():
    ours, theirs = pty.openpty()
    run = run_on(os.fdopen(theirs, "w", buffering=1))
    with run.bar:
        run.after(10, windows=10)
        os.close(ours)
        run.after(10, windows=10)
        run.bar.write_above("nobody reads this")
        run.after(10, windows=10)
    assert run.progress.standing(30).windows_done == 30


def test_a_pipe_gets_a_line_every_half_minute_and_one_at_the_end():
    stream = io.StringIO()
    run = run_on(stream)
    with run.bar:
        assert run.bar.bar is None
        run.after(LINE_EVERY_S - 1, windows=5)
        assert stream.getvalue() == ""
        run.after(1, windows=10)
        run.after(1, windows=10, lost=10)
        run.clock.now_s += LINE_EVERY_S
        run.bar.refresh()
    assert stream.getvalue().splitlines() == [
        "labelling  37% 15/40 windows, 0.5/s, 50 s left",
        "labelling  62% 25/40 windows, 0.417/s, 12 s left, failed 1",
        "labelling  62% 25/40 windows, 0.417/s, 12 s left, failed 1",
    ]


def test_the_end_of_a_whole_run_can_be_found_in_a_log():
    stream = io.StringIO()
    run = run_on(stream)
    with run.bar:
        run.after(20, windows=40)
    assert stream.getvalue() == "labelling 100% 40/40 windows, 2/s, 0 s left\n"


def test_the_last_line_comes_although_the_run_was_interrupted():
    stream = io.StringIO()
    run = run_on(stream)

    def interrupted() -> None:
        with run.bar:
            run.after(20, windows=20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue() == "labelling  50% 20/40 windows, 1/s, 20 s left\n"


def test_when_it_has_ended_it_says_how_far_it_came_and_no_speed():
    stream = io.StringIO()
    run = run_on(stream)
    with run.bar:
        run.after(20, windows=20, lost=20)
        run.progress.enter("ended")
    assert stream.getvalue() == "labelling  50% 20/40 windows, failed 1\n"


def test_nothing_is_shown_where_nothing_is_to_be_done_or_nobody_wants_it():
    stream = io.StringIO()
    with run_on(stream, num_windows=0).bar:
        pass
    with ProgressBar("labelling", stream=stream):
        pass  # refused before it began: another run holds the folder
    quiet = run_on(stream, is_quiet=True)
    with quiet.bar:
        quiet.after(100, windows=40)
    assert stream.getvalue() == ""


def test_a_terminal_stays_empty_where_nobody_wants_a_bar(terminal):
    stream, read = terminal
    quiet = run_on(stream, is_quiet=True)
    assert quiet.bar.bar is None
    with quiet.bar:
        quiet.after(100, windows=40)
    assert read() == ""


def test_a_real_pipe_gets_no_carriage_returns():
    ours, theirs = os.pipe()
    run = run_on(os.fdopen(theirs, "w"))
    with run.bar:
        run.after(40, windows=10)
        run.after(40, windows=30)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"\r" not in shown
    assert shown.count(b"\n") == 3
    assert re.search(r"100%.* \d+/\d+", shown.decode())


def test_a_typed_error_is_told_without_escapes(monkeypatch, capsys):
    """A folder's name is data: a dataset may come in an archive of somebody else's."""

    def job(config: LabelConfig, is_demo: bool) -> int:
        raise DatasetError(f"{config.dataset.root} is no dataset.\nChoose another.")

    flags = ("--dataset.root", "\x1b[2J\x07", "--engine.checkpoint", "nowhere", "--action_normalization", "none")
    monkeypatch.setattr(sys, "argv", ["job", *flags])
    assert run_job(LabelConfig, job) == 2
    assert capsys.readouterr().err == "DatasetError: \\x1b[2J\\x07 is no dataset.\nChoose another.\n"


@pytest.mark.parametrize("stopped", [Stopped("SIGTERM"), KeyboardInterrupt()])
def test_a_run_that_is_stopped_early_says_so_without_a_traceback(monkeypatch, capsys, stopped):
    def job(config: LabelConfig, is_demo: bool) -> int:
        raise stopped

    flags = ("--dataset.root", "x", "--engine.checkpoint", "nowhere", "--action_normalization", "none")
    monkeypatch.setattr(sys, "argv", ["job", *flags])
    assert run_job(LabelConfig, job) == EXIT_STOPPED
    assert capsys.readouterr().err == "Stopped before anything was in hand. The same command goes on from here.\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("episode_3.mp4", "episode_3.mp4"),
        ("pick up the 茶碗 – «ça va»", "pick up the 茶碗 – «ça va»"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\rb\nc\td\x00", "a\\rb\\nc\\td\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f", "\\x7f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("a\u2028b", "a\\u2028b"),
        (os.fsdecode(b"\xff.mp4"), "\\udcff.mp4"),
        (Path("a b"), "a b"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_no_text_can_move_a_cursor(text):
    shown = printable(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]", shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_our_own_line_ends_stay():
    assert printable_lines("plan  1\nfile \x1b[2J\r\n") == "plan  1\nfile \\x1b[2J\\r\n"

"""One signal ends a run in order, a second one at once: real signals to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from pipeline.stopping import EXIT_STOPPED, Stopped, stop_on_signals

PROGRAM = """
import sys, time
from pipeline.stopping import EXIT_STOPPED, Stopped, stop_on_signals
try:
    with stop_on_signals(float(sys.argv[1])) as stop:
        if sys.argv[2] == "draining":
            with stop.draining():
                print("listening", flush=True)
                while not stop.is_requested:
                    time.sleep(0.01)
                print("noted", stop.signal, flush=True)
                while not stop.is_overdue:
                    time.sleep(0.01)
        else:
            print("listening", flush=True)
            time.sleep(60)
except Stopped as stopped:
    print("stopped by", stopped, flush=True)
sys.exit(EXIT_STOPPED)
"""


def started(grace_s: float, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(grace_s), mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_noted_and_the_grace_period_is_used(number):
    process = started(0.8, "draining")
    sent_s = time.monotonic()
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (EXIT_STOPPED, f"noted {number.name}\n", "")
    assert time.monotonic() - sent_s >= 0.8


def test_a_second_signal_ends_at_once():
    process = started(60, "draining")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "noted SIGTERM\n"
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_an_echo_of_the_first_signal_is_no_second_one():
    process = started(0.8, "draining")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(timeout=20) == EXIT_STOPPED


def test_where_nothing_is_in_hand_it_is_an_exception_of_its_own():
    process = started(60, "idle")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (EXIT_STOPPED, "stopped by SIGINT\n", "")
    assert not issubclass(Stopped, Exception), "nothing may mistake it for an error"


def test_signals_are_as_they_were_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signals(1):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_request_leaves_no_grace():
    with stop_on_signals(60) as stop:
        assert not stop.is_requested
        stop.request("the lease was lost")
        assert (stop.signal, stop.is_overdue) == ("the lease was lost", True)

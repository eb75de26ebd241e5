"""Being stopped by SIGTERM or Ctrl-C: once to end in order, twice to end at once. Imports `errors` alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

# A run that was stopped is neither complete nor wrong: the same command goes on.
EXIT_STOPPED = 3
# One Ctrl-C, or one order of a batch system, may arrive twice: from the terminal or the node, and through a parent.
_ECHO_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal came while nothing was in hand that would be worth finishing. Nobody may mistake it for an error."""


class Stop:
    """Whether this run is to stop, and how long what is in hand may still take."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.signal = ""  # the name of the one that came, or another reason
        self._deadline_s = float("inf")
        self._heard_s = float("-inf")
        self._is_draining = False

    @property
    def is_requested(self) -> bool:
        return bool(self.signal)

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() > self._deadline_s

    @contextlib.contextmanager
    def draining(self) -> Iterator[None]:
        """In here the first signal is only noted, for whoever asks; outside it raises Stopped."""
        self._is_draining = True
        try:
            yield
        finally:
            self._is_draining = False

    def request(self, reason: str) -> None:
        """As a signal would, from any thread; nothing that is in hand may be finished."""
        self.signal = self.signal or reason
        self._deadline_s = time.monotonic()

    def listen(self) -> None:
        """Takes both signals; to be called again by whoever used a library that takes them for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s - self._heard_s < _ECHO_S:
            return
        self._heard_s = now_s
        if self.is_requested:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
        self._deadline_s = time.monotonic() + self.grace_s
        if not self._is_draining:
            raise Stopped(self.signal)


@contextlib.contextmanager
def stop_on_signals(grace_s: float) -> Iterator[Stop]:
    """Listens until the end of the block, and then leaves the signals as they were."""
    stop = Stop(grace_s)
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    stop.listen()
    try:
        yield stop
    finally:
        if is_main:
            for number, handler in before.items():
                signal.signal(number, handler)

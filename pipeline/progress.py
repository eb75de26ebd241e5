"""How far a run is, honestly: what came in the last minute, and how long the rest takes at that rate.

Owns the arithmetic and its words, for a terminal, a log and `progress/<run_id>.json`. Knows neither clocks nor files:
whoever asks says what time it is.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Phase = Literal["starting", "running", "stopping", "merging", "ended"]
RATE_WINDOW_S = 60.0
# Before this nothing can be said: the first windows of a resumed run would make it look a hundred times faster.
_LEAST_KNOWN_S = 1.0


class Rate:
    """Windows per second over the last minute, or since the start where that is shorter.

    Not an average since the start: a run that came to a standstill says so, and a resumed one does not remember its
    slow beginning. Times are seconds of any clock that never goes back.
    """

    def __init__(self, started_s: float, window_s: float = RATE_WINDOW_S) -> None:
        self._started_s = started_s
        self._window_s = window_s
        self._done = 0
        # (time, done) in order. The first may lie before the window: what was done when the window began.
        self._readings: deque[tuple[float, int]] = deque([(started_s, 0)])

    def add(self, at_s: float, done: int) -> None:
        """`done` is counted from the start of the run."""
        if done != self._done:
            self._done = done
            self._readings.append((at_s, done))
        self._forget(at_s)

    def per_second(self, now_s: float) -> float | None:
        """None as long as nothing has come at all; 0 when nothing came for a minute."""
        known_s = min(self._window_s, now_s - self._started_s)
        if not self._done or known_s < _LEAST_KNOWN_S:
            return None
        self._forget(now_s)
        return (self._done - self._readings[0][1]) / known_s

    def _forget(self, now_s: float) -> None:
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - self._window_s:
            self._readings.popleft()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run is at one moment. Windows are those this run set out to do."""

    run_id: str
    phase: Phase
    windows_total: int
    windows_done: int
    windows_lost: int  # of segments that failed or were quarantined: nobody waits for them
    segments_failed: int
    segments_quarantined: int
    windows_per_s: float | None  # over the last minute; None: nothing is known yet

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest takes at the rate of the last minute; None where that rate is 0 or not known."""
        left = max(0, self.windows_total - self.windows_done - self.windows_lost)
        if not left:
            return 0.0
        return left / self.windows_per_s if self.windows_per_s else None

    @property
    def percent(self) -> int:
        """Of windows that are done, rounded down: 100 means all of them."""
        return 100 * self.windows_done // self.windows_total if self.windows_total else 100

    def line(self) -> str:
        """`45% 540/1200 windows, 3.21/s, 3 min left, failed 2`: at most 100 columns."""
        return ", ".join([f"{self.percent:3d}% {self.windows_done}/{self.windows_total} windows", *self._pace()])

    def pace(self) -> str:
        """What a bar does not draw: rate, remaining time, and what failed."""
        return ", ".join(self._pace())

    def _pace(self) -> list[str]:
        counts = {"failed": self.segments_failed, "quarantined": self.segments_quarantined}
        return [*self._speed(), *(f"{name} {count}" for name, count in counts.items() if count)]

    def _speed(self) -> list[str]:
        """No window is on its way any more while results are merged, and nobody knows how many still are in a stop."""
        if self.phase in ("merging", "ended"):
            return ["merging"] if self.phase == "merging" else []
        if self.phase == "stopping":
            return ["stopping"]
        if self.windows_per_s is None:
            return ["no rate known yet"]
        left = "time left unknown" if self.eta_s is None else f"{duration(self.eta_s)} left"
        return [f"{_number(self.windows_per_s)}/s", left]

    def to_json(self, at: datetime) -> dict[str, Any]:
        """`at` (with a time zone) is the time of the reader's clock; `eta_s` is null where it is unknown."""
        return {
            "run_id": self.run_id,
            "at": at.isoformat(timespec="seconds"),
            "windows_done": self.windows_done,
            "windows_total": self.windows_total,
            "windows_per_s": self.windows_per_s,
            "eta_s": self.eta_s,
            "segments_failed": self.segments_failed,
            "segments_quarantined": self.segments_quarantined,
            "phase": self.phase,
        }


class Progress:
    """Fed by whoever counts, asked by whoever shows: a bar, a log and a file may ask from threads of their own."""

    def __init__(self, run_id: str, windows_total: int, *, started_s: float) -> None:
        self._run_id = run_id
        self._windows_total = windows_total
        self._rate = Rate(started_s)
        self._counts = {"windows_done": 0, "windows_lost": 0, "segments_failed": 0, "segments_quarantined": 0}
        self._phase: Phase = "starting"
        self._lock = threading.RLock()  # a signal's handler may enter a phase while its own thread is feeding

    def feed(
        self, at_s: float, windows_done: int, segments_failed: int, segments_quarantined: int, *, windows_lost: int = 0
    ) -> None:
        """All counts are from the start of this run. `windows_lost` belong to the failed and quarantined segments."""
        with self._lock:
            self._rate.add(at_s, windows_done)
            self._counts = {
                "windows_done": windows_done,
                "windows_lost": windows_lost,
                "segments_failed": segments_failed,
                "segments_quarantined": segments_quarantined,
            }
            if self._phase == "starting":
                self._phase = "running"

    def enter(self, phase: Phase) -> None:
        with self._lock:
            self._phase = phase

    def standing(self, now_s: float) -> Standing:
        with self._lock:
            return Standing(
                run_id=self._run_id,
                phase=self._phase,
                windows_total=self._windows_total,
                windows_per_s=self._rate.per_second(now_s),
                **self._counts,
            )


def _number(rate: float) -> str:
    """Three digits, without an exponent for whatever a run can reach."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h 18 min` or `2 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

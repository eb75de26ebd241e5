"""Who works on what: the one place where a run's processes meet, so that a death tells what was in whose hands.

A plain object; `on_ray` makes an actor of it. Stages sign in before they touch a segment and out when they are done
with it. It also carries the word that the run is to stop, which reaches every process with its next sign-in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Attendance:
    """What a register knows at one moment."""

    in_hand: dict[str, int]  # stage → segments that it works on
    births: dict[str, int]  # stage → processes that were ready to work, those that died since included
    num_done: int  # segments that left the last stage
    busy_s: float  # of all engines' steps
    actors: dict[str, int]  # stage → processes that it was given

    @property
    def is_idle(self) -> bool:
        return not any(self.in_hand.values())


class Register:
    """Counts sign-ins and sign-outs. Not for threads: an actor's calls come one after another.

    A worker's name outlives its process: who is born under a name that was known before follows one that died.
    """

    def __init__(self, actors: dict[str, int]) -> None:
        """`actors` in the order of the road."""
        self._actors = actors
        self._last_stage = list(actors)[-1]
        self._in_hand: dict[str, dict[str, str]] = defaultdict(dict)  # stage → key → worker
        self._deaths: Counter[str] = Counter()  # key → how often somebody died who had it in hand
        self._births: Counter[str] = Counter()
        self._num_done = 0
        self._busy_s: dict[tuple[str, int], float] = {}  # (worker, process id) → seconds
        self._is_stopping = False

    def born(self, stage: str, worker: str) -> None:
        """A process has built its stage and is ready."""
        self._births[stage] += 1
        self._bury(stage, [key for key, whose in self._in_hand[stage].items() if whose == worker])

    def begin(self, stage: str, worker: str, key: str) -> bool:
        """Whether the segment may be worked on: not once the run is to stop, unless only its record is missing."""
        if self._is_stopping and stage != self._last_stage:
            return False
        if key in self._in_hand[stage]:
            self._bury(stage, [key])
        self._in_hand[stage][key] = worker
        return True

    def end(self, stage: str, key: str) -> None:
        """The stage is done with the segment, well or ill."""
        self._in_hand[stage].pop(key, None)
        if stage == self._last_stage:
            self._num_done += 1
            self._deaths.pop(key, None)

    def busy(self, worker: str, process_id: int, seconds: float) -> None:
        """What an engine's steps took so far, since its process began."""
        self._busy_s[worker, process_id] = seconds

    def stop(self) -> None:
        self._is_stopping = True

    def deaths(self, key: str) -> int:
        """How many processes died with this segment in hand."""
        return self._deaths[key] + any(key in keys for keys in self._in_hand.values())

    def attendance(self) -> Attendance:
        in_hand = {stage: len(keys) for stage, keys in self._in_hand.items()}
        return Attendance(in_hand, dict(self._births), self._num_done, sum(self._busy_s.values()), self._actors)

    def _bury(self, stage: str, keys: list[str]) -> None:
        for key in keys:
            del self._in_hand[stage][key]
            self._deaths[key] += 1

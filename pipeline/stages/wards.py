"""The wards as actors: how many there are, who is free, and what becomes of one that is lost."""

from __future__ import annotations

from typing import Any

import ray
import ray.exceptions

from pipeline.errors import StageError
from pipeline.plan import Segment
from pipeline.stages.stage import Road, Row
from pipeline.stages.ward import Death, Ward

_MOST_LOST_ON_THE_WAY = 3


class Wards:
    """Up to `count` wards, each with what an engine takes. One that finds no room is not waited for.

    After a node was lost there may be room for fewer than before: whoever is there does all the work.
    """

    def __init__(self, road: Road, count: int, **options: Any) -> None:
        self._road = road
        self._actor = ray.remote(Ward).options(**options)
        self._free: list[ray.actor.ActorHandle] = []
        self._coming: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
        self._at_work: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, Segment]] = {}
        self._num_lost_on_the_way = 0
        for _ in range(count):
            self._admit()

    @property
    def have_room(self) -> bool:
        return bool(self._free)

    @property
    def are_at_work(self) -> bool:
        return bool(self._at_work)

    def treat(self, segment: Segment) -> None:
        """Gives the segment to a ward that is free."""
        ward = self._free.pop()
        self._at_work[ward.treat.remote(segment.to_row())] = (ward, segment)

    def answers(self, timeout_s: float) -> list[tuple[Segment, Row | Death | ray.exceptions.RayError]]:
        """What came meanwhile; a RayError where a ward was lost with its segment, and is replaced.

        Raises a ward's own StageError, and one where no ward comes to life.
        """
        done, _ = ray.wait([*self._at_work, *self._coming], timeout=timeout_s)
        answers = []
        for ref in done:
            if ref in self._coming:
                self._welcome(ref)
                continue
            ward, segment = self._at_work.pop(ref)
            try:
                answers.append((segment, ray.get(ref)))
                self._free.append(ward)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError as error:
                answers.append((segment, error))
                self._admit()
        return answers

    def _admit(self) -> None:
        ward = self._actor.remote(self._road)
        self._coming[ward.is_there.remote()] = ward

    def _welcome(self, ref: ray.ObjectRef) -> None:
        ward = self._coming.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            self._num_lost_on_the_way += 1
            if self._num_lost_on_the_way > _MOST_LOST_ON_THE_WAY:
                raise StageError(
                    f"Processes for segments that run alone die before they have any: {error} What was recorded is "
                    "kept; mend this and run the same command again."
                ) from error
            self._admit()
        else:
            self._free.append(ward)

"""What surrounds a stage on Ray: it signs in and out at the register, tells Prometheus, and dies when it is sick."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import ray
import ray.exceptions

from pipeline.stages.alone import EXIT_SICK
from pipeline.stages.metrics import GAUGE_EVERY_S, StageMetrics
from pipeline.stages.stage import Pulse, Row, SickProcess, Stage


class _Watched:
    """One stage in one process, for Ray Data to call. Its threads share it."""

    def __init__(
        self,
        stage: type[Stage],
        arguments: tuple[Any, ...],
        register: ray.actor.ActorHandle,
        run_id: str,
        job_name: str,
    ) -> None:
        self._stage = stage(*arguments)
        self._register = register
        self._worker = ray.get_runtime_context().get_actor_id()
        self._metrics = StageMetrics(self._stage.name, run_id, job_name=job_name)
        self._gauges = _Gauges(self._metrics)
        register.born.remote(self._stage.name, self._worker)

    def __call__(self, row: Row) -> Row:
        name, key = self._stage.name, row["key"]
        if not self._may_begin(name, key):
            return self._stage.drop(row)
        try:
            done = self._stage(row)
        except SickProcess as error:
            # The register still has this segment, and its mates', in hand: they are tried again elsewhere.
            print(f"{name}: this process is sick and ends: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_SICK)
        if (pulse := self._stage.pulse()) is not None:
            self._register.busy.remote(self._worker, os.getpid(), pulse.busy_s)
            self._gauges.tell(pulse)
        self._register.end.remote(name, key)
        if not row["error"]:
            self._metrics.observe(done[f"{name}_s"], len(row["window_starts"]), done["error_type"])
        return done

    def _may_begin(self, name: str, key: str) -> bool:
        # Without a register nobody is left to stop for.
        with contextlib.suppress(ray.exceptions.RayActorError):
            return ray.get(self._register.begin.remote(name, self._worker, key))
        return True


class _Gauges:
    """Tells now and then how busy the engine of this process is."""

    def __init__(self, metrics: StageMetrics) -> None:
        self._metrics = metrics
        self._told_s, self._busy_s = time.monotonic(), 0.0

    def tell(self, pulse: Pulse) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < GAUGE_EVERY_S:
            return
        self._metrics.busy(min(1.0, (pulse.busy_s - self._busy_s) / (now_s - self._told_s)))
        self._metrics.queue(pulse.num_waiting)
        self._metrics.batch(pulse.batch_size)
        self._told_s, self._busy_s = now_s, pulse.busy_s


def watched(stage: type[Stage]) -> type[_Watched]:
    """The class that Ray Data builds in its actors. It carries the stage's name, which process lists show."""
    return type(stage.__name__, (_Watched,), {})

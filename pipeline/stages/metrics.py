"""What the stages tell Prometheus, through the exporter that every Ray node has.

Owns the metrics' names and labels; `docker/grafana/labelling_dashboard.json` draws them. A label is a stage, a run, a
job, an outcome or the name of an error class, never a key or a path, so that there are few series. Ray adds the node
and the process (`WorkerId`) to each and puts `ray_` before the names.

Two habits of Ray's exporter shape this file. A histogram's sum is rebuilt from the middles of its buckets, so seconds
are counted a second time, exactly, in `labelling_busy_seconds_total`. And a gauge vanishes within half a minute when
its process has died, but a counter stays: whatever is summed over processes is a counter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# What arrives at the last stage without an error has its record when that stage is done.
LAST_STAGE = "record"
GAUGE_EVERY_S = 10.0  # more often is not worth it: Ray exports as often
MAX_ERROR_TYPES = 40  # of one process; what comes after them is counted as OTHER
OTHER = "Other"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class MetricSpec:
    """One metric. `labels` come beside `run_id`, which all have."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    description: str


# Not `job`: Prometheus gives every series a label of that name, and would rename ours.
WINDOWS = MetricSpec("labelling_windows_total", "counter", ("job_name",), "Windows whose record is written.")
SEGMENTS = MetricSpec("labelling_segments_total", "counter", ("outcome",), "Segments recorded, failed, quarantined.")
FAILURES = MetricSpec("labelling_failures_total", "counter", ("error_type",), "Segments lost, by class of error.")
BUSY_SECONDS = MetricSpec("labelling_busy_seconds_total", "counter", ("stage",), "Seconds a stage worked, exactly.")
STAGE_SECONDS = MetricSpec("labelling_stage_seconds", "histogram", ("stage",), "Seconds a stage took for a segment.")
QUEUE_DEPTH = MetricSpec("labelling_queue_depth", "gauge", ("stage",), "What waits in this process for the stage.")
BUSY_SHARE = MetricSpec("labelling_engine_busy_share", "gauge", ("stage",), "Share of time in the engine's step.")
BATCH_SIZE = MetricSpec("labelling_batch_size", "gauge", ("stage",), "Windows that an engine takes in one step.")
METRICS = (WINDOWS, SEGMENTS, FAILURES, BUSY_SECONDS, STAGE_SECONDS, QUEUE_DEPTH, BUSY_SHARE, BATCH_SIZE)


class StageMetrics:
    """What one process tells about one stage. Made in the process that uses it; it must not travel.

    Telling costs microseconds and never raises: without a running Ray, or without its metrics agent, it goes nowhere.
    """

    def __init__(self, stage: str, run_id: str, *, job_name: str = "") -> None:
        # Only now: settings that Ray reads when it is imported are made in `on_ray`, which need not be loaded before.
        from ray.util.metrics import Counter, Gauge, Histogram

        self._stage = stage
        self._error_types: set[str] = set()

        def labelled(metric: Counter | Gauge | Histogram, spec: MetricSpec):
            known = {"run_id": run_id, "stage": stage, "job_name": job_name}
            return metric.set_default_tags({name: known[name] for name in ("run_id", *spec.labels) if name in known})

        def counter(spec: MetricSpec) -> Counter:
            return labelled(Counter(spec.name, spec.description, ("run_id", *spec.labels)), spec)

        def gauge(spec: MetricSpec) -> Gauge:
            return labelled(Gauge(spec.name, spec.description, ("run_id", *spec.labels)), spec)

        self._windows, self._segments, self._failures = counter(WINDOWS), counter(SEGMENTS), counter(FAILURES)
        self._busy_seconds = counter(BUSY_SECONDS)
        self._seconds = labelled(
            Histogram(STAGE_SECONDS.name, STAGE_SECONDS.description, list(_SECONDS), ("run_id", "stage")),
            STAGE_SECONDS,
        )
        self._queue_depth, self._busy_share, self._batch_size = gauge(QUEUE_DEPTH), gauge(BUSY_SHARE), gauge(BATCH_SIZE)

    def observe(self, seconds: float, windows: int, error_type: str = "") -> None:
        """One segment that this stage worked on: for so long, so many windows, and the class of error it raised.

        Not for a segment that had failed before and only passes through, or it would be counted as often as stages
        follow. A segment whose process died while it was recorded is counted again when it is tried again.
        """
        self._seconds.observe(float(seconds))
        if seconds > 0:
            self._busy_seconds.inc(float(seconds))
        if error_type:
            self._lost("failed", error_type)
        elif self._stage == LAST_STAGE:
            self._segments.inc(tags={"outcome": "recorded"})
            if windows > 0:
                self._windows.inc(int(windows))

    def quarantined(self, error_type: str) -> None:
        """A segment that killed its process too often. For the driver, who alone sees that."""
        self._lost("quarantined", error_type)

    def queue(self, depth: int) -> None:
        """What waits in this process for the stage."""
        self._queue_depth.set(int(depth))

    def busy(self, share: float) -> None:
        """Share of wall time (0..1) that the engine's step was computing, over the latest interval."""
        self._busy_share.set(float(share))

    def batch(self, size: int) -> None:
        """Windows that an engine takes in one step."""
        self._batch_size.set(int(size))

    def _lost(self, outcome: str, error_type: str) -> None:
        self._segments.inc(tags={"outcome": outcome})
        self._failures.inc(tags={"error_type": self._bounded(error_type)})

    def _bounded(self, error_type: str) -> str:
        """A class name, of which there are not too many: whatever else comes must not become a series."""
        if not _CLASS_NAME.fullmatch(error_type):
            return OTHER
        if len(self._error_types) < MAX_ERROR_TYPES:
            self._error_types.add(error_type)
        return error_type if error_type in self._error_types else OTHER

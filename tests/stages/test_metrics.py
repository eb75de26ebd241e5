"""What the stages tell Prometheus, read where Prometheus reads it: from the real exporter of a real Ray."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import defaultdict

import pytest

# Before anything imports Ray: it sets what Ray reads when it is imported.
from pipeline.stages.on_ray import ray  # isort: skip
from pipeline.stages.metrics import MAX_ERROR_TYPES, METRICS, OTHER, StageMetrics

LONGEST_WAIT_S = 90  # Ray exports every ten seconds
RUN = "0123456789abcdef"


def scraped() -> dict[str, dict[str, float]]:
    """Name → labels of ours → value, summed over processes as the dashboard does, of what every node exports."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            if RUN in line and (match := re.fullmatch(r"ray_(labelling_\w+)\{(.*)\} (\S+)", line)):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                ours = [labels[name] for name in ("stage", "job_name", "outcome", "error_type", "le") if name in labels]
                found[match[1]][" ".join(ours)] += float(match[3])
    return found


@pytest.fixture(scope="module")
def exported(ray_of_this_session) -> dict[str, dict[str, float]]:
    """What can be read of three stages, each in a process of its own."""
    process = ray.remote(num_cpus=0)(StageMetrics)
    load, infer, record = stages = [
        process.remote(stage, RUN, job_name="label_inverse") for stage in ("load", "infer", "record")
    ]
    told = [
        load.observe.remote(2.0, 10),
        load.observe.remote(0.5, 10),
        load.observe.remote(0.25, 10, "VideoError"),
        load.queue.remote(3),
        infer.observe.remote(4.0, 10),
        infer.observe.remote(4.0, 10, "a path, /data/\x1b[2J, and no class"),
        infer.busy.remote(0.75),
        infer.batch.remote(6),
        infer.quarantined.remote("SIGSEGV"),
        record.observe.remote(0.0, 10),
        record.observe.remote(0.125, 7),
    ]
    ray.get(told)
    deadline = time.monotonic() + LONGEST_WAIT_S
    expected = {metric.name for metric in METRICS if metric.kind != "histogram"} | {"labelling_stage_seconds_count"}
    while expected - (found := scraped()).keys() or len(found["labelling_busy_seconds_total"]) < len(stages):
        assert time.monotonic() < deadline, f"not exported: {expected - found.keys()}, found {found}"
        time.sleep(0.5)
    for stage in stages:
        ray.kill(stage)
    return found


@pytest.mark.slow
def test_prometheus_can_read_every_metric_with_its_labels(exported):
    """Counters and gauges are exact, and each failed segment is counted where it failed."""
    assert exported["labelling_windows_total"] == {"label_inverse": 17}
    assert exported["labelling_segments_total"] == {"recorded": 2, "failed": 2, "quarantined": 1}
    assert exported["labelling_failures_total"] == {"VideoError": 1, OTHER: 1, "SIGSEGV": 1}
    assert exported["labelling_busy_seconds_total"] == {"load": 2.75, "infer": 8, "record": 0.125}
    assert exported["labelling_queue_depth"] == {"load": 3}
    assert exported["labelling_engine_busy_share"] == {"infer": 0.75}
    assert exported["labelling_batch_size"] == {"infer": 6}


@pytest.mark.slow
def test_prometheus_can_read_how_long_stages_take(exported):
    assert exported["labelling_stage_seconds_count"] == {"load": 3, "infer": 2, "record": 2}
    buckets = exported["labelling_stage_seconds_bucket"]
    assert (buckets["load 0.3"], buckets["load 1.0"], buckets["load 3.0"], buckets["load +Inf"]) == (1, 2, 3, 3)


@pytest.mark.slow
def test_all_metrics_of_the_dashboard_were_seen(exported):
    """None was renamed on the way: an unknown suffix would leave a panel empty."""
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported}
    assert names == {metric.name for metric in METRICS}


def test_without_a_metrics_agent_telling_is_harmless():
    metrics = StageMetrics("record", "unheard")
    for _ in range(10_000):
        metrics.observe(0.1, 3)
    metrics.observe(0.0, 0, "VideoError")
    metrics.quarantined("SIGKILL")
    metrics.queue(0)
    metrics.busy(0.0)
    metrics.batch(0)


def test_there_are_only_so_many_types_of_errors():
    metrics = StageMetrics("load", "bounded")
    kept = [metrics._bounded(f"Error{number}") for number in range(1000)]
    assert len(set(kept)) == MAX_ERROR_TYPES + 1
    assert set(kept[MAX_ERROR_TYPES:]) == {OTHER}
    assert metrics._bounded("Error0") == "Error0", "known ones are still counted by name"


@pytest.mark.parametrize("error_type", ["", "/data/episode_3.mp4", "two words", "a\nb", "x" * 65, "1st", "Fehlér"])
def test_what_is_no_class_name_becomes_no_series(error_type):
    assert StageMetrics("load", "bounded")._bounded(error_type) == OTHER


def test_no_metric_has_a_label_of_prometheus_own():
    labels = {label for metric in METRICS for label in metric.labels}
    assert not labels & {"job", "instance", "le", "quantile"}
    assert len({metric.name for metric in METRICS}) == len(METRICS)

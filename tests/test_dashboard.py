"""The Grafana dashboard asks for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.stages.metrics import METRICS

DOCKER = Path(__file__).resolve().parents[1] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "labelling_dashboard.json").read_text())
SERIES = {
    f"ray_{metric.name}{suffix}": metric
    for metric in METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
# From Ray's core; what its node agents report is looked up in Ray itself.
RAY_CORE = {"ray_object_store_used_memory"}
# Of which Prometheus, Ray's exporter and Grafana add some.
FOREIGN_LABELS = {"instance", "GpuIndex", "le"}


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def asked_for(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", query))


def ray_source(*path: str) -> str:
    """Read and not imported: Ray reads its environment when it is imported, and other tests set that first."""
    return Path(find_spec("ray").origin).parent.joinpath(*path).read_text()


def ray_node_metrics() -> set[str]:
    agent = ray_source("dashboard", "modules", "reporter", "reporter_agent.py")
    found = {f"ray_{name}" for name in re.findall(r'^    "(\w+)": Gauge\(', agent, re.MULTILINE)}
    assert "ray_node_cpu_utilization" in found, "else this test cannot see anything"
    return found | RAY_CORE


def test_every_query_asks_for_a_metric_that_exists():
    known = SERIES.keys() | ray_node_metrics()
    assert {query: unknown for query in queries() if (unknown := asked_for(query) - known)} == {}
    assert all(asked_for(query) for query in queries())


def test_every_metric_of_ours_is_drawn():
    drawn = {SERIES[name].name for query in queries() for name in asked_for(query) if name in SERIES}
    assert drawn == {metric.name for metric in METRICS}


def test_queries_use_labels_that_their_metrics_have():
    for query in queries():
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
        for names in re.findall(r"\bby \(([^)]*)\)", query):
            labels |= {name.strip() for name in names.split(",")}
        metrics = [SERIES[name] for name in asked_for(query) if name in SERIES]
        known = FOREIGN_LABELS.union(*({"run_id", *metric.labels} for metric in metrics))
        assert labels <= known, query
        if metrics:
            assert "run_id" in labels, f"{query} mixes runs"


def test_a_histograms_sum_is_not_asked_for():
    """Ray rebuilds it from the middles of the buckets."""
    assert not [query for query in queries() if re.search(r"ray_labelling_\w+_sum\b", query)]


def test_counters_are_told_by_their_names_and_gauges_are_not_summed_up_over_time():
    assert {metric.name.endswith("_total") for metric in METRICS if metric.kind == "counter"} == {True}
    assert {metric.name.endswith("_total") for metric in METRICS if metric.kind != "counter"} == {False}
    gauges = "|".join(metric.name for metric in METRICS if metric.kind == "gauge")
    assert not [query for query in queries() if re.search(rf"(rate|increase)\(ray_({gauges})\b", query)]


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["id"] is None, "Grafana gives it one"
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 39, "Grafana 11"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        *("Progress", "Stages", "Engines", "Nodes")
    ]
    for panel in panels():
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used <= variables | {"__range"}


def test_panels_stand_beside_each_other():
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"]


def test_prometheus_finds_the_nodes_where_ray_lists_them():
    yaml = pytest.importorskip("yaml")
    constants = ray_source("_private", "ray_constants.py")
    name = re.search(r'^PROMETHEUS_SERVICE_DISCOVERY_FILE = "(.*)"$', constants, re.MULTILINE)[1]
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{name}"]

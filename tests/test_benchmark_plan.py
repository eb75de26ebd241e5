"""The benchmark of planning counts what is there: few episodes, and every figure that does not depend on a clock."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))
import benchmark_plan
from benchmark_plan import PlanningConfig, measure, run_apart, watch_files, write_dataset

from pipeline.datasets import open_dataset
from pipeline.errors import ConfigError

EPISODES = 150


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def report(scratch) -> dict[str, Any]:
    """In this process: only memory needs one of its own, and each would take seconds to import torch."""
    return measure(PlanningConfig(episodes=EPISODES, repeats=2), scratch, apart=lambda work: work(), say=print)


def test_every_window_is_planned(report):
    """Three windows of 16 actions at 480 are what fits into 64 MiB."""
    plan = report["plan"]
    assert (plan["episodes"], plan["windows"], plan["segments"]) == (EPISODES, 12 * EPISODES, 4 * EPISODES)
    assert list(plan["seconds"]) == ["import", "open", "recipe", "plan", "write"]
    assert all(seconds >= 0 for seconds in plan["seconds"].values())
    assert plan["peak_bytes"] > 0


def test_one_in_a_hundred_is_left_and_no_record_is_read(report):
    resume, segments = report["resume"], 4 * EPISODES
    assert report["records"] == {"packed": segments * 98 // 100, "loose": segments // 100, "packs": 1}
    assert resume["missing"] == segments // 100
    assert resume["opened"] == 1, "the pack's end, and nothing else"
    assert 0 < resume["read_bytes"] < 10**6
    assert resume["listed"] > 0


def test_a_resume_that_reads_every_record_would_be_seen(scratch, report):
    """The figure that the benchmark is about can be another one."""
    loose = list((scratch / "out" / "records").glob("??/*.parquet"))
    with watch_files(scratch / "out") as touched:
        for path in loose:
            path.read_bytes()
    assert touched["open"] == len(loose) == report["records"]["loose"]


def test_the_records_are_those_of_a_label_run(scratch, report):
    records = scratch / "out" / "records"
    [pack] = records.glob("packs/*.parquet")
    rows = pq.ParquetFile(pack).metadata.num_rows
    # Of the plan's first segment, which ends before the episode does: 48 actions.
    assert rows == 48 * report["records"]["packed"]


def test_the_dataset_has_files_of_different_content(tmp_path):
    write_dataset(tmp_path, EPISODES)
    dataset = open_dataset(tmp_path)
    assert (dataset.num_episodes, len(dataset.cameras), dataset.fps) == (EPISODES, 3, 15)
    assert not dataset.warnings
    files = [
        dataset.episode_identity(episode, dataset.cameras)[kind]
        for episode in (0, EPISODES - 1)
        for kind in ("videos", "data")
    ]
    digests = [file["digest"] for found in files for file in (found.values() if "digest" not in found else [found])]
    assert len(set(digests)) == len(digests) == 8


def test_a_measurement_has_a_process_of_its_own():
    assert run_apart(os.getpid) != run_apart(os.getpid)


def test_the_command_says_it_and_writes_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_plan.py", "--episodes", "50", "--repeats", "1"])
    monkeypatch.setattr(benchmark_plan, "run_apart", lambda work: work())
    monkeypatch.chdir(tmp_path)
    assert benchmark_plan.main() == 0
    report = json.loads((tmp_path / "outputs/benchmark_plan/plan.json").read_text())
    assert (report["plan"]["windows"], report["resume"]["missing"]) == (600, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plan      600 windows in 200 segments: ")
    assert lines[2].startswith("resume    2 of 200 segments are left: ")
    assert "196 records in 1 packs and 2 loose ones: 1 files opened" in lines[3]
    assert lines[4].startswith("load ")


@pytest.mark.parametrize("settings", [{"episodes": 49}, {"repeats": 0}, {"image_size": 300}])
def test_what_cannot_be_measured_is_refused(settings):
    with pytest.raises(ConfigError, match=f"found .*{next(iter(settings.values()))}"):
        PlanningConfig(**settings)

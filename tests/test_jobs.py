"""The commands themselves, as a user types them: real processes, a real Ray, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LABEL_INVERSE = REPOSITORY / "jobs" / "label_inverse.py"
TIMEOUT_S = 400


def start(*flags: str, folder: Path) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, str(LABEL_INVERSE), *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*flags: str, folder: Path) -> tuple[int, str, str]:
    process = start(*flags, folder=folder)
    out, error = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, error


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder)
    valid = table.filter(table["action_valid"])
    return {
        "rows": np.stack([table["episode_index"].to_numpy(), table["frame_index"].to_numpy()], axis=1),
        "valid": table["action_valid"].to_numpy(),
        "action_normalized": np.array(valid["action_normalized"].to_pylist()),
    }


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> tuple[Path, str, str]:
    """The README's first command: no arguments, in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    code, out, error = run(folder=folder)
    assert code == 0, out + error
    return folder, out, error


@pytest.mark.slow
def test_the_demo_runs_without_arguments_and_says_that_its_labels_mean_nothing(demo_run):
    folder, out, error = demo_run
    assert "random weights" in out
    assert "segments   5 planned = 5 recorded + 0 failed" in out
    assert "--config_path configs/droid.yaml" in out, "the next command to try"
    assert "11/11" in error, "a progress bar over the windows"
    summary = json.loads((folder / "outputs/label_inverse/summary.json").read_text())
    assert summary["segments"] == {"planned": 5, "recorded": 5, "failed": 0, "recorded_earlier": 0}
    assert summary["labels"]["valid_actions"] == summary["labels"]["rows"] - 5


@pytest.mark.slow
def test_ray_keeps_out_of_the_users_terminal(demo_run):
    _, out, error = demo_run
    chatter = [line for line in (out + error).splitlines() if "ray" in line.lower() or "warning:" in line.lower()]
    assert not chatter


@pytest.mark.slow
def test_a_killed_driver_loses_and_doubles_nothing(demo_run, tmp_path):
    """SIGKILL for the whole process group after the first record; the same command again equals an undisturbed run."""
    undisturbed, _, _ = demo_run
    demo = undisturbed / "outputs" / "demo"
    flags = (
        *("--dataset.root", str(demo / "dataset"), "--engine.checkpoint", str(demo / "checkpoint")),
        *("--action_stats_path", str(demo / "action_stats.json"), "--image_size", "256"),
        *("--engine.batch_size", "1", "--output_dir", "labelled"),
    )
    process = start(*flags, folder=tmp_path)
    records = tmp_path / "labelled" / "records"
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (done := list(records.glob("??/*.parquet"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = list(records.glob("??/*.parquet"))
    assert 1 <= len(done) < 5, "the run was to be interrupted half-way"
    written = {path: path.stat().st_mtime_ns for path in done}

    code, out, error = run(*flags, folder=tmp_path)
    assert code == 0, out + error
    assert f"({len(done)} were there already)" in out
    assert {path: path.stat().st_mtime_ns for path in done} == written, "finished work was done again"
    ours = read_labels(tmp_path / "labelled" / "labels")
    theirs = read_labels(undisturbed / "outputs/label_inverse/labels")
    np.testing.assert_array_equal(ours["rows"], theirs["rows"])
    np.testing.assert_array_equal(ours["valid"], theirs["valid"])
    np.testing.assert_allclose(ours["action_normalized"], theirs["action_normalized"], atol=1e-5)


def test_a_mistyped_flag_is_answered_with_the_closest_one(tmp_path):
    code, _, error = run("--dataset.rot", "x", folder=tmp_path)
    assert code == 2
    assert "dataset.root" in error
    assert "Traceback" not in error


def test_a_folder_that_is_no_dataset_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "notes").mkdir()
    code, _, error = run(
        *("--dataset.root", "notes", "--engine.checkpoint", "nowhere", "--action_normalization", "none"),
        folder=tmp_path,
    )
    assert code == 2
    assert "meta/info.json" in error
    assert not (tmp_path / "outputs").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_checkpoint, shared_data, tmp_path):
    code, out, error = run(
        *("--dataset.root", str(shared_data / "droid_real"), "--engine.checkpoint", str(tiny_checkpoint)),
        *("--action_normalization", "none", "--dataset.timebase", "native", "--dry_run"),
        folder=tmp_path,
    )
    assert code == 0, error
    assert "7 episodes, 7 segments, 39 windows" in out
    assert "estimate" in out
    assert not (tmp_path / "outputs").exists()

"""The commands themselves, as a user types them: real processes, a real Ray, real files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from shell_environment import SHELL_ENVIRONMENT

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT_S = 900


def run(*flags: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "label_inverse.py"), *flags],
        cwd=folder,
        env=SHELL_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.returncode, done.stdout, done.stderr


@dataclass(frozen=True)
class DemoRun:
    """The README's first command, in an empty folder."""

    folder: Path
    out: str
    error: str

    @property
    def output_dir(self) -> Path:
        return self.folder / "outputs" / "label_inverse"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> DemoRun:
    folder = tmp_path_factory.mktemp("demo")
    code, out, error = run(folder=folder)
    assert code == 0, out + error
    return DemoRun(folder, out, error)


@pytest.mark.slow
def test_the_demo_runs_without_arguments_and_says_what_its_checkpoint_knows(demo_run):
    assert "knows this rendered world alone" in demo_run.out
    assert "segments   5 planned = 5 recorded + 0 failed + 0 quarantined" in demo_run.out
    assert "--config_path configs/droid.yaml" in demo_run.out, "the next command to try"
    assert re.search(r"100%.* \d+/\d+", demo_run.error), "a progress bar over the windows"
    summary = json.loads((demo_run.output_dir / "summary.json").read_text())
    assert (summary["segments"]["planned"], summary["segments"]["failed"]) == (5, 0)
    assert summary["results"]["valid_actions"] == summary["results"]["rows"] - 5


@pytest.mark.slow
def test_ray_keeps_out_of_the_users_terminal(demo_run):
    lines = (demo_run.out + demo_run.error).splitlines()
    assert not [line for line in lines if re.search(r"(?<!--)\bray\b|raylet|warning:", line, re.IGNORECASE)]


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
        *("--action_normalization", "none", "--dataset.timebase", "native", "--image_size", "256", "--dry_run"),
        folder=tmp_path,
    )
    assert code == 0, error
    assert "7 episodes, 7 segments, 39 windows" in out
    assert "estimate" in out
    assert not (tmp_path / "outputs").exists()

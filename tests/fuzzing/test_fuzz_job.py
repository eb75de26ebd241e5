"""`jobs/fuzz_readers.py` as it is typed: what it prints, what it exits with, and what it keeps of a bad ending."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell_environment import SHELL_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300

# Python runs this before anything else, also in the job's own processes.
BREAK_THE_READER = """
import os, pipeline.action_files
def broken(path, *, raw_action_dim):
    {what}
pipeline.action_files.read_action_file = broken
"""


def run(job: Path, *flags: str, folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(job), *flags],
        cwd=folder,
        env=SHELL_ENVIRONMENT | {"PYTHONPATH": f"{path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def fuzz_action_files(folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    job = ROOT / "jobs" / "fuzz_readers.py"
    return run(job, "--examples", "20", "--targets", "[action_file]", "--output_dir", "found", folder=folder, path=path)


@pytest.mark.slow
def test_a_reader_in_order_gives_a_table_and_nothing_else(tmp_path):
    done = fuzz_action_files(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    header, line, last = done.stdout.splitlines()
    assert header.split()[:4] == ["target", "tried", "accepted", "untyped"]
    assert (line.split()[0], line.split()[3]) == ("action_file", "0")
    assert "ActionFileError" in line
    assert last.endswith("0 with another end than success or a typed error.")
    assert not (tmp_path / "found").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ['raise KeyError("nobody expects this")', "os.abort()"])
def test_a_bad_ending_is_counted_and_its_input_kept(tmp_path, what):
    (tmp_path / "sitecustomize.py").write_text(BREAK_THE_READER.format(what=what))
    done = fuzz_action_files(tmp_path, path=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The first input of each kind is in found." in done.stdout
    [kept] = (tmp_path / "found" / "action_file").iterdir()
    assert kept.name in ("KeyError", "CrashedOrHung")
    assert (kept / "error.txt").read_text()
    assert {path.name for path in kept.iterdir()} == {"chunks.json", "shaped.json", "error.txt"}


def test_what_cannot_be_run_is_said(tmp_path):
    done = run(ROOT / "jobs" / "fuzz_readers.py", "--targets", "[action_fil]", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Unknown target 'action_fil'. Did you mean 'action_file'?" in done.stderr
    (tmp_path / "jobs").mkdir()
    alone = shutil.copy(ROOT / "jobs" / "fuzz_readers.py", tmp_path / "jobs")
    done = run(Path(alone), folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "uv sync" in done.stderr

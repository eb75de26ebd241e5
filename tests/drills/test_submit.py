"""`ray job submit` as users of a cluster type it: a real head with its job server, the logs, the exit code."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill import CLIPS, PATIENCE_S, REPOSITORY, wait_for
from shell_environment import SHELL_ENVIRONMENT

pytestmark = pytest.mark.drill
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment in which `ray` finds a head of its own, beside whatever else runs on this machine."""
    port, dashboard = _free_port(), _free_port()
    folder = tmp_path_factory.mktemp("head")
    environment = SHELL_ENVIRONMENT | {
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={port}", "--disable-usage-stats"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--dashboard-agent-listen-port={_free_port()}",  # another Ray's agent has the usual one
        ],
        env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # `ray stop` would end every Ray on this machine
    )
    wait_for(lambda: _answers(dashboard), "the job server")
    wait_for(lambda: _run([RAY, "job", "submit", "--", "true"], environment)[0] == 0, "an agent that takes jobs")
    yield environment
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_submitted_job_tells_what_it_does_and_fails_when_a_segment_fails(
    head, tiny_checkpoint, shared_data, tmp_path
):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("episode_0.exterior_1.mp4", "episode_6.exterior_1.mp4"):
        shutil.copy(shared_data / "droid_videos" / name, videos)
    command = [
        *(RAY, "job", "submit", "--working-dir", str(REPOSITORY), "--", sys.executable, "jobs/label_inverse.py"),
        *("--dataset.root", str(videos), "--engine.checkpoint", str(tiny_checkpoint)),
        *("--output_dir", str(tmp_path / "out"), *CLIPS, "--engine.num_inference_steps", "1"),
    ]
    code, told = _run(command, head)
    assert code == 0, told
    assert "recorded + 0 failed + 0 quarantined" in told
    assert "100%" in told, "lines of progress, and no bar"
    assert "\r" not in told.replace("\r\n", "\n")

    damaged = videos / "episode_7.exterior_1.mp4"
    damaged.write_bytes((videos / "episode_6.exterior_1.mp4").read_bytes()[:2000])
    code, told = _run(command, head)
    assert code == 1, told
    assert "1 failed" in told
    assert damaged.name in told
    assert "Traceback" not in told
    tolerant, told = _run([*command, "--max_failed_fraction", "0.5"], head)
    assert tolerant == 0, told


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        command, env=environment, cwd=os.sep, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout + done.stderr

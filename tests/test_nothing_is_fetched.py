"""With a local checkpoint and a local dataset nothing connects anywhere: not while importing, not while planning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shell_environment import SHELL_ENVIRONMENT

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import write_video

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 400

# Python's own audit events: whatever library it is that connects through Python, they come before it does. Sockets of
# one machine's own processes (AF_UNIX, whose address is a path) are none of our business.
WATCH = """
import json, os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[-1]
        if not isinstance(address, (str, bytes)) or event == "socket.getaddrinfo":
            with open(os.environ["CONNECTIONS"], "a") as file:
                file.write(json.dumps([event, repr(address)]) + "\\n")
            raise OSError(101, f"the test refuses {event} {address!r}")
sys.addaudithook(watch)
"""
ENGINES_AND_STAGES = """
import pipeline.action_sources, pipeline.evaluating, pipeline.labelling, pipeline.rollouts, pipeline.single
import pipeline.cosmos3.engine, pipeline.evaluation.frames, pipeline.outputs.lerobot_dataset
import pipeline.stages.evaluate, pipeline.stages.infer, pipeline.stages.load, pipeline.stages.on_ray
import pipeline.stages.record, pipeline.stages.roll_out, s3fs
"""


class Watched:
    """Runs Python programs that cannot connect, and tells what they would have connected to."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(WATCH)
        self._connections = folder / "connections"
        home = folder / "home"
        home.mkdir()
        removed = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "TRANSFORMERS_OFFLINE", "RAY_ADDRESS")
        environment = {key: value for key, value in SHELL_ENVIRONMENT.items() if key not in removed}
        places = {"PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(home), "CONNECTIONS": str(self._connections)}
        self._environment = environment | places

    def run(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self._environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    @property
    def connections(self) -> list[list[str]]:
        """[event, address] of every attempt, in order."""
        lines = self._connections.read_text().splitlines() if self._connections.is_file() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def watched(tmp_path) -> Watched:
    (tmp_path / "watch").mkdir()
    return Watched(tmp_path / "watch")


def test_a_connection_is_seen_and_refused(watched, tmp_path):
    """Also that of a checkpoint that is named by its hub id, which is what asking for it looks like."""
    program = (
        "from pipeline.cosmos3.config import resolve_checkpoint\n"
        "from pipeline.errors import CheckpointError\n"
        "try:\n    resolve_checkpoint('nobody/nothing')\nexcept CheckpointError as error:\n    print(error)\n"
    )
    done = watched.run("-c", program, folder=tmp_path)
    assert "Could not fetch 'nobody/nothing' from the hub" in done.stdout, done.stderr
    assert watched.connections


@pytest.mark.slow
def test_imports_connect_to_nothing_and_switch_rays_statistics_off(watched, tmp_path):
    program = f"{ENGINES_AND_STAGES}\nimport os; print('statistics', os.environ['RAY_USAGE_STATS_ENABLED'])"
    done = watched.run("-c", program, folder=tmp_path)
    assert done.stdout.endswith("statistics 0\n"), done.stderr
    assert watched.connections == []


@pytest.mark.slow
def test_a_dry_run_with_local_inputs_connects_to_nothing(watched, tmp_path, tiny_checkpoint):
    write_video(tmp_path / "videos" / "a.mp4", range(20))
    inputs = ("--dataset.root", "videos", "--dataset.cameras", "video", "--engine.checkpoint", str(tiny_checkpoint))
    settings = ("--dataset.timebase", "native", "--action_normalization", "none", "--image_size", "256", "--dry_run")
    done = watched.run(str(ROOT / "jobs" / "label_inverse.py"), *inputs, *settings, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 episodes, 1 segments" in done.stdout
    assert watched.connections == []

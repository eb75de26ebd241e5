"""The shell scripts of `docker/`, executed: Slurm's and Ray's commands are small ones that write down how they were
called; the processes, and the signals between them, are real.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from shell_environment import SHELL_ENVIRONMENT

DOCKER = Path(__file__).resolve().parents[1] / "docker"
SBATCH = DOCKER / "slurm" / "label.sbatch"
TIMEOUT_S = 30
FLAGS = ("--dataset.root", "/data/my set", "--output_dir", "s3://bucket/labels")
JOB = "4242"

# Slurm's commands. A step runs at once and here, with what Slurm would tell on its node.
SCONTROL = """
case "$1 $2" in
  "show hostnames") printf '%s\\n' $NODES ;;
  "show job") echo "JobId=$3 JobState=${STATE:-RUNNING} Requeue=1" ;;
  *) note "scontrol $*" ;;
esac
"""
SRUN = """
words=()
while [[ $1 == --* ]]; do words+=("$1"); shift; done
note "srun ${words[*]} :: $1"
[[ $1 != getent ]] || { echo "10.0.0.7 STREAM $3"; exit 0; }
export SLURM_GPUS_ON_NODE=8 SLURM_CPUS_ON_NODE=64
exec "$@"
"""
# Ray: a process that stays until it is told to go, unless it is to fail, or to go into the background.
RAY = """
note "ray $*"
note "token $RAY_AUTH_MODE $RAY_AUTH_TOKEN"
[[ -z ${RAY_FAILS:-} ]] || exit 1
[[ -z ${RAY_RETURNS:-} ]] || exit 0
trap 'note "ray ended"; exit 0' TERM
note "here is ray"
while :; do sleep 0.05; done
"""
# Python: the token's maker is the real one; the one who waits for the nodes and the job are not. One step stands for
# all the nodes after the first.
PYTHON = f"""
case "$1" in
  -c) exec {sys.executable} "$@" ;;
  -) note "nodes $2 $3"
     steps=$(($3 > 1 ? 2 : 1))
     [[ -z ${{NODES_MISSING:-}} ]] || exec sleep 1000
     until (($(grep -c "^here is ray" "$NOTES") == steps)); do sleep 0.05; done
     exit 0 ;;
esac
note "job $*"
note "token $RAY_AUTH_MODE $RAY_AUTH_TOKEN"
[[ -z ${{JOB_IS_DEAF:-}} ]] || {{ note ready; exec sleep 1000; }}
[[ -z ${{JOB_EXITS:-}} ]] || exit "$JOB_EXITS"
trap 'note "job was told"; told=yes' TERM
note ready
while [[ -z ${{told:-}} ]]; do sleep 0.05; done
sleep 0.3
exit 3
"""
NOTE = '#!/usr/bin/env bash\nnote() { printf "%s\\n" "$*" >> "$NOTES"; }\n'


@dataclass(frozen=True)
class Batch:
    """One run of a script: its process, and what the commands wrote down."""

    process: subprocess.Popen
    notes: Path

    def lines(self, start: str = "") -> list[str]:
        text = self.notes.read_text() if self.notes.exists() else ""
        return [line for line in text.splitlines() if line.startswith(start)]

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self.lines(line):
            assert time.monotonic() < deadline, self.lines()
            assert self.process.poll() is None, (self.process.communicate(), self.lines())
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        out, error = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out + error


@pytest.fixture
def begin(tmp_path) -> Iterator[Callable[..., Batch]]:
    """Starts a script among the commands above: `begin(command, NAME=value)`. What is left of it is killed."""
    commands = {"bin/scontrol": SCONTROL, "bin/srun": SRUN, ".venv/bin/ray": RAY, ".venv/bin/python": PYTHON}
    for name, text in commands.items():
        path = tmp_path / "my repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE + text)
        path.chmod(0o755)
    folder = tmp_path / "my repository"
    begun: list[subprocess.Popen] = []

    def start(command: list[str], **environment: str) -> Batch:
        path = f"{folder}/bin:{folder}/.venv/bin:{SHELL_ENVIRONMENT['PATH']}"
        settings = SHELL_ENVIRONMENT | {"PATH": path, "NOTES": str(tmp_path / "notes")}
        slurm = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "gpu[1-3]", "SLURM_SUBMIT_DIR": str(folder)}
        begun.append(
            subprocess.Popen(
                command,
                env=settings | slurm | {"NODES": "gpu1 gpu2 gpu3", "SLURM_CPUS_PER_TASK": "32"} | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return Batch(begun[-1], tmp_path / "notes")

    yield start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def batch(begin) -> Callable[..., Batch]:
    """The Slurm script, as Slurm starts it."""
    return lambda **environment: begin(["bash", str(SBATCH), *FLAGS], **environment)


def test_bash_can_read_it():
    done = subprocess.run(["bash", "-n", str(SBATCH)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_slurm_is_asked_to_signal_the_script_in_time_and_to_keep_its_log():
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SBATCH.read_text(), re.MULTILINE))
    signalled, before_s = re.fullmatch(r"B:(\w+)@(\d+)", directives["signal"]).groups()
    (grace_s,) = set(re.findall(r"GRACE_S:-(\d+)", SBATCH.read_text()))
    assert signalled == "TERM"
    assert int(before_s) >= int(grace_s) + 25, "then Ray is ended, and the script goes back into the queue"
    assert "requeue" in directives
    assert directives["open-mode"] == "append"
    assert directives["ntasks-per-node"] == "1"


def test_a_ray_on_all_nodes_and_the_job_on_it(batch):
    run = batch(JOB_EXITS="0")
    code, said = run.end()
    assert code == 0, said
    head, workers = run.lines("ray start --head")[0], run.lines("ray start --address=")
    port = 20000 + int(JOB) % 3000 * 4
    assert f"--node-ip-address=10.0.0.7 --port={port} " in head
    assert "--dashboard-host=127.0.0.1" in head
    assert workers[0].startswith(f"ray start --address=10.0.0.7:{port} ")
    assert all("--num-cpus 32 --num-gpus 8 " in line and line.endswith("--block") for line in (head, *workers))
    steps = {line for line in run.lines("srun") if line.endswith(":: bash")}
    assert {tuple(re.findall(r"--(?:nodelist|exclude|nodes|ntasks)=\S+", step)) for step in steps} == {
        ("--nodelist=gpu1", "--nodes=1", "--ntasks=1"),
        ("--exclude=gpu1", "--nodes=2", "--ntasks=2"),
    }
    assert run.lines("nodes") == [f"nodes 10.0.0.7:{port} 3"]
    assert run.lines("job") == [
        f"job jobs/label_inverse.py --ray.address 10.0.0.7:{port} --grace_s 90 {' '.join(FLAGS)}"
    ]
    assert len(run.lines("ray ended")) == 2
    assert not run.lines("scontrol")


def test_everyone_has_the_same_new_token_and_nobody_sees_it(batch):
    first = batch(JOB_EXITS="0")
    _, said = first.end()
    (token,) = set(first.lines("token"))
    assert re.fullmatch(r"token token [0-9a-f]{64}", token)
    secret = token.split()[-1]
    assert secret not in said
    assert not [line for line in first.lines() if secret in line and not line.startswith("token")]
    first.notes.unlink()
    second = batch(JOB_EXITS="0")
    second.end()
    assert set(second.lines("token")) != {token}


def test_a_single_node_needs_no_second_step(batch):
    run = batch(JOB_EXITS="0", NODES="gpu1", JOB="rollout_forward")
    assert run.end()[0] == 0
    assert len(run.lines("ray start")) == 1
    assert run.lines("job jobs/rollout_forward.py ")


def test_before_the_time_limit_the_job_ends_what_it_does_and_goes_back_into_the_queue(batch):
    run = batch()
    run.wait_for("ready")
    run.process.send_signal(signal.SIGTERM)  # of the shell alone: what `--signal=B:` means
    run.wait_for("job was told")
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end()
    assert code == 3, said
    assert len(run.lines("job was told")) == 1, "a second signal would make the job drop everything"
    *before, last = run.lines()
    assert last == f"scontrol requeue {JOB}"
    assert before.count("ray ended") == 2, "Ray goes first"


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_job_that_failed_does_not_go_back_into_the_queue(batch, code):
    run = batch(JOB_EXITS=str(code))
    assert run.end()[0] == code
    assert len(run.lines("ray ended")) == 2
    assert not run.lines("scontrol")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"STATE": "CANCELLED"}, "cancelled"), ({"SLURM_RESTART_COUNT": "7", "MAX_RESTARTS": "7"}, "restart 7")],
)
def test_whoever_cancels_means_it_and_nothing_goes_on_for_ever(batch, environment, reason):
    run = batch(JOB_EXITS="3", **environment)
    code, said = run.end()
    assert code == 3
    assert reason in said
    assert not run.lines("scontrol")


def test_a_job_that_dies_of_the_signal_before_it_can_listen_goes_back_into_the_queue(batch):
    run = batch(JOB_IS_DEAF="1")
    run.wait_for("ready")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 3
    assert run.lines()[-1] == f"scontrol requeue {JOB}"


def test_a_signal_while_nodes_are_waited_for_starts_no_job(batch):
    run = batch(NODES_MISSING="1")
    run.wait_for("nodes")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 3
    assert not run.lines("job")
    assert run.lines()[-1] == f"scontrol requeue {JOB}"


@pytest.mark.parametrize(
    ("environment", "reason"), [({"RAY_FAILS": "1"}, "Ray ended on a node"), ({"START_S": "1"}, "Not all of 3 nodes")]
)
def test_nodes_that_do_not_come_together_are_told_apart_from_a_job_that_fails(batch, environment, reason):
    run = batch(NODES_MISSING="1", **environment)
    code, said = run.end()
    assert code == 4
    assert reason in said
    assert not run.lines("job")
    assert not run.lines("scontrol")


def test_outside_of_slurm_it_says_what_to_type():
    environment = {key: value for key, value in SHELL_ENVIRONMENT.items() if not key.startswith("SLURM")}
    done = subprocess.run(["bash", str(SBATCH)], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "sbatch docker/slurm/label.sbatch" in done.stderr


def test_a_stopped_container_signals_its_job_and_ends_with_its_exit_code(begin):
    """What Compose starts, less tini, which hands signals on; its `$$` is a `$`."""
    label = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["label"]
    assert label["entrypoint"][:2] == ["tini", "--"]
    run = begin([word.replace("$$", "$") for word in label["entrypoint"][2:]] + label["command"], RAY_RETURNS="1")
    run.wait_for("ready")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 3
    assert [line.split()[1] for line in run.lines("ray")] == ["get-auth-token", "start"]
    assert "--dashboard-host 127.0.0.1" in run.lines("ray start --head")[0]
    assert run.lines("job") == [f"job {' '.join(label['command'])}", "job was told"]

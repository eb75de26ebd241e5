"""What all drills share: a small but real label run, the job as a process, and what must hold when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
from shell_environment import SHELL_ENVIRONMENT

from pipeline.command_line import parse_config
from pipeline.config import LabelConfig
from pipeline.labelling import prepare
from pipeline.outputs.merging import read_merged
from pipeline.run import Prepared

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 300
# Real DROID clips, and those in small segments: one window of five frames each. In fp32, which is equal bit for bit; a
# run that joins a cluster would compute in bf16 otherwise.
CLIPS = (
    *("--dataset.cameras", "[video]", "--dataset.timebase", "native", "--action_normalization", "none"),
    *("--image_size", "256", "--engine.dtype", "float32"),
)
_SMALL = (*CLIPS, "--engine.num_inference_steps", "2", "--max_segment_mib", "1", "--action_chunk_size", "4")
SIXTY_FOUR = (*_SMALL, "--dataset.episodes", "[2, 3, 6]")
THIRTY = (*_SMALL, "--dataset.episodes", "[3, 6]")
TEN = (*_SMALL, "--dataset.episodes", "[6]")


@dataclass
class Drill:
    """One output folder, and the same command again and again."""

    dataset: Path | str
    checkpoint: Path
    output_dir: Path | str
    flags: tuple[str, ...]
    labels: pa.Table | None = field(default=None, repr=False)

    def arguments(self, *more: str) -> list[str]:
        return [
            *("--dataset.root", str(self.dataset), "--engine.checkpoint", str(self.checkpoint)),
            *("--output_dir", str(self.output_dir), *self.flags, *more),
        ]

    def prepare(self, *more: str) -> Prepared:
        return prepare(parse_config(LabelConfig, self.arguments(*more)))

    def start(self, address: str, *more: str, **environment: str) -> subprocess.Popen[str]:
        """The job as a user starts it, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs" / "label_inverse.py"), *self.arguments(*more)],
            cwd=Path(self.output_dir).parent if "://" not in str(self.output_dir) else None,
            env=SHELL_ENVIRONMENT | {"RAY_ADDRESS": address} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, address: str, *more: str, **environment: str) -> tuple[int, str]:
        process = self.start(address, *more, **environment)
        out, error = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out + error

    def records(self) -> dict[str, int]:
        """Key → when its record was written, in ns."""
        paths = (Path(self.output_dir) / "records").glob("??/*.parquet")
        return {path.stem: path.stat().st_mtime_ns for path in paths}

    def num_records(self) -> int:
        return len(self.records())

    def summary(self) -> dict:
        return json.loads((Path(self.output_dir) / "summary.json").read_text())

    def merged(self) -> pa.Table:
        return read_merged(f"{self.output_dir}/labels")


def kill(process: subprocess.Popen[str]) -> None:
    """The job and all that it started, without a word."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def processes(name: str, *, ready: bool = True) -> Iterator[int]:
    """Process ids of Ray's actors that hold this stage; without `ready` also of those that are still building it."""
    for process_id, title in _titles():
        if f"Map({name})" in title and not (ready and "__init__" in title):
            yield process_id


def register_process() -> int:
    """The process id of the actor that a run keeps its books in."""
    [register] = [process_id for process_id, title in _titles() if "ray::Register" in title]
    return register


def _titles() -> Iterator[tuple[int, str]]:
    """Of all processes; Ray's tell what they do in theirs."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        yield process.pid, " ".join(process.info["cmdline"] or ())


def raylet_of(process_id: int) -> int:
    """Tells the node that a process belongs to: each has a raylet of its own."""
    import psutil

    return int(psutil.Process(process_id).environ()["RAY_RAYLET_PID"])


def assert_equal_labels(ours: pa.Table, undisturbed: pa.Table) -> None:
    """Bit for bit, row for row, of the episodes that were labelled here."""
    mine = set(ours["episode_index"].to_pylist())
    undisturbed = undisturbed.filter([index in mine for index in undisturbed["episode_index"].to_pylist()])
    assert ours.num_rows == undisturbed.num_rows
    for name in undisturbed.column_names:
        assert ours[name].equals(undisturbed[name].cast(ours.schema.field(name).type)), name


def assert_conserved(drill: Drill, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """As `jobs/status.py --verify` sees it, which looks at the folder alone."""
    told = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "status.py"), str(drill.output_dir), "--verify"],
        env=SHELL_ENVIRONMENT | dict(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert told.returncode == 0, told.stdout + told.stderr

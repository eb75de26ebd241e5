"""What `jobs/status.py` tells about real folders: complete ones, broken ones, and one whose run is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pytest
from outcome_samples import outcome_of
from shell_environment import SHELL_ENVIRONMENT

from pipeline.outputs.failures import FailureStore
from pipeline.outputs.holder import Machine
from pipeline.outputs.lease import Periods, hold_lease
from pipeline.outputs.merging import merge_records
from pipeline.outputs.plans import write_plan
from pipeline.outputs.records import RecordStore
from pipeline.plan import Plan, Segment
from pipeline.status import LeaseWatch, read_status, to_json, verify
from pipeline.status_lines import failure_lines, status_lines
from pipeline.storage import open_path

sys.path.insert(0, str(Path(__file__).parents[1]))  # jobs are no package
from jobs.status import main

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60
ELSEWHERE = Machine(host="elsewhere", boot_id="another boot", pid_namespace="pid:[1]")
ROWS = pa.schema([("episode_index", pa.int64()), ("frame_index", pa.int64())])

# A run that records one segment of the plan each time it hears a line, under a lease.
RUN = """
import sys
from pipeline.outputs.lease import Periods, hold_lease
from pipeline.outputs.plans import plan_keys, read_plan
from pipeline.outputs.records import RecordStore
import pyarrow as pa
output_dir, run_id = sys.argv[1:]
store = RecordStore(output_dir)
with hold_lease(output_dir, run_id=run_id, periods=Periods(renew_s=0.1)):
    print("ready", flush=True)
    for key, line in zip(plan_keys(read_plan(output_dir, run_id)), sys.stdin):
        store.write(key, pa.table({"episode_index": [0]}))
        print("recorded", flush=True)
"""


def segment(number: int, *, run_id: str = "abc") -> Segment:
    """Two segments of four positions make an episode."""
    start = 4 * (number % 2)
    return Segment(
        key=sha256(f"{run_id}-{number}".encode()).hexdigest(),
        input_digest="",
        episode_index=number // 2,
        task="Lift.",
        num_positions=9,
        window_starts=(start,),
        label_start=start,
        label_stop=start + 4,
    )


class Folder:
    """An output folder that is written piece by piece, as runs do."""

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = str(output_dir)
        self.store, self.failures = RecordStore(output_dir), FailureStore(output_dir)

    def plan(self, num_segments: int, *, run_id: str = "abc", **changes: object) -> list[Segment]:
        """A command of a recipe: its manifest and its plan."""
        manifest = {
            "run_id": run_id,
            "recipe": {"mode": "inverse_dynamics", "frame_stride": 1},
            "settings": {},
            "checkpoint": {"id": "nvidia/Cosmos3-Nano", "fingerprint": "0123456789abcdef"},
            "dataset": {"root": "/data/droid"},
        } | changes
        for name in ("manifest.json", f"manifests/{run_id}.json"):
            self.write(name, json.dumps(manifest))
        segments = [segment(number, run_id=run_id) for number in range(num_segments)]
        write_plan(self.output_dir, run_id, Plan(tuple(segments), 0))
        return segments

    def record(self, segments: Sequence[Segment]) -> None:
        for each in segments:
            positions = range(each.label_start, each.label_stop + (each.label_stop == 8))
            rows = {"episode_index": [each.episode_index] * len(positions), "frame_index": list(positions)}
            self.store.write(each.key, pa.table(rows, schema=ROWS))

    def fail(self, segments: Sequence[Segment], **changes: object) -> None:
        for each in segments:
            self.failures.write(outcome_of(each, **changes))

    def merge(self, segments: Sequence[Segment], *, run_id: str = "abc") -> None:
        manifest = {"run_id": run_id, "recipe": {"frame_stride": 1}}
        keys = [each.key for each in segments]
        merge_records(
            self.store, keys, ROWS, open_path(self.output_dir) / "labels", manifest=manifest, look=lambda table: None
        )

    def tell(self, **changes: object) -> None:
        """A progress file, as a run that is going on writes it."""
        told = {
            "run_id": "abc",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "windows_done": 3,
            "windows_total": 8,
            "windows_per_s": 0.25,
            "eta_s": 1000.0,
            "segments_failed": 1,
            "segments_quarantined": 0,
            "phase": "running",
        }
        self.write("progress/abc.json", json.dumps(told | changes))

    def write(self, name: str, text: str) -> None:
        path = open_path(self.output_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def lines(self) -> str:
        return "\n".join(status_lines(read_status(self.output_dir)))


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "run")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process of ours, with a pipe each way."""
    started: list[subprocess.Popen] = []

    def start_one(*arguments: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=SHELL_ENVIRONMENT, stdin=pipe, stdout=pipe, text=True
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdin.close()
        process.stdout.close()


def ask(*arguments: str) -> subprocess.CompletedProcess:
    """The job, as a user calls it."""
    s3 = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FSSPEC_"))}
    command = [sys.executable, "jobs/status.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=SHELL_ENVIRONMENT | s3, capture_output=True, text=True, timeout=PATIENCE_S
    )


# --- how complete ---


def test_a_complete_run_is_told_as_such(folder):
    segments = folder.plan(8)
    folder.record(segments)
    status = read_status(folder.output_dir)
    assert status.is_complete
    (run,) = status.runs
    assert (run.kind, run.mode, run.num_windows) == ("labels", "inverse_dynamics", 8)
    told = folder.lines()
    for part in ("abc  labels", f"[{'#' * 30}] 100.0%  complete", "nvidia/Cosmos3-Nano (01234567)", "/data/droid"):
        assert part in told
    assert "8 planned = 8 recorded + 0 failed + 0 quarantined\n" in told + "\n"


def test_failures_are_counted_and_tolerated_as_far_as_the_manifest_says(folder):
    segments = folder.plan(8, settings={"max_failed_fraction": 0.25})
    folder.record(segments[:6])
    folder.fail(segments[6:7])
    assert not read_status(folder.output_dir).is_complete
    folder.fail(segments[7:], kind="quarantined", signal="SIGSEGV")
    assert read_status(folder.output_dir).is_complete
    assert "6 recorded + 1 failed + 1 quarantined" in folder.lines()
    folder.plan(8)
    status = read_status(folder.output_dir)
    assert not status.is_complete
    assert status.runs[0].problems() == [
        "1 segments failed and 1 were quarantined: 25.00% of the plan, 0.00% tolerated"
    ]
    assert "ended, with more failures than are tolerated" in folder.lines()


def test_all_but_one_is_not_rounded_up(folder):
    folder.record(folder.plan(2000)[:1])
    folder.plan(1)
    assert "100.0%  complete" in folder.lines()
    folder.plan(2000)
    assert "  0.0%  not finished" in folder.lines()
    assert "1 recorded + 0 failed + 0 quarantined + 1999 unfinished" in folder.lines()


def test_a_failure_that_a_record_has_overtaken_is_none(folder):
    segments = folder.plan(2)
    folder.fail(segments)
    folder.record(segments)
    status = read_status(folder.output_dir)
    assert status.is_complete
    assert status.runs[0].failures == ()


def test_runs_stand_beside_each_other_and_the_newest_comes_first(folder):
    folder.record(folder.plan(2, run_id="old", recipe={"mode": "policy", "chaining": "autoregressive"}))
    folder.record(folder.plan(4, run_id="mid", recipe={"chaining": "teacher_forced", "metrics_version": 1}))
    folder.plan(6, run_id="new")
    status = read_status(folder.output_dir)
    assert next((run.run_id, run.kind, run.is_complete) for run in status.runs) == ("new", "labels", False)
    assert {(run.run_id, run.kind, run.account.recorded) for run in status.runs[1:]} == {
        ("old", "rollouts", 2),
        ("mid", "evaluation", 4),
    }
    assert not status.is_complete
    assert "old  rollouts (policy)" in folder.lines()


def test_what_no_plan_asks_for_is_counted(folder):
    segments = folder.plan(4)
    folder.record([*segments, *(segment(number, run_id="gone") for number in range(3))])
    folder.fail([segment(9, run_id="gone")])
    status = read_status(folder.output_dir)
    assert (status.is_complete, status.records_of_others, status.failures_of_others) == (True, 3, 1)
    assert "3 records and 1 failure of other runs" in folder.lines()


def test_a_run_without_a_plan_is_not_complete(folder):
    segments = folder.plan(2)
    folder.record(segments)
    (open_path(folder.output_dir) / "plans" / "abc.parquet").unlink()
    status = read_status(folder.output_dir)
    assert (status.is_complete, status.records_of_others) == (False, 2)
    assert "there is no plan of this run" in folder.lines()
    assert "no plan" in verify(folder.output_dir, status.runs[0])[0]


# --- whether it is going on ---


def test_a_run_is_followed_and_then_killed(folder, start):
    segments = folder.plan(8)
    run = start("-c", RUN, folder.output_dir, "abc")
    assert run.stdout.readline() == "ready\n"
    for _ in range(3):
        run.stdin.write("\n")
        run.stdin.flush()
        assert run.stdout.readline() == "recorded\n"
    folder.tell()
    status = read_status(folder.output_dir)
    assert (status.is_going_on, status.runs[0].is_going_on, status.runs[0].account.recorded) == (True, True, 3)
    told = folder.lines()
    for part in (f"going on: run abc of {status.holding.state.holder.user}@", f"pid {run.pid}", "going on\n"):
        assert part in told
    assert "running: 3/8 windows, 0.25/s in the last minute, 17 min left; 1 segments failed" in told

    follower = start("jobs/status.py", folder.output_dir, "--follow", "--json")
    assert json.loads(follower.stdout.readline())["lease"]["is_alive"]
    run.send_signal(signal.SIGKILL)
    run.wait(PATIENCE_S)
    last = [json.loads(line) for line in follower.stdout][-1]
    assert (last["lease"]["is_alive"], last["runs"][0]["segments"]["recorded"]) == (False, 3)
    assert follower.wait(PATIENCE_S) == 1
    assert "died; the same command goes on from here" in folder.lines()
    assert "now " not in folder.lines(), "what a dead run told last is not how it is"

    folder.record(segments)
    assert ask(folder.output_dir).returncode == 0


def test_a_run_that_ends_is_followed_to_its_end(folder, start):
    folder.plan(2)
    run = start("-c", RUN, folder.output_dir, "abc")
    assert run.stdout.readline() == "ready\n"
    follower = start("jobs/status.py", folder.output_dir, "--follow")
    assert "1 run" in follower.stdout.readline()
    run.stdin.write("\n\n")
    run.stdin.close()
    assert run.wait(PATIENCE_S) == 0
    assert follower.wait(PATIENCE_S) == 0
    assert "100.0%  complete" in follower.stdout.read()


def test_a_holder_on_another_machine_is_judged_by_its_renewals(folder):
    folder.plan(2)
    watch = LeaseWatch(folder.output_dir)
    with hold_lease(folder.output_dir, run_id="abc", periods=Periods(renew_s=0.02), machine=ELSEWHERE) as lease:
        assert watch.look().is_alive, "it was renewed a moment ago, as its clock has it"
        counter = lease._state.counter
        while lease._state.counter < counter + 2:
            pass
        assert watch.look().why.startswith("renewed 0 s ago")
        path = open_path(folder.output_dir) / "lease" / "00000001.json"
        state = json.loads(path.read_text())
    assert watch.look() is None, "it was given back"
    long_ago = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    path.write_text(json.dumps(state | {"renewed_at": long_ago}))
    seen = LeaseWatch(folder.output_dir).look()
    assert (seen.is_alive, seen.why) == (False, "renewed 10800 s ago by the clock of its own machine")
    path.write_text(json.dumps(state | {"renewed_at": long_ago, "counter": state["counter"] + 1}))
    assert watch.look().is_alive, "what changes is alive, however wrong its clock is"


@pytest.mark.parametrize(
    "change", [{"windows_done": "3"}, {"at": "now"}, {"eta_s": []}, {"phase": 1}, {"windows_total": None}]
)
def test_progress_that_nobody_can_read_is_left_out(folder, change):
    folder.plan(2)
    with hold_lease(folder.output_dir, run_id="abc"):
        assert read_status(folder.output_dir).runs[0].live is None
        folder.tell()
        assert read_status(folder.output_dir).runs[0].live.windows_done == 3
        folder.tell(eta_s=None, windows_per_s=None)
        assert "rate not known yet, time left unknown" in folder.lines()
        folder.tell(**change)
        assert read_status(folder.output_dir).runs[0].live is None


# --- why it is not complete ---


def test_failures_are_grouped_by_their_type(folder):
    segments = folder.plan(40)
    folder.fail(segments[:30])
    crash = {"kind": "quarantined", "error_type": "ProcessDied", "attempts": 3, "signal": "SIGSEGV"}
    folder.fail(segments[30:32], **crash, last_words="Segmentation fault\x1b[2J")
    folder.fail(segments[32:33], error_type="ResultError", error="NaN")
    told = failure_lines(read_status(folder.output_dir).runs[0].failures, most=2)
    assert told == [
        "  failed      VideoError: 30 segments, episodes 0, 1, 2, 3, 4, 5, 6, 7 and 7 more",
        "    a.mp4: expected 9 frames, found 3.",
        "  quarantined ProcessDied: 2 segments, episode 15",
        "    a.mp4: expected 9 frames, found 3.",
        r"    SIGSEGV after 3 attempts: Segmentation fault\x1b[2J",
        "  … and 1 other type of error",
    ]


def test_merged_rows_are_verified(folder):
    segments = folder.plan(8)
    folder.record(segments)
    folder.merge(segments)
    assert verify(folder.output_dir, read_status(folder.output_dir).runs[0]) == []
    folder.merge(segments[:7])
    (problem,) = verify(folder.output_dir, read_status(folder.output_dir).runs[0])
    assert segments[7].key in problem
    folder.merge(segments, run_id="other")
    (problem,) = verify(folder.output_dir, read_status(folder.output_dir).runs[0])
    assert "labels/ holds the rows of another run, other" in problem
    with hold_lease(folder.output_dir, run_id="abc"):
        assert verify(folder.output_dir, read_status(folder.output_dir).runs[0]) == [], "its rows come at its end"


# --- the job ---


def test_exit_codes(folder, tmp_path, capsys):
    segments = folder.plan(4)
    folder.record(segments[:3])
    assert main([folder.output_dir]) == 1
    folder.record(segments)
    assert main([folder.output_dir]) == 0
    capsys.readouterr()
    assert main([folder.output_dir, "--verify"]) == 1
    assert "PROBLEM  " in capsys.readouterr().out
    folder.merge(segments)
    assert main([folder.output_dir, "--verify"]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "not there", "ftp://host/folder"):
        assert main([str(place)]) == 2
        told = capsys.readouterr()
        assert (told.out, "expected" in told.err) == ("", True)


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    folder.plan(4)
    job = f"{sys.executable} jobs/status.py {folder.output_dir} --json | head -c 1"
    answer = subprocess.run(job, shell=True, cwd=ROOT, env=SHELL_ENVIRONMENT, capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("{", "")


def test_programs_get_json_and_object_stores_are_read(s3, tmp_path):
    folder = Folder(s3.url(f"status/{tmp_path.name}"))
    segments = folder.plan(4)
    folder.record(segments[:2])
    folder.fail(segments[2:])
    folder.merge(segments[:2])
    answer = ask(folder.output_dir, "--json", "--failures", "5", "--verify")
    told = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert told["runs"][0]["segments"] == {
        "planned": 4,
        "recorded": 2,
        "failed": 2,
        "quarantined": 0,
        "unfinished": 0,
    }
    assert (told["failures"][0]["error_type"], told["failures"][0]["episodes"]) == ("VideoError", [1])
    assert told["problems"] == ["2 segments failed and 0 were quarantined: 50.00% of the plan, 0.00% tolerated"]


def test_nothing_that_came_from_data_reaches_the_terminal_raw(folder):
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\n"
    segments = folder.plan(
        2,
        checkpoint={"id": evil, "fingerprint": evil},
        dataset={"root": evil},
        recipe={"mode": evil, "chaining": evil},
    )
    folder.fail(segments, error_type=evil, error=evil, last_words=evil, signal=evil)
    with hold_lease(folder.output_dir, run_id=evil):
        answer = ask(folder.output_dir, "--failures", "3", "--verify")
    assert answer.returncode == 1
    assert all(letter == "\n" or letter.isprintable() for letter in answer.stdout + answer.stderr)
    assert r"\x1b[2J" in answer.stdout


@pytest.mark.parametrize("name", ["manifests/abc.json", "manifest.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_manifest_is_a_typed_error_that_names_it(folder, name, text, capsys):
    folder.plan(2)
    folder.write(name, text)
    assert main([folder.output_dir]) == 2
    assert name in capsys.readouterr().err


def test_a_manifest_of_another_shape_is_shown_as_far_as_it_goes(folder):
    folder.plan(2, checkpoint=[], dataset=None, recipe="text", settings={"max_failed_fraction": "all"})
    (run,) = read_status(folder.output_dir).runs
    assert (run.kind, run.checkpoint, run.max_failed_fraction) == ("labels", "", 0.0)
    assert json.dumps(to_json(read_status(folder.output_dir)))


def test_it_needs_nothing_that_takes_seconds_to_import(folder):
    segments = folder.plan(2)
    folder.record(segments)
    folder.fail(segments)
    script = "import sys; from jobs.status import main; main([sys.argv[1], '--failures', '1']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, folder.output_dir], cwd=ROOT, capture_output=True, text=True)
    assert "100.0%  complete" in done.stdout
    slow = {"torch", "ray", "diffusers", "transformers", "lerobot", "datasets", "pandas", "scipy"}
    assert slow.intersection(done.stdout.split()) == set()

"""One run per output folder: real processes contend, die, fall silent and come back, on a disk and on an S3 server."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell_environment import SHELL_ENVIRONMENT

from pipeline.errors import LeaseError, StorageError
from pipeline.outputs.holder import Holder, Machine
from pipeline.outputs.lease import Periods, hold_lease, read_lease
from pipeline.storage import list_files, open_path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
QUICK = Periods(renew_s=0.05, dead_after_s=0.6, settle_s=0.05)
SLOW = Periods(renew_s=0.05, dead_after_s=PATIENCE_S, settle_s=0.05)
ELSEWHERE = Machine(host="elsewhere", boot_id="another boot", pid_namespace="pid:[1]")

# Waits for a folder on a line of its own, tells how it fared, and holds on until the next line.
PRELUDE = """
import sys, threading
from pipeline.errors import LeaseError
from pipeline.outputs.holder import Machine
from pipeline.outputs.lease import Periods, hold_lease
elsewhere = Machine(host="elsewhere", boot_id="another boot", pid_namespace="pid:[1]")
periods = Periods(renew_s=0.05, dead_after_s=0.6, settle_s=0.05)
say = lambda *words: print(*words, flush=True)
"""
CONTENDER = f"""{PRELUDE}
say("ready")
for folder in sys.stdin:
    try:
        with hold_lease(folder.strip(), run_id=sys.argv[1], periods=periods):
            say("won")
            sys.stdin.readline()
    except LeaseError as error:
        say("refused", error)
        sys.stdin.readline()
    say("over")
"""
HOLDER = f"""{PRELUDE}
machine = elsewhere if sys.argv[2] == "elsewhere" else Machine.here()
with hold_lease(sys.argv[1], run_id="first", periods=periods, machine=machine, on_lost=lambda why: say("lost", why)):
    say("held")
    threading.Event().wait()
"""


class Process:
    """A script of ours that talks line by line."""

    def __init__(self, script: str, *arguments: object) -> None:
        s3 = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FSSPEC_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=ROOT,
            env=SHELL_ENVIRONMENT | s3,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def say(self, line: object = "") -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        return self._process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start_one(script: str, *arguments: object) -> Process:
        started.append(Process(script, *arguments))
        return started[-1]

    yield start_one
    for process in started:
        process.end()


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    return request.getfixturevalue("s3").url(f"leases/{tmp_path.name}")


def until(condition: Callable[[], object]) -> object:
    """What `condition` gives once it gives something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return value


def lease_files(folder: str) -> list[str]:
    return sorted(list_files(open_path(folder) / "lease"))


def leave_dead(folder: str, start: Callable[..., Process], where: str = "here") -> Process:
    """A holder that was killed without a word."""
    holder = start(HOLDER, folder, where)
    assert holder.hear() == "held"
    holder.send(signal.SIGKILL)
    holder.wait()
    return holder


def test_of_several_that_start_at_once_exactly_one_wins(folder, start):
    rounds, after_a_death = (12, 4) if not folder.startswith("s3") else (2, 1)
    contenders = [start(CONTENDER, name) for name in ("a", "b", "c")]
    assert [contender.hear() for contender in contenders] == ["ready"] * 3
    for number in range(rounds):
        place = f"{folder}/{number}"
        if number < after_a_death:
            leave_dead(place, start)
        for contender in contenders:
            contender.say(place)
        told = sorted(contender.hear().split(" ", 1)[0] for contender in contenders)
        assert told == ["refused", "refused", "won"]
        for contender in contenders:
            contender.say()
        assert {contender.hear() for contender in contenders} == {"over"}
        assert read_lease(place).released


def test_who_is_refused_is_told_by_whom_since_when_and_what_to_do(tmp_path, start):
    holder = start(HOLDER, tmp_path, "here")
    holder.hear()
    with pytest.raises(LeaseError) as refusal, hold_lease(tmp_path, run_id="second"):
        pass
    state = read_lease(tmp_path)
    told = str(refusal.value)
    for part in ("run first", f"{state.holder.user}@{state.holder.host}", f"pid {holder.pid}", state.holder.since):
        assert part in told
    for part in (str(tmp_path), "--output_dir", f"kill {holder.pid}"):
        assert part in told
    assert lease_files(str(tmp_path)) == ["00000001.json"]


def test_the_process_that_holds_it_cannot_take_it_a_second_time(tmp_path):
    with (
        hold_lease(tmp_path, run_id="first"),
        pytest.raises(LeaseError, match=f"pid {os.getpid()}"),
        hold_lease(tmp_path, run_id="second"),
    ):
        pass


def test_the_lease_of_a_killed_holder_is_taken_at_once_and_told(folder, start):
    holder = leave_dead(folder, start)
    with hold_lease(folder, run_id="second", periods=SLOW) as lease:
        assert (lease.taken_from.pid, lease.taken_from.run_id) == (holder.pid, "first")
        assert lease_files(folder) == ["00000002.json"]
    with hold_lease(folder, run_id="third", periods=SLOW) as lease:
        assert lease.taken_from is None, "the second gave it back"


def test_a_holder_that_was_killed_and_not_yet_buried_is_dead(tmp_path, start):
    holder = start(HOLDER, tmp_path, "here")
    holder.hear()
    holder.send(signal.SIGKILL)
    until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
    with hold_lease(tmp_path, run_id="second", periods=SLOW) as lease:
        assert lease.taken_from.pid == holder.pid


def test_another_process_under_the_same_number_is_not_the_holder():
    here = Machine.here()
    me = Holder.here("run", here)
    assert me.sign_of_life(seen_from=here) == "alive"
    assert Holder(**{**vars(me), "started_s": me.started_s - 100}).sign_of_life(seen_from=here) == "dead"
    assert me.sign_of_life(seen_from=ELSEWHERE) == "unknown"


def test_a_living_holder_on_another_machine_is_found_out_by_watching(folder):
    said = []
    with (
        hold_lease(folder, run_id="first", periods=SLOW, machine=ELSEWHERE),
        pytest.raises(LeaseError, match="@elsewhere"),
        hold_lease(folder, run_id="second", periods=SLOW, say=said.append),
    ):
        pass
    assert ["still renewed" in text for text in said] == [True]


def test_a_silent_holder_on_another_machine_is_dead(folder, start):
    leave_dead(folder, start, "elsewhere")
    began = time.monotonic()
    with hold_lease(folder, run_id="second", periods=QUICK) as lease:
        assert time.monotonic() - began >= QUICK.dead_after_s
        assert lease.taken_from.host == "elsewhere"


def test_a_holder_that_gives_back_while_it_is_watched_is_followed_at_once(tmp_path):
    is_watched = threading.Event()
    first = hold_lease(tmp_path, run_id="first", periods=Periods(renew_s=PATIENCE_S / 2), machine=ELSEWHERE)
    first.__enter__()
    giver = threading.Thread(target=lambda: is_watched.wait(PATIENCE_S) and first.__exit__(None, None, None))
    giver.start()
    patient = Periods(renew_s=0.05, dead_after_s=PATIENCE_S)
    with hold_lease(tmp_path, run_id="second", periods=patient, say=lambda text: is_watched.set()) as lease:
        assert lease.taken_from is None
    giver.join()


def test_a_holder_that_was_suspended_learns_that_it_was_taken_for_dead(tmp_path, start):
    sleeper = start(HOLDER, tmp_path, "elsewhere")
    sleeper.hear()
    sleeper.send(signal.SIGSTOP)
    with hold_lease(tmp_path, run_id="second", periods=QUICK) as lease:
        sleeper.send(signal.SIGCONT)
        assert sleeper.hear().startswith("lost")
        time.sleep(3 * QUICK.renew_s)
        lease.check()
    assert read_lease(tmp_path).holder.run_id == "second"


def test_a_holder_that_finds_a_successor_is_told_who_it_is(tmp_path):
    reasons, lost = [], threading.Event()
    with hold_lease(tmp_path, run_id="first", periods=SLOW, on_lost=lambda why: (reasons.append(why), lost.set())):
        state = json.loads((tmp_path / "lease" / "00000001.json").read_text())
        successor = state | {"token": "other", "holder": state["holder"] | {"run_id": "second"}}
        (tmp_path / "lease" / "00000002.json").write_text(json.dumps(successor))
        assert lost.wait(PATIENCE_S)
    assert ["run second" in reason for reason in reasons] == [True]
    assert not read_lease(tmp_path).released


def test_a_process_that_was_suspended_and_not_missed_goes_on(tmp_path, start):
    sleeper = start(HOLDER, tmp_path, "here")
    sleeper.hear()
    sleeper.send(signal.SIGSTOP)
    time.sleep(1.5 * QUICK.dead_after_s)
    counter = read_lease(tmp_path).counter
    sleeper.send(signal.SIGCONT)
    until(lambda: read_lease(tmp_path).counter > counter + 2)


def test_a_holder_whose_lease_was_deleted_stops_and_leaves_nothing(tmp_path):
    lost = threading.Event()
    with hold_lease(tmp_path, run_id="first", periods=QUICK, on_lost=lambda why: lost.set()) as lease:
        (tmp_path / "lease" / "00000001.json").unlink()
        assert lost.wait(PATIENCE_S)
        with pytest.raises(LeaseError, match="deleted"):
            lease.check()
    assert [name for name in lease_files(str(tmp_path)) if not name.startswith(".")] in ([], ["00000001.json"])


def test_a_store_that_overwrites_leaves_one_holder(tmp_path):
    """Of two that both believe they created the file, the one whose words are not in it gives way."""
    lost = threading.Event()
    with hold_lease(tmp_path, run_id="first", periods=QUICK, on_lost=lambda why: lost.set()):
        path = tmp_path / "lease" / "00000001.json"
        other = json.loads(path.read_text()) | {"token": "of another"}
        until(lambda: lost.is_set() or (path.write_text(json.dumps(other)) and lost.wait(0.2)))
    assert json.loads(path.read_text())["token"] == "of another", "the loser does not release what is not its own"


def test_a_storage_that_fails_for_a_while_is_tolerated(s3):
    place = s3.url("leases/fails-for-a-while")
    with hold_lease(place, run_id="first", periods=SLOW) as lease:
        with s3.fail(every=1, kinds=("error_500",)):
            failures = s3.failures
            until(lambda: s3.failures > failures + 1)
        before = read_lease(place).counter
        until(lambda: read_lease(place).counter > before)
        lease.check()


def test_a_storage_that_stays_away_costs_the_lease(s3):
    reasons, lost = [], threading.Event()
    with hold_lease(
        s3.url("leases/stays-away"),
        run_id="first",
        periods=QUICK,
        on_lost=lambda why: (reasons.append(why), lost.set()),
    ) as lease:
        with s3.fail(every=1, kinds=("error_500",)):
            assert lost.wait(PATIENCE_S)
        with pytest.raises(LeaseError, match=r"could not be renewed for 0\.6 s"):
            lease.check()
    assert len(reasons) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"holder": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_lease_file_that_nobody_can_read_is_watched_and_taken(tmp_path, content):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000007.json").write_bytes(content)
    assert read_lease(tmp_path) is None
    with hold_lease(tmp_path, run_id="second", periods=Periods(renew_s=0.02, dead_after_s=0.1)) as lease:
        assert (lease.taken_from, lease.generation) == (None, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"pid": -1},
        {"pid": 10**30},
        {"pid": "1"},
        {"started_s": float("nan")},
        {"host": 3},
    ],
)
def test_a_holder_that_cannot_be_is_no_holder(tmp_path, change):
    with hold_lease(tmp_path, run_id="first"):
        pass
    path = tmp_path / "lease" / "00000001.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"holder": state["holder"] | change}))
    assert read_lease(tmp_path) is None


def test_it_is_given_back_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), hold_lease(tmp_path, run_id="first"):
        1 / 0  # noqa: B018
    assert read_lease(tmp_path).released
    with hold_lease(tmp_path, run_id="second") as lease:
        assert lease.taken_from is None


def test_it_is_given_back_also_on_a_disk_that_is_full_by_now(tmp_path, monkeypatch):
    def full(path: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with hold_lease(tmp_path, run_id="first"):
        monkeypatch.setattr("pipeline.outputs.lease.write_atomically", full)
    monkeypatch.undo()
    with hold_lease(tmp_path, run_id="second") as again:
        assert again.taken_from is None


def test_a_forked_child_gives_nothing_back_and_a_waiting_lease_keeps_no_process_alive(tmp_path, start):
    script = f"""{PRELUDE}
import os
lease = hold_lease(sys.argv[1], run_id="first", periods=periods)
lease.__enter__()
child = os.fork()
if not child:
    lease.__exit__(None, None, None)
    os._exit(0)
os.waitpid(child, 0)
from pipeline.outputs.lease import read_lease
say(read_lease(sys.argv[1]).released)
"""
    process = start(script, tmp_path)
    assert process.hear() == "False"
    assert process.wait() == 0


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="lease"), hold_lease(tmp_path / "file", run_id="first"):
        pass

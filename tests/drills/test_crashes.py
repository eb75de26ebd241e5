"""Real kills of real processes. Each ends with an undisturbed run's labels, and every segment is accounted for."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
from deadly import DeadlyInfer, DeadlyLoad
from drill import (
    PATIENCE_S,
    SIXTY_FOUR,
    THIRTY,
    Drill,
    assert_conserved,
    assert_equal_labels,
    kill,
    processes,
    raylet_of,
    register_process,
    wait_for,
)

from pipeline.errors import PipelineError, StorageError
from pipeline.labelling import label
from pipeline.outputs.summary import Summary
from pipeline.stages.on_ray import MAX_TASK_RETRIES

# About as long as a run takes to start on two cores.
START_S = 40

pytestmark = pytest.mark.drill


@pytest.fixture
def drill(undisturbed, tmp_path) -> Drill:
    return Drill(undisturbed.dataset, undisturbed.checkpoint, tmp_path / "out", THIRTY)


@pytest.fixture
def joined(cluster):
    """This process is the driver."""
    with ray.init(address=cluster.address, log_to_driver=False):
        yield cluster


def test_poisonous_segments_die_alone_and_are_quarantined_with_their_signals(joined, drill, undisturbed):
    """One breaks the decoder's process, one the engine's. Their mates, which died with them, are labelled."""
    drill.flags = SIXTY_FOUR
    prepared = drill.prepare()
    in_decoder, in_engine = (prepared.missing[number].key for number in (3, 40))
    road = prepared.road()
    deadly = replace(road, load=(DeadlyLoad, (*road.load[1], in_decoder)), infer=(DeadlyInfer, (in_engine,)))
    summary = label(replace(prepared, road=lambda: deadly))

    counts = summary.segments
    assert counts["planned"] == len(prepared.missing) == 64
    assert (counts["recorded"], counts["failed"], counts["quarantined"]) == (counts["planned"] - 2, 0, 2)
    outcomes = {outcome["key"]: outcome for outcome in summary.failures}
    assert (outcomes[in_decoder]["kind"], outcomes[in_decoder]["signal"]) == ("quarantined", "SIGSEGV")
    assert "string_at" in outcomes[in_decoder]["last_words"], "where it died"
    assert (outcomes[in_engine]["kind"], outcomes[in_engine]["signal"]) == ("quarantined", "SIGKILL")
    assert "met its poison" in outcomes[in_engine]["last_words"]
    for outcome in outcomes.values():
        assert 2 <= outcome["attempts"] <= MAX_TASK_RETRIES + 2
    assert 2 <= summary.restarts <= 2 * (MAX_TASK_RETRIES + 1)
    assert summary.exit_code == 1
    assert "2 were quarantined" in summary.render()

    assert drill.prepare().missing == [], "what is in quarantine is not tried again by itself"
    again = drill.prepare("--retry_failed")
    assert {segment.key for segment in again.missing} == {in_decoder, in_engine}
    healed = label(again)
    assert (healed.exit_code, healed.segments["recorded"]) == (0, counts["planned"])
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def test_a_loader_and_an_engine_killed_amid_their_work_cost_nothing(joined, drill, undisturbed):
    prepared, killed = drill.prepare("--ray.num_engines", "2"), []

    def kill(name: str) -> None:
        wait_for(lambda: any(processes(name)), f"{name} at work")
        killed.append(next(processes(name)))
        os.kill(killed[-1], signal.SIGKILL)

    def kill_one_of_each() -> None:
        kill("Load")  # at once: it is done with everything long before the engines are there
        wait_for(lambda: drill.num_records() >= 3, "the first records")
        kill("Infer")

    hand = threading.Thread(target=kill_one_of_each)
    hand.start()
    summary = label(prepared)
    hand.join()
    assert len(killed) == 2
    assert summary.exit_code == 0, summary.render()
    assert summary.restarts >= 2
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def test_a_lost_node_costs_nothing(joined, drill, undisturbed):
    """Two nodes with a place for an engine each; one whose engine is at work goes, with all that ran on it."""
    nodes = {raylet_pid(node): node for node in (joined.add_node(num_cpus=2, resources={"engine": 1}) for _ in "ab")}
    prepared = drill.prepare("--ray.engine_resource", "engine", "--ray.num_engines", "2")
    joining, spread, books = set(nodes), set(), []

    def lose_a_node() -> None:
        wait_for(lambda: drill.num_records() >= 3, "the first records")
        spread.update(raylet_of(process) for process in processes("Infer", ready=False))
        books.append(raylet_of(register_process()))
        at_work = raylet_of(next(processes("Infer")))
        joined.remove_node(nodes.pop(at_work), allow_graceful=False)

    hand = threading.Thread(target=lose_a_node)
    hand.start()
    try:
        summary = label(prepared)
        hand.join()
    finally:
        for node in nodes.values():
            joined.remove_node(node)
    assert len(nodes) == 1
    assert len(spread) == 2, "engines are spread over nodes"
    assert joining.isdisjoint(books), "a run's books are kept where its driver is"
    assert summary.exit_code == 0, summary.render()
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def raylet_pid(node: object) -> int:
    [raylet] = node.all_processes["raylet"]
    return raylet.process.pid


@pytest.mark.timeout(1800)  # eleven runs: nine minutes on two cores, and longer on busy ones
def test_ten_drivers_in_a_row_are_killed_at_random_moments(cluster, drill, undisturbed):
    """Every other one while it starts, all of them after a few records at the latest: work is left for the last one."""
    drill.flags = (*SIXTY_FOUR, "--engine.batch_size", "2")
    moments, left = random.Random(5), {}
    for number in range(10):
        process = drill.start(cluster.address)
        until = time.monotonic() + moments.uniform(0, START_S) if number % 2 else math.inf
        enough = len(left) + moments.randint(1, 4)
        wait_for(lambda u=until, e=enough: time.monotonic() > u or drill.num_records() >= e, "records, or the moment")
        kill(process)
        assert left.items() <= drill.records().items(), "finished work was lost, or done again"
        left = drill.records()
    # A driver's actors outlive it by a moment, and may bring a last record to its end.
    wait_for(lambda: not [*processes("Infer", ready=False), *processes("Record", ready=False)], "the last ones' end")
    left = drill.records()
    assert 5 <= len(left) < 64, "work was to be left for the last one"
    code, told = drill.run(cluster.address)
    assert code == 0, told
    assert f"({len(left)} were there already)" in told
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def test_of_two_runs_at_once_one_is_refused_and_the_other_ends_in_order_when_it_is_told_to(cluster, drill, undisturbed):
    two = [drill.start(cluster.address) for _ in range(2)]
    wait_for(lambda: any(process.poll() is not None for process in two), "a refusal")
    [refused] = [process for process in two if process.poll() is not None]
    [running] = [process for process in two if process is not refused]
    _, refusal = refused.communicate()
    assert refused.returncode == 2, refusal
    assert refusal.startswith("LeaseError")
    assert f"pid {running.pid}" in refusal, "who holds it"

    wait_for(lambda: drill.num_records() >= 2, "the first records")
    os.kill(running.pid, signal.SIGTERM)
    out, error = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 3, out + error
    assert "Traceback" not in out + error
    summary = drill.summary()
    assert summary["signal"] == "SIGTERM"
    assert summary["segments"]["unfinished"] == summary["segments"]["planned"] - drill.num_records() > 0

    code, told = drill.run(cluster.address)
    assert code == 0, told
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(joined, drill, undisturbed, small_disk):
    drill.output_dir = small_disk.folder / "out"
    with pytest.raises(PipelineError, match=r"full|No space"):
        raise_or_return(label(drill.prepare()))
    left = drill.num_records()
    small_disk.grow()
    summary = label(drill.prepare())
    assert summary.exit_code == 0, summary.render()
    assert summary.segments["recorded_earlier"] == left
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill)


def raise_or_return(summary: Summary) -> None:
    """A run that stops in order tells of the disk in its summary; one that cannot even write that raises."""
    assert summary.exit_code == 1
    raise StorageError(summary.stopped_by)


@dataclass(frozen=True)
class SmallDisk:
    folder: Path

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=False)

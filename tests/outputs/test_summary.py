"""The end of a run: every planned segment is accounted for, and its failure says why."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.labels import label_table
from pipeline.outputs.summary import Summary, Tally, write_summary
from pipeline.plan import Plan, Segment, make_plan
from pipeline.recipe import make_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

LENGTHS = (5, 9, 13)
ERROR = "episode 1, camera 'video': /data/1.mp4 is damaged"


class Run:
    """A real dataset, its plan, and the summary of whatever a test says happened."""

    def __init__(self, root: Path) -> None:
        for number, length in enumerate(LENGTHS):
            write_video(root / f"{number}.mp4", range(length))
        self.dataset = open_dataset(root)
        config = LabelConfig(
            dataset=DatasetConfig(cameras=("video",)), action_normalization="none", action_chunk_size=4, image_size=256
        )
        self.recipe = make_recipe(config, self.dataset, "weights")
        self.plan: Plan = make_plan(self.dataset, self.recipe, max_segment_bytes=64 * 1024**2)
        self.keys = [segment.key for segment in self.plan.segments]

    def summary(self, tally: Tally, recorded: list[str]) -> Summary:
        checks = LabelChecks(self.recipe)
        for segment in self.plan.segments:
            if segment.key in recorded:
                checks.add(label_table(inferred(segment), self.recipe))
        return Summary.of(self.dataset, self.recipe, self.plan, tally, checks, recorded=set(recorded))


def inferred(segment: Segment) -> dict:
    action = np.tile(np.float32([0, 0, 0, 1, 0, 0, 0, 1, 0, 0.5]), (len(segment.window_starts), 4, 1))
    times = np.arange(segment.num_positions) / 15
    return {**vars(segment), "timestamps": times, "action": action, "action_normalized": action}


def status(segment: Segment, error: str = "", error_type: str = "") -> dict:
    return segment.to_row() | {
        "load_s": 0.5,
        "infer_s": 2.0,
        "record_s": 0.25,
        "error": error,
        "error_type": error_type,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("summary"))


@pytest.fixture
def all_done(run) -> Summary:
    tally = Tally(run.plan.segments)
    for segment in run.plan.segments:
        tally.add(status(segment))
    tally.wall_s = 3.0
    return run.summary(tally, run.keys)


@pytest.fixture
def one_failed(run) -> Summary:
    tally = Tally(run.plan.segments)
    for segment in run.plan.segments:
        tally.add(status(segment, *(ERROR, "VideoError") if segment.episode_index == 1 else ()))
    tally.wall_s = 2.0
    return run.summary(tally, [run.keys[0], run.keys[2]])


def test_a_tally_counts_windows_failures_and_time(run):
    tally = Tally(run.plan.segments)
    assert tally.num_windows == 1 + 2 + 3
    tally.add(status(run.plan.segments[2]))
    tally.add(status(run.plan.segments[1], ERROR, "VideoError"))
    assert tally.windows_done == 3
    assert tally.failures == {run.keys[1]: ("VideoError", ERROR)}
    assert tally.seconds == {"load": 1.0, "infer": 4.0, "record": 0.5}


def test_everything_recorded_is_complete(all_done):
    assert all_done.segments == {"planned": 3, "recorded": 3, "failed": 0, "recorded_earlier": 0}
    assert all_done.is_complete
    assert all_done.failures == []
    assert all_done.windows == {"planned": 6, "done_now": 6}
    assert all_done.windows_per_s == 2.0
    assert (all_done.results["rows"], all_done.results["valid_actions"]) == (27, 24)
    assert all_done.empty_tasks == 3
    assert "3 episodes have an empty task text" in all_done.warnings[0]


def test_planned_is_recorded_plus_failed_and_the_failure_says_why(run, one_failed):
    counts = one_failed.segments
    assert counts["planned"] == counts["recorded"] + counts["failed"] == 3
    assert not one_failed.is_complete
    [failure] = one_failed.failures
    assert failure == {
        "key": run.keys[1],
        "episode_index": 1,
        "positions": [0, 8],
        "error_type": "VideoError",
        "error": ERROR,
    }
    assert one_failed.windows == {"planned": 6, "done_now": 4}
    assert one_failed.windows_per_s == 2.0


def test_a_segment_nobody_spoke_for_has_lost_its_process(run):
    tally = Tally(run.plan.segments)
    tally.add(status(run.plan.segments[0]))
    summary = run.summary(tally, run.keys[:1])
    assert [failure["episode_index"] for failure in summary.failures] == [1, 2]
    assert {failure["error_type"] for failure in summary.failures} == {"ProcessDied"}
    assert "--max_segment_mib" in summary.failures[0]["error"]
    assert not summary.is_complete


def test_a_run_that_was_stopped_says_so_for_what_it_did_not_reach(run):
    tally = Tally(run.plan.segments, stopped_by="Ray gave up on a stage: no such checkpoint.")
    tally.add(status(run.plan.segments[0], ERROR, "VideoError"))
    failures = run.summary(tally, []).failures
    assert [failure["error_type"] for failure in failures] == ["VideoError", "StageError", "StageError"]
    assert failures[2]["error"] == "Ray gave up on a stage: no such checkpoint."


def test_a_good_word_without_a_record_is_a_failure(run):
    """The record on disk is the only truth about what is done."""
    tally = Tally(run.plan.segments)
    for segment in run.plan.segments:
        tally.add(status(segment))
    summary = run.summary(tally, run.keys[:2])
    assert summary.segments["failed"] == 1
    assert not summary.is_complete


def test_a_record_that_was_there_is_not_counted_as_work_of_this_run(run):
    tally = Tally(run.plan.missing(run.keys[:2]))
    tally.add(status(run.plan.segments[2]))
    summary = run.summary(tally, run.keys)
    assert summary.segments == {"planned": 3, "recorded": 3, "failed": 0, "recorded_earlier": 2}
    assert summary.windows["done_now"] == 3


def test_nothing_left_to_do_is_complete_and_says_so(run):
    summary = run.summary(Tally([]), run.keys)
    assert summary.is_complete
    assert summary.windows_per_s is None
    assert "nothing was left to do" in summary.render()


def test_a_run_that_failed_altogether_does_not_say_that_nothing_was_left_to_do(run):
    tally = Tally(run.plan.segments, wall_s=5.0)
    for segment in run.plan.segments:
        tally.add(status(segment, ERROR, "VideoError"))
    rendered = run.summary(tally, []).render()
    assert "0 recorded + 3 failed" in rendered
    assert "nothing was left to do" not in rendered


def test_render_names_the_file_that_failed(one_failed):
    rendered = one_failed.render()
    assert "3 planned = 2 recorded + 1 failed" in rendered
    assert "FAILED     episode 1: VideoError: " in rendered
    assert "/data/1.mp4" in rendered
    assert "WARNING" in rendered


def test_render_tells_each_error_once_with_its_episodes(run):
    many = Plan(tuple(run.plan.segments) * 5, 0)
    summary = Summary.of(run.dataset, run.recipe, many, Tally(many.segments), LabelChecks(run.recipe), recorded=set())
    [line] = [line for line in summary.render().splitlines() if line.startswith("FAILED")]
    assert f"{summary.episodes} episodes (" in line
    assert line.count("ProcessDied") == 1


def test_render_shows_the_first_errors_and_counts_the_rest(run):
    segments = [replace(run.plan.segments[0], key=str(number), episode_index=number) for number in range(15)]
    tally = Tally(segments)
    tally.failures = {str(number): ("VideoError", f"file {number}") for number in range(15)}
    summary = Summary.of(
        run.dataset, run.recipe, Plan(tuple(segments), 0), tally, LabelChecks(run.recipe), recorded=set()
    )
    lines = [line for line in summary.render().splitlines() if line.startswith("FAILED")]
    assert len(lines) == 11
    assert "episode 0: VideoError: file 0" in lines[0]
    assert "5 more errors: see summary.json" in lines[-1]


@pytest.mark.parametrize("name", ["all_done", "one_failed", "nothing"])
def test_summary_json_is_strict_json(run, tmp_path, request, name):
    summary = run.summary(Tally(run.plan.segments), []) if name == "nothing" else request.getfixturevalue(name)
    write_summary(tmp_path, summary)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert read["segments"] == summary.segments
    assert read["failures"] == summary.failures
    assert read["run_id"] == run.recipe.run_id
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]

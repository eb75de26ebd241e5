"""The end of a run: every planned segment is accounted for, and its failure says why."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.outputs.accounting import account
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.labels import label_table
from pipeline.outputs.summary import Summary, Tally, write_summary
from pipeline.plan import Plan, Segment, make_plan
from pipeline.recipe import make_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video
from outcome_samples import outcome_of

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

    def summary(
        self, tally: Tally, recorded: list[str], *, plan: Plan | None = None, tolerated: float = 0.0
    ) -> Summary:
        """`recorded` are the keys with a record; what the tally knows of failures is what is on disk."""
        plan, checks = plan or self.plan, LabelChecks(self.recipe)
        for segment in plan.segments:
            if segment.key in recorded:
                checks.add(label_table(inferred(segment), self.recipe))
        outcomes = [outcome for key, outcome in tally.outcomes.items() if key not in recorded]
        accounted = account([segment.key for segment in plan.segments], set(recorded), outcomes)
        return Summary.of(
            *(self.dataset, self.recipe, plan, tally, checks),
            account=accounted,
            outcomes=outcomes,
            max_failed_fraction=tolerated,
        )


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
        failed = segment.episode_index == 1
        tally.add(status(segment, *(ERROR, "VideoError") if failed else ()))
        if failed:
            tally.add_outcome(outcome_of(segment, error=ERROR))
    tally.wall_s = 2.0
    return run.summary(tally, [run.keys[0], run.keys[2]])


def test_a_tally_counts_windows_failures_and_time(run):
    tally = Tally(run.plan.segments)
    assert tally.num_windows == 1 + 2 + 3
    tally.add(status(run.plan.segments[2]))
    tally.add(status(run.plan.segments[1], ERROR, "VideoError"))
    tally.add_outcome(outcome_of(run.plan.segments[1], error=ERROR))
    tally.add_outcome(outcome_of(run.plan.segments[0], kind="quarantined"))
    assert (tally.windows_done, tally.windows_lost, tally.num_quarantined) == (3, 1 + 2, 1)
    assert list(tally.outcomes) == [run.keys[1], run.keys[0]]
    assert tally.seconds == {"load": 1.0, "infer": 4.0, "record": 0.5}


def test_everything_recorded_is_complete(all_done):
    assert all_done.segments == counts(planned=3, recorded=3)
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
    assert failure == asdict(outcome_of(run.plan.segments[1], error=ERROR))
    assert (failure["positions"], failure["error"]) == ((0, 8), ERROR)
    assert one_failed.windows == {"planned": 6, "done_now": 4}
    assert one_failed.windows_per_s == 2.0


def test_a_segment_nobody_spoke_for_is_unfinished_and_named(run):
    tally = Tally(run.plan.segments)
    tally.add(status(run.plan.segments[0]))
    summary = run.summary(tally, run.keys[:1])
    assert summary.segments == counts(planned=3, recorded=1, unfinished=2)
    assert (summary.is_complete, summary.exit_code) == (False, 1)
    [problem] = summary.problems
    assert run.keys[1] in problem
    assert run.keys[2] in problem
    assert f"INCOMPLETE {problem}" in summary.render()


def test_a_run_that_was_stopped_says_why(run):
    tally = Tally(run.plan.segments, stopped_by="Ray gave up on a stage: no such checkpoint.")
    summary = run.summary(tally, [])
    assert summary.exit_code == 1
    assert "STOPPED    Ray gave up on a stage: no such checkpoint." in summary.render()
    assert run.summary(tally, run.keys).exit_code == 1, "not even where nothing was left"


def test_a_signal_has_an_exit_code_of_its_own(run):
    tally = Tally(run.plan.segments, stopped_by="SIGTERM came.", signal="SIGTERM")
    assert run.summary(tally, run.keys[:1]).exit_code == 3


def test_a_good_word_without_a_record_is_unfinished(run):
    """The record on disk is the only truth about what is done."""
    tally = Tally(run.plan.segments)
    for segment in run.plan.segments:
        tally.add(status(segment))
    summary = run.summary(tally, run.keys[:2])
    assert summary.segments["unfinished"] == 1
    assert not summary.is_complete


@pytest.mark.parametrize(("tolerated", "exit_code"), [(0.0, 1), (0.33, 1), (0.34, 0), (1.0, 0)])
def test_failures_are_tolerated_up_to_a_fraction(run, tolerated, exit_code):
    tally = Tally(run.plan.segments)
    tally.add_outcome(outcome_of(run.plan.segments[1], kind="quarantined", signal="SIGSEGV"))
    summary = run.summary(tally, [run.keys[0], run.keys[2]], tolerated=tolerated)
    assert summary.exit_code == exit_code
    assert summary.segments == counts(planned=3, recorded=2, quarantined=1)
    assert "--retry_failed" in summary.render()


def counts(**given: int) -> dict[str, int]:
    names = ("planned", "recorded", "failed", "quarantined", "unfinished", "recorded_earlier")
    return {name: given.get(name, 0) for name in names}


def test_a_record_that_was_there_is_not_counted_as_work_of_this_run(run):
    tally = Tally(run.plan.missing(run.keys[:2]))
    tally.add(status(run.plan.segments[2]))
    summary = run.summary(tally, run.keys)
    assert summary.segments == counts(planned=3, recorded=3, recorded_earlier=2)
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
        tally.add_outcome(outcome_of(segment, error=ERROR))
    rendered = run.summary(tally, []).render()
    assert "0 recorded + 3 failed" in rendered
    assert "nothing was left to do" not in rendered


def test_render_names_the_file_that_failed(one_failed):
    rendered = one_failed.render()
    assert "3 planned = 2 recorded + 1 failed + 0 quarantined" in rendered
    assert "FAILED     episode 1: VideoError: " in rendered
    assert "/data/1.mp4" in rendered
    assert "WARNING" in rendered


def test_render_tells_each_error_once_with_its_episodes(run):
    tally = Tally(run.plan.segments)
    for segment in run.plan.segments:
        tally.add_outcome(outcome_of(segment, error=ERROR))
    [line] = [line for line in run.summary(tally, []).render().splitlines() if line.startswith("FAILED")]
    assert "3 episodes (0, 1, 2): VideoError" in line
    assert line.count("damaged") == 1


def test_render_shows_the_first_errors_and_counts_the_rest(run):
    segments = tuple(replace(run.plan.segments[0], key=str(number), episode_index=number) for number in range(15))
    tally = Tally(segments)
    for number, segment in enumerate(segments):
        tally.add_outcome(outcome_of(segment, error=f"file {number}"))
    rendered = run.summary(tally, [], plan=Plan(segments, 0)).render()
    lines = [line for line in rendered.splitlines() if line.startswith("FAILED")]
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
    assert read["failures"] == json.loads(json.dumps(summary.failures))
    assert read["run_id"] == run.recipe.run_id
    assert json.loads((tmp_path / "summaries" / f"{run.recipe.run_id}.json").read_text()) == read

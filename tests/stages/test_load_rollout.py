"""What rollouts and evaluations load: exactly the frames that they start from, and the actions that go with them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded_columns import droid_actions, record

from pipeline.action_files import write_action_file
from pipeline.action_sources import open_action_source
from pipeline.actions import standing_still
from pipeline.config import DatasetConfig, RolloutConfig
from pipeline.datasets import open_dataset
from pipeline.plan import Plan
from pipeline.recipe import EvaluationRecipe, RolloutRecipe, make_recipe
from pipeline.rollout_plan import plan_dreams, plan_evaluation, plan_rollouts
from pipeline.stages.load import LoadEvaluation, LoadStart

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import Made, make_v3, read_ids, write_video

CHUNK = 4
LENGTHS = (30, 10, 3, 1)
STARTS = np.cumsum([0, *LENGTHS])
ROT6D_STARTS = (3,)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Four episodes with DROID's actions in a column; row r of it is `droid_actions(...)[r]`."""
    made = make_v3(tmp_path_factory.mktemp("load") / "dataset", LENGTHS, per_file=4, codec="libx264", gop=12)
    record(made.root, {"action": droid_actions(sum(LENGTHS))})
    return made


def actions_of(episode: int) -> np.ndarray:
    """float64 [LENGTHS[episode] - 1, 10] as recorded."""
    every = droid_actions(sum(LENGTHS)).astype(np.float32).astype(np.float64)
    return every[STARTS[episode] : STARTS[episode + 1] - 1]


def recipe_of(root: Path, chaining: str = "autoregressive", mode: str = "forward_dynamics", **changes) -> RolloutRecipe:
    dataset = open_dataset(root)
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK, "image_size": 256} | changes
    config = RolloutConfig(dataset=DatasetConfig(cameras=dataset.cameras[:1]), **settings)
    return RolloutRecipe(**vars(make_recipe(config, dataset, "weights", mode=mode)), chaining=chaining, actions={})


def started(root: Path, recipe: RolloutRecipe, choice: str = "recorded") -> list[dict]:
    dataset = open_dataset(root)
    source = open_action_source(choice, dataset, recipe)
    plan = plan_rollouts(dataset, recipe, source, num_samples=1)
    load = LoadStart(str(root), "auto", recipe, source)
    return [load(segment.to_row()) for segment in plan.segments]


def evaluation_of(root: Path, *, mib: float = 64, episodes=(0, 1, 2), **changes) -> tuple[Plan, LoadEvaluation]:
    dataset, recipe = open_dataset(root), recipe_of(root, "teacher_forced", **changes)
    recipe = EvaluationRecipe(**vars(recipe), num_samples=1, lpips="", metrics_version=1)
    bounds = {"gallery_episodes": 0, "max_segment_bytes": int(mib * 1024**2)}
    plan = plan_evaluation(dataset, recipe, episodes=episodes, **bounds)
    return plan, LoadEvaluation(str(root), "auto", recipe, open_action_source("recorded", dataset, recipe))


def evaluated(root: Path, **plan) -> list[dict]:
    planned, load = evaluation_of(root, **plan)
    return [load(segment.to_row()) for segment in planned.segments]


def types(row: dict) -> dict:
    """Of its arrays: what a column of a table needs to be the same in every row."""
    arrays = {name: value for name, value in row.items() if isinstance(value, np.ndarray)}
    return {name: (value.dtype, value.ndim) for name, value in arrays.items()}


# --- starts ---


def test_a_chain_starts_from_the_first_frame_alone(made):
    for row in started(made.root, recipe_of(made.root))[:3]:
        episode = row["episode_index"]
        assert row["error"] == ""
        assert read_ids(row["frames"]) == made.ids(episode, made.cameras[0], [0])
        assert (row["frames"].dtype, row["canvas"].dtype, row["canvas"].shape) == (np.uint8, np.int64, (4,))
        np.testing.assert_array_equal(row["actions"], actions_of(episode))


def test_teacher_forced_windows_start_from_a_recorded_frame_each(made):
    rows = started(made.root, recipe_of(made.root, "teacher_forced"))[:3]
    for row, starts in zip(rows, ([*range(0, 25, 4), 25], [0, 4, 5], [0]), strict=True):
        episode = row["episode_index"]
        assert read_ids(row["frames"]) == made.ids(episode, made.cameras[0], starts)
        np.testing.assert_array_equal(row["actions"], actions_of(episode))


def test_the_models_own_actions_are_not_loaded(made):
    dataset, recipe = open_dataset(made.root), recipe_of(made.root, mode="policy")
    plan = plan_dreams(dataset, recipe, tasks=["Wave."], num_chunks=3, num_samples=2)
    load = LoadStart(str(made.root), "auto", recipe, None)
    for segment in plan.segments:
        row = load(segment.to_row())
        assert row["error"] == "", "one frame is enough to start from"
        assert (row["actions"].shape, row["actions"].dtype) == ((0, 10), np.float64)
        assert read_ids(row["frames"]) == made.ids(segment.episode_index, made.cameras[0], [0])


def test_positions_are_frames_at_the_models_rate(made, tmp_path):
    """Windows at 0, 4, 5 of ten positions, each the third frame of the recording."""
    write_action_file(tmp_path / "actions.json", droid_actions(12))
    rows = started(made.root, recipe_of(made.root, "teacher_forced", fps=5.0), str(tmp_path / "actions.json"))
    assert read_ids(rows[0]["frames"]) == made.ids(0, made.cameras[0], [0, 12, 15])
    assert len(rows[0]["actions"]) == 9, "as many as the episode has steps"


def test_a_file_goes_on_beyond_the_episode_in_a_chain_and_is_cut_otherwise(made, tmp_path):
    path = tmp_path / "actions.json"
    write_action_file(path, droid_actions(20))
    chained = started(made.root, recipe_of(made.root), str(path))
    assert [len(row["actions"]) for row in chained] == [20] * 4
    assert [row["error"] for row in chained] == [""] * 4, "also from an episode of a single frame"
    for row in chained:
        np.testing.assert_allclose(row["actions"], droid_actions(20), atol=1e-6)
    forced = started(made.root, recipe_of(made.root, "teacher_forced"), str(path))
    assert [len(row["actions"]) for row in forced] == [20, 9, 2, 0]
    np.testing.assert_allclose(forced[1]["actions"], droid_actions(20)[:9], atol=1e-6)


@pytest.mark.parametrize("chaining", ["autoregressive", "teacher_forced"])
def test_an_episode_without_a_step_fails_with_a_row_like_the_others(made, chaining):
    *good, bad = started(made.root, recipe_of(made.root, chaining))
    assert bad["error_type"] == "EpisodeError"
    assert "Episode 3 has 1 frame(s) at 15 fps" in bad["error"]
    assert types(bad) == types(good[0])
    assert set(bad) == set(good[0])
    assert len(bad["frames"]) == len(bad["actions"]) == 0


def test_a_failed_read_of_actions_is_a_failed_row_with_its_cause(made, tmp_path):
    """The file is gone by the time the frames are decoded."""
    path = tmp_path / "actions.json"
    write_action_file(path, droid_actions(20))
    dataset, recipe = open_dataset(made.root), recipe_of(made.root)
    source = open_action_source(str(path), dataset, recipe)
    segment = plan_rollouts(dataset, recipe, source, num_samples=1).segments[0]
    load = LoadStart(str(made.root), "auto", recipe, source)
    good = load(segment.to_row())
    path.unlink()
    bad = load(segment.to_row())
    assert (bad["error_type"], len(bad["frames"]), bad["key"]) == ("ActionFileError", 0, segment.key)
    assert "actions.json" in bad["error"]
    assert types(bad) == types(good)


def test_a_known_problem_fails_its_video_alone(tmp_path):
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", range(5))
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    write_action_file(tmp_path / "actions.json", droid_actions(4))
    bad, good = started(tmp_path / "videos", recipe_of(tmp_path / "videos"), str(tmp_path / "actions.json"))
    assert (good["error"], bad["error_type"]) == ("", "VideoError")
    assert "a.mp4" in bad["error"]
    assert types(bad) == types(good)


# --- evaluation ---


def other_rows(episode: int, other: int, start: int, count: int) -> np.ndarray:
    """What the other episode did at these positions, over and over."""
    theirs = actions_of(other)
    return np.array([theirs[position % len(theirs)] for position in range(start, start + count)])


@pytest.mark.parametrize("mib", [64, 3, 0.001])
def test_frames_and_all_courses_of_action_are_of_the_same_positions(made, mib):
    """Of later segments too: row i of each leads from the segment's frame i to the next."""
    rows = evaluated(made.root, mib=mib)
    assert len(rows) == {64: 3, 3: 7, 0.001: 12}[mib]
    for row in rows:
        episode, start = row["episode_index"], row["window_starts"][0]
        count = min(row["window_starts"][-1] + CHUNK, LENGTHS[episode] - 1) - start
        assert row["error"] == ""
        assert read_ids(row["frames"]) == made.ids(episode, made.cameras[0], range(start, start + count + 1))
        np.testing.assert_allclose(row["timestamps"], np.arange(start, start + count + 1) / 15, atol=1e-6)
        np.testing.assert_array_equal(row["actions"], actions_of(episode)[start : start + count])
        other = (episode + 1) % 3
        assert row["other_episode_index"] == other
        np.testing.assert_array_equal(row["other_actions"], other_rows(episode, other, start, count))
        np.testing.assert_array_equal(row["still_actions"], standing_still(row["actions"], ROT6D_STARTS))
        np.testing.assert_array_equal(row["still_actions"][:, 9], np.full(count, row["actions"][0, 9]))


def test_a_shorter_episode_starts_over(made):
    """Its nine actions stand against 29, and in a later segment they go on where they were."""
    first, *_ = evaluated(made.root)
    np.testing.assert_array_equal(first["other_actions"][9:18], first["other_actions"][:9])
    np.testing.assert_array_equal(first["other_actions"][:9], actions_of(1))
    later = evaluated(made.root, mib=2)[1]
    assert later["window_starts"][0] > 0
    start = later["window_starts"][0]
    np.testing.assert_array_equal(later["other_actions"][0], actions_of(1)[start % 9])


def test_a_longer_episode_is_cut(made):
    row = evaluated(made.root, episodes=(2, 0))[0]
    np.testing.assert_array_equal(row["other_actions"], actions_of(0)[:2])


def test_without_another_episode_there_are_no_other_actions(made):
    [row] = evaluated(made.root, episodes=(1,))
    assert (row["other_actions"].shape, row["other_actions"].dtype) == ((0, 10), np.float64)
    assert len(row["actions"]) == len(row["still_actions"]) == 9


def test_a_neighbour_of_a_single_frame_does_no_harm(made):
    """It fails, and what stands before it in the selection is compared with the next."""
    good, bad, last = evaluated(made.root, episodes=(0, 3, 1))
    assert [row["error_type"] for row in (good, bad, last)] == ["", "EpisodeError", ""]
    assert good["other_episode_index"] == 1
    assert types(bad) == types(good)
    assert set(bad) == set(good)


def test_a_width_of_the_users_own_holds_its_first_row(made, tmp_path):
    """Eight joints: DROID's rotation would reach beyond them, and which of them is one is not known."""
    root = Path(shutil.copytree(made.root, tmp_path / "joints"))
    record(root, {"action": np.random.default_rng(0).uniform(-1, 1, (sum(LENGTHS), 8))})
    row = evaluated(root, raw_action_dim=8)[1]
    assert row["error"] == ""
    assert row["actions"].shape == (9, 8)
    np.testing.assert_array_equal(row["still_actions"], np.tile(row["actions"][0], (9, 1)))


def test_a_recording_that_cannot_be_followed_fails_its_segments(made, tmp_path):
    """A gap in one episode's actions also fails the one that they were lent to, by the name of where it is."""
    root = Path(shutil.copytree(made.root, tmp_path / "gap"))
    actions = droid_actions(sum(LENGTHS))
    actions[STARTS[1] + 2, 0] = np.nan
    record(root, {"action": actions})
    rows = evaluated(root)
    assert [row["error_type"] for row in rows] == ["EpisodeError", "EpisodeError", ""]
    assert all("Episode 1: action has 1 values that are not finite" in row["error"] for row in rows[:2])
    assert types(rows[0]) == types(rows[2])
    assert [len(rows[0][name]) for name in types(rows[0]) if name != "canvas"] == [0] * 5

"""Rollouts on disk: one row per frame of a video, whose chunk drew it, and what leads on from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig, RolloutConfig
from pipeline.datasets import open_dataset
from pipeline.errors import ResultError
from pipeline.outputs.merging import merge_records
from pipeline.outputs.records import RecordStore
from pipeline.outputs.rollouts import (
    RolloutChecks,
    rollout_schema,
    rollout_table,
    synthetic_episodes,
    video_path,
)
from pipeline.recipe import RolloutRecipe, make_recipe
from pipeline.rollout_plan import chunk_starts

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

CHUNK = 4
CHAININGS = ("autoregressive", "teacher_forced")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rollouts") / "videos"
    write_video(root / "a.mp4", range(5))
    return root


def recipe_of(folder: Path, chaining: str = "autoregressive", **changes) -> RolloutRecipe:
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK} | changes
    config = RolloutConfig(dataset=DatasetConfig(cameras=("video",)), **settings)
    recipe = make_recipe(config, open_dataset(folder), "weights", mode="forward_dynamics")
    return RolloutRecipe(**vars(recipe), chaining=chaining, actions={})


@pytest.fixture
def recipe(folder) -> RolloutRecipe:
    return recipe_of(folder)


def drawn(num_positions: int, recipe: RolloutRecipe, *, episode: int = 3, sample: int = 1, task: str = "Lift.") -> dict:
    """A row as roll_out hands it on. Column 0 of an action is its chunk, column 1 the position it starts from."""
    starts = chunk_starts(num_positions, recipe)
    action = np.zeros((len(starts), CHUNK, 10), np.float32)
    action[..., 0] = np.arange(len(starts))[:, None]
    action[..., 1] = np.asarray(starts)[:, None] + np.arange(CHUNK)
    row = {
        "key": f"{episode:02d}{sample:02d}{num_positions:04d}" + "f" * 56,
        "episode_index": episode,
        "sample": sample,
        "task": task,
        "num_positions": num_positions,
        "window_starts": starts,
        "seeds": 100 + np.arange(len(starts)),
        "action": action,
        "action_normalized": -action,
    }
    return row | {"video": video_path(row).as_posix()}


def columns(table: pa.Table, *names: str) -> list[list]:
    return [table[name].to_pylist() for name in names]


# --- names ---


def test_a_videos_name_holds_episode_sample_and_key():
    row = {"episode_index": 12, "sample": 3, "key": "0123456789abcdef" + "9" * 48}
    assert video_path(row) == PurePosixPath("videos/episode_000012/sample_03-0123456789abcdef.mp4")
    other_task = row | {"key": "1" + row["key"][1:]}
    assert video_path(other_task) != video_path(row), "of the same start, another task's video stands beside it"


# --- rows ---


def test_frames_of_a_chain(recipe):
    """Ten frames in chunks of four actions: each chunk draws four, the first the given one too, the last is cut off."""
    table = rollout_table(drawn(10, recipe), recipe)
    assert table.schema.equals(rollout_schema(recipe), check_metadata=True)
    chunk, step, seed = columns(table, "chunk", "horizon_step", "seed")
    assert chunk == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert step == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert seed == [100] * 5 + [101] * 4 + [102]
    assert columns(table, "video_frame", "frame_index") == [list(range(10))] * 2
    np.testing.assert_allclose(table["timestamp"].to_numpy(), np.arange(10) / 15)


def test_frames_of_teacher_forced_windows(folder):
    """The last window starts at 5, moved back; it draws only what those before it did not."""
    recipe = recipe_of(folder, "teacher_forced")
    table = rollout_table(drawn(10, recipe), recipe)
    chunk, step = columns(table, "chunk", "horizon_step")
    assert chunk == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert step == [0, 1, 2, 3, 4, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("chaining", CHAININGS)
@pytest.mark.parametrize("num_positions", [2, 4, 5, 6, 9, 13, 14, 40])
def test_every_frame_has_one_chunk_that_could_draw_it(folder, chaining, num_positions):
    """Frame f > 0 is the first chunk's whose last frame is f or later, and lies within it."""
    recipe = recipe_of(folder, chaining)
    row = drawn(num_positions, recipe)
    table = rollout_table(row, recipe)
    chunk, step, frame = columns(table, "chunk", "horizon_step", "video_frame")
    assert frame == list(range(num_positions))
    assert (chunk[0], step[0]) == (0, 0)
    for f in range(1, num_positions):
        expected = (f - 1) // CHUNK  # windows before the last one are as the chain's, and so are the frames of the last
        assert chunk[f] == expected
        assert step[f] == f - row["window_starts"][expected]
        assert 1 <= step[f] <= CHUNK
    assert set(chunk) == set(range(len(row["window_starts"])))


@pytest.mark.parametrize("chaining", CHAININGS)
@pytest.mark.parametrize("num_positions", [2, 5, 6, 10])
def test_the_last_frame_alone_has_no_action(folder, chaining, num_positions):
    recipe = recipe_of(folder, chaining)
    table = rollout_table(drawn(num_positions, recipe), recipe)
    assert table["action_valid"].to_pylist() == [True] * (num_positions - 1) + [False]
    for name, sign in (("action", 1), ("action_normalized", -1)):
        *actions, last = table[name].to_pylist()
        assert last is None
        assert [action[1] for action in actions] == [sign * position for position in range(num_positions - 1)]
        assert all(len(action) == 10 for action in actions)


def test_an_action_belongs_to_the_chunk_that_starts_at_its_frame(folder):
    """Frame 4 is the first chunk's last; what leads on from it is the second chunk's. Of two windows the earlier."""
    recipe = recipe_of(folder, "teacher_forced")
    actions = rollout_table(drawn(10, recipe), recipe)["action"].to_pylist()[:-1]
    assert [action[0] for action in actions] == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_a_slower_model_counts_the_datasets_frames(folder):
    recipe = recipe_of(folder, fps=5.0)
    table = rollout_table(drawn(7, recipe), recipe)
    assert table["frame_index"].to_pylist() == [0, 3, 6, 9, 12, 15, 18]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), np.arange(7) / 5)


def test_what_is_the_same_in_every_row(recipe):
    row = drawn(6, recipe, episode=12, sample=2, task="Wave.")
    table = rollout_table(row, recipe)
    same = {"video": row["video"], "episode_index": 12, "sample": 2, "task": "Wave.", "is_synthetic": True}
    for name, value in same.items():
        assert table[name].to_pylist() == [value] * 6


def test_columns_say_what_their_numbers_are(folder, recipe, tmp_path):
    metadata = {field.name: field.metadata or {} for field in rollout_schema(recipe)}
    assert metadata["action"][b"names"].decode().split(",") == list(recipe.action_names)
    assert metadata["action"][b"embodiment"] == b"droid_lerobot"
    assert metadata["action"][b"unit"] == b"model's own scale"
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"q01": [-1] * 10, "q99": [1] * 10}))
    physical = recipe_of(folder, action_normalization="quantile", action_stats_path=str(stats))
    assert rollout_schema(physical).field("action").metadata[b"unit"] == b"as the names say"
    assert b"quantile" in rollout_schema(physical).field("action_normalized").metadata[b"unit"]


# --- checks ---


def bounded(folder: Path, tmp_path: Path) -> RolloutRecipe:
    """Columns 0 and 1 hold chunk and position (0, 1, 2, ...); the model was trained on -1..1 of each."""
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"q01": [-1.0] * 10, "q99": [1.0] * 10}))
    return recipe_of(folder, action_normalization="quantile", action_stats_path=str(stats))


def test_checks_count_whole_videos_however_they_are_grouped(folder, recipe):
    tables = [rollout_table(drawn(length, recipe, sample=length), recipe) for length in (6, 2, 10, 2)]
    one_by_one, at_once = RolloutChecks(recipe), RolloutChecks(recipe)
    for table in tables:
        one_by_one.add(table)
    at_once.add(pa.concat_tables(tables))
    assert one_by_one.to_json() == at_once.to_json()
    assert at_once.to_json() == {"videos": 4, "frames": 20, "actions": 16, "share_clamped": 0.0}
    assert one_by_one.num_single_actions == at_once.num_single_actions == 2
    assert "4 videos, 20 frames" in at_once.lines()[0]
    assert at_once.warnings() == ["2 videos have a single action; a LeRobot dataset leaves them out."]


def test_without_a_video_there_is_no_share(recipe):
    checks = RolloutChecks(recipe)
    assert checks.to_json() == {"videos": 0, "frames": 0, "actions": 0, "share_clamped": None}
    assert checks.lines()[0].endswith("–")
    assert checks.warnings() == []


def test_the_share_outside_is_counted_over_all_values(folder, tmp_path):
    """Of 5 actions, positions 0..4 and chunks 0 0 0 0 1: three of fifty values lie beyond 1."""
    recipe = bounded(folder, tmp_path)
    checks = RolloutChecks(recipe)
    checks.add(rollout_table(drawn(6, recipe), recipe))
    assert checks.share_clamped == pytest.approx(3 / 50)
    assert checks.warnings() == []
    checks.add(rollout_table(drawn(2, recipe), recipe))
    assert checks.share_clamped == pytest.approx(3 / 60)
    assert "5.0%" in checks.lines()[0]


def test_actions_of_other_statistics_are_loud(folder, tmp_path):
    recipe = bounded(folder, tmp_path)
    row = drawn(6, recipe)
    row["action"][..., 2:5] = 1.5  # with positions, a third of all values
    checks = RolloutChecks(recipe)
    checks.add(rollout_table(row, recipe))
    assert checks.share_clamped == pytest.approx(18 / 50)
    [warning] = checks.warnings()
    assert warning.startswith("36% of the action values lie outside [-1, 1] once normalised (quantile)")
    assert "statistics" in warning


# --- merging, and what is handed on ---


@pytest.fixture
def store(tmp_path, recipe) -> RecordStore:
    store = RecordStore(tmp_path)
    for episode, sample, length in ((2, 0, 6), (2, 1, 6), (0, 0, 2), (5, 0, 3)):
        row = drawn(length, recipe, episode=episode, sample=sample, task=f"task of {episode}")
        store.write(row["key"], rollout_table(row, recipe))
    return store


KEYS = [key + "f" * 56 for key in ("05000003", "02010006", "00000002", "02000006")]


def test_merged_rows_come_in_the_plans_order_with_their_manifest(store, recipe, tmp_path):
    checks = RolloutChecks(recipe)
    target, manifest = tmp_path / "rollouts", {"run_id": "abc"}
    merge_records(store, KEYS, rollout_schema(recipe), target, manifest=manifest, look=checks.add)
    assert [path.name for path in target.iterdir()] == ["rollouts-00000.parquet"]
    table = pq.read_table(target)
    assert json.loads(table.schema.metadata[b"manifest"]) == manifest
    assert table.schema.equals(rollout_schema(recipe))
    runs = list(dict.fromkeys(zip(*columns(table, "episode_index", "sample"), strict=True)))
    assert runs == [(5, 0), (2, 1), (0, 0), (2, 0)]
    assert (checks.num_videos, checks.num_frames) == (4, table.num_rows) == (4, 17)


def test_without_records_earlier_rows_stay(store, recipe, tmp_path):
    target, checks = tmp_path / "rollouts", RolloutChecks(recipe)
    merge_records(store, KEYS, rollout_schema(recipe), target, manifest={}, look=checks.add)
    merge_records(store, [], rollout_schema(recipe), target, manifest={"run_id": "other"}, look=checks.add)
    assert json.loads(pq.read_schema(next(target.iterdir())).metadata[b"manifest"]) == {}


def merged(store: RecordStore, keys: list[str], recipe: RolloutRecipe) -> Path:
    target = store.folder.parent / "rollouts"
    merge_records(store, keys, rollout_schema(recipe), target, manifest={}, look=lambda table: None)
    return target


def test_synthetic_episodes_are_the_videos_in_the_plans_order(store, recipe, tmp_path):
    """All but the one of a single action, which LeRobot cannot describe."""
    episodes = list(synthetic_episodes(merged(store, KEYS, recipe), tmp_path))
    assert [(e.source_episode_index, e.sample) for e in episodes] == [(5, 0), (2, 1), (2, 0)]
    assert [episode.task for episode in episodes] == ["task of 5", "task of 2", "task of 2"]
    for episode, key, count in zip(episodes, (KEYS[0], KEYS[1], KEYS[3]), (2, 5, 5), strict=True):
        parts = {"episode_index": episode.source_episode_index, "sample": episode.sample, "key": key}
        assert episode.video == tmp_path / video_path(parts)
        assert (episode.actions.dtype, episode.actions.shape) == (np.float32, (count, 10))
        assert episode.actions[:, 1].tolist() == list(range(count)), "the action, and not its normalised self"
        assert episode.source_frame_indexes.dtype == np.int64
        assert episode.source_frame_indexes.tolist() == list(range(count))


def test_synthetic_episodes_name_the_datasets_frames(folder, tmp_path):
    recipe, store = recipe_of(folder, fps=5.0), RecordStore(tmp_path)
    row = drawn(4, recipe)
    store.write(row["key"], rollout_table(row, recipe))
    [episode] = synthetic_episodes(merged(store, [row["key"]], recipe), tmp_path)
    assert episode.source_frame_indexes.tolist() == [0, 3, 6]


def test_without_merged_rows_there_are_no_synthetic_episodes(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected merged rows"):
        list(synthetic_episodes(tmp_path / "rollouts", tmp_path))


@pytest.mark.parametrize("lost", [0, 4, 16])
def test_rows_that_are_gone_are_no_shorter_episode(store, recipe, tmp_path, lost):
    """The first row of all, one amid a video, and the last frame of the last."""
    target = merged(store, KEYS, recipe)
    table = pq.read_table(target)
    kept = pa.concat_tables([table.slice(0, lost), table.slice(lost + 1)])
    pq.write_table(kept, target / "rollouts-00000.parquet")
    if lost == 16:
        *_, last = synthetic_episodes(target, tmp_path)
        assert len(last.actions) == 5, "the row without an action is no part of a dataset"
    else:
        with pytest.raises(ResultError, match="expected a row for each frame"):
            list(synthetic_episodes(target, tmp_path))

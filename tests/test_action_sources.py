"""Actions of a rollout: what a recording or a file says, and what is refused before a model is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recorded_columns import GRIPPER_KEY, POSE_KEY, droid_actions, droid_states, record
from scipy.spatial.transform import Rotation

from pipeline.action_files import write_action_file
from pipeline.action_sources import RecordedColumn, RecordedStates, open_action_source
from pipeline.actions import rot6d_to_matrix
from pipeline.config import DatasetConfig, RolloutConfig
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import ActionFileError, DatasetError, EpisodeError
from pipeline.recipe import Recipe, make_recipe

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_v3, write_video

LENGTHS = (9, 6)
NUM_FRAMES = sum(LENGTHS)
FRONT = "observation.images.front"

# Two DROID states and what lies between them, from the reference's section 2.6.
GOLDEN_STATES = np.array([[0.40, 0, 0.30, 3.10, -0.05, 0.20], [0.405, 0.003, 0.296, 3.11, -0.04, 0.215]])
GOLDEN_ACTION = [-0.002123, -0.00529, 0.004185, 0.999825, -0.015289, 0.010746, 0.01539, 0.999838, -0.009362, 0.75]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A dataset with an action of width 2, which no arm of the table has. Read only."""
    return make_v3(tmp_path_factory.mktemp("plain") / "dataset", LENGTHS, per_file=2, codec="libx264", gop=12).root


@pytest.fixture
def with_columns(plain, tmp_path):
    """A copy of the dataset that has recorded these columns, too."""

    def make(columns: dict[str, np.ndarray]) -> RobotVideoDataset:
        root = Path(shutil.copytree(plain, tmp_path / "recorded"))
        record(root, columns)
        return open_dataset(root)

    return make


def recipe_of(dataset: RobotVideoDataset, **changes) -> Recipe:
    """One camera at the dataset's rate, no statistics; everything else is DROID's."""
    view = DatasetConfig(cameras=changes.pop("cameras", (FRONT,)), timebase=changes.pop("timebase", "model"))
    settings = {"action_normalization": "none", "action_chunk_size": 4} | changes
    return make_recipe(RolloutConfig(dataset=view, **settings), dataset, "weights", mode="forward_dynamics")


def read(dataset: RobotVideoDataset, recipe: Recipe, episode: int = 0, choice: str = "recorded") -> np.ndarray:
    """As a worker gets them: through a source that was pickled on the driver."""
    source = pickle.loads(pickle.dumps(open_action_source(choice, dataset, recipe)))
    actions = source.read(dataset, episode, recipe.timebase)
    assert len(actions) == source.num_actions(dataset.episode(episode), recipe.timebase)
    assert actions.dtype == np.float64
    return actions


def motions(actions: np.ndarray) -> np.ndarray:
    """Actions [N, >=9] as homogeneous matrices [N, 4, 4]."""
    steps = np.tile(np.eye(4), (len(actions), 1, 1))
    steps[:, :3, :3], steps[:, :3, 3] = rot6d_to_matrix(actions[:, 3:9]), actions[:, :3]
    return steps


# --- recorded states ---


def test_recorded_states_become_the_references_action(tmp_path):
    made = make_v3(tmp_path / "dataset", [2], per_file=1, codec="libx264")
    record(made.root, {POSE_KEY: GOLDEN_STATES, GRIPPER_KEY: np.array([[0.25], [0.9]])})
    dataset = open_dataset(made.root)
    np.testing.assert_allclose(read(dataset, recipe_of(dataset)), [GOLDEN_ACTION], atol=2e-6)


def test_real_droid_gives_the_motion_between_observed_poses(shared_data):
    """By hand: inverse(T_t) @ T_{t+1}, T with the axes turned by 90 degrees about their own z, and 1 - the command."""
    dataset = open_dataset(shared_data / "droid_real")
    recipe = recipe_of(dataset, cameras=(), timebase="native")
    source = open_action_source("recorded", dataset, recipe)
    assert isinstance(source, RecordedStates)
    rows = pq.read_table(shared_data / "droid_real/data/chunk-000/file-000.parquet").to_pylist()
    for episode in (0, 6):
        of_episode = [row for row in rows if row["episode_index"] == episode]
        states = np.array([row[POSE_KEY] for row in of_episode])
        poses = np.tile(np.eye(4), (len(states), 1, 1))
        turn = Rotation.from_euler("z", 90, degrees=True).as_matrix()
        poses[:, :3, :3] = Rotation.from_euler("xyz", states[:, 3:]).as_matrix() @ turn
        poses[:, :3, 3] = states[:, :3]
        expected = np.linalg.inv(poses[:-1]) @ poses[1:]
        actions = read(dataset, recipe, episode)
        np.testing.assert_allclose(motions(actions), expected, atol=1e-9)
        commands = np.ravel([row[GRIPPER_KEY] for row in of_episode])
        np.testing.assert_allclose(actions[:, 9], 1 - commands[:-1], atol=1e-12)


def test_a_slower_model_gets_the_motion_over_the_longer_interval(shared_data):
    """Two steps at 5 fps in a row are one step at 2.5; a frame left over at the end leads nowhere."""
    dataset = open_dataset(shared_data / "droid_real")
    assert {dataset.episode(episode).num_frames % 2 for episode in range(7)} == {0, 1}, "both parities are there"
    for episode in range(7):
        fine = read(dataset, recipe_of(dataset, cameras=(), timebase="native"), episode)
        coarse = read(dataset, recipe_of(dataset, cameras=(), fps=2.5), episode)
        steps = motions(fine)[: 2 * len(coarse)]
        np.testing.assert_allclose(motions(coarse), steps[::2] @ steps[1::2], atol=1e-9)
        np.testing.assert_allclose(coarse[:, 9], fine[::2, 9][: len(coarse)], atol=1e-12)


@pytest.mark.parametrize("key", [POSE_KEY, GRIPPER_KEY])
def test_recorded_states_that_are_not_finite_are_refused(with_columns, key):
    states = droid_states(NUM_FRAMES)
    states[key][11, 0] = np.nan
    dataset = with_columns(states)
    assert np.isfinite(read(dataset, recipe_of(dataset), 0)).all()
    with pytest.raises(EpisodeError, match=rf"Episode 1: {key} has 1 values.*--dataset\.episodes"):
        read(dataset, recipe_of(dataset), 1)


def test_columns_that_are_promised_and_missing_are_named(with_columns):
    dataset = with_columns(droid_states(NUM_FRAMES))
    [path] = (dataset.root / "data").rglob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns([GRIPPER_KEY]), path)
    with pytest.raises(EpisodeError, match=rf"Episode 0: {GRIPPER_KEY} were not recorded"):
        read(dataset, recipe_of(dataset))


# --- a recorded column ---


def test_a_column_of_the_models_own_layout_is_taken_as_it_is(with_columns):
    actions = droid_actions(NUM_FRAMES)
    dataset = with_columns({"action": actions})
    recipe = recipe_of(dataset)
    assert isinstance(open_action_source("recorded", dataset, recipe), RecordedColumn)
    np.testing.assert_allclose(read(dataset, recipe, 0), actions[:8], atol=1e-6)
    np.testing.assert_allclose(read(dataset, recipe, 1), actions[9:14], atol=1e-6)


def test_a_models_rotations_need_not_be_exact(with_columns):
    """A dataset that was labelled with it: its six numbers are orthonormal to about 0.01, some of them less."""
    actions = droid_actions(NUM_FRAMES)
    actions[:, 3:9] += np.random.default_rng(1).normal(0, 0.01, (NUM_FRAMES, 6))
    dataset = with_columns({"action": actions})
    np.testing.assert_allclose(read(dataset, recipe_of(dataset)), actions[:8], atol=1e-6)


def test_a_column_of_the_right_width_and_another_meaning_is_refused(with_columns):
    dataset = with_columns({"action": np.random.default_rng(0).uniform(-1, 1, (NUM_FRAMES, 10))})
    with pytest.raises(EpisodeError, match=r"columns 3\.\.8 of 'action'.*droid_lerobot.*--actions labels:DIR"):
        read(dataset, recipe_of(dataset))


@pytest.mark.parametrize("width", [8, 12])
def test_a_width_of_the_users_own_has_no_rotation_to_check(with_columns, width):
    """The layout behind it is not known, so columns 3..8 may be anything."""
    values = np.random.default_rng(0).uniform(-1, 1, (NUM_FRAMES, width))
    dataset = with_columns({"action": values})
    recipe = recipe_of(dataset, raw_action_dim=width)
    assert recipe.rot6d_starts == ()
    np.testing.assert_allclose(read(dataset, recipe), values[:8], atol=1e-6)


def test_states_are_not_taken_for_actions_of_another_width(with_columns):
    joints = np.random.default_rng(0).uniform(-1, 1, (NUM_FRAMES, 8))
    dataset = with_columns({**droid_states(NUM_FRAMES), "action": joints})
    np.testing.assert_allclose(read(dataset, recipe_of(dataset, raw_action_dim=8)), joints[:8], atol=1e-6)


def test_a_dataset_without_actions_says_what_it_has_and_what_to_give(plain, tmp_path):
    dataset = open_dataset(plain)
    with pytest.raises(DatasetError) as caught:
        open_action_source("recorded", dataset, recipe_of(dataset))
    for part in ("width 10", "action [2]", POSE_KEY, GRIPPER_KEY, "--actions labels:DIR", "--actions FILE.json"):
        assert part in str(caught.value)
    write_video(tmp_path / "videos" / "a.mp4", range(3))
    videos = open_dataset(tmp_path / "videos")
    with pytest.raises(DatasetError, match="found none at all"):
        open_action_source("recorded", videos, recipe_of(videos, cameras=("video",)))


@pytest.mark.parametrize(
    "settings",
    [
        {"embodiment": "droid_lerobot", "raw_action_dim": 10},
        {"embodiment": "droid_lerobot", "raw_action_dim": 2},  # a layout that nothing is known of
        {"embodiment": "libero", "raw_action_dim": 2, "view_point": "third_person_view"},
    ],
    ids=str,
)
def test_a_relative_column_cannot_be_thinned_out(with_columns, settings):
    dataset = with_columns({"action": droid_actions(NUM_FRAMES)[:, : settings["raw_action_dim"]]})
    with pytest.raises(DatasetError, match=r"motion of one frame at 15 fps.*to 5 fps.*--dataset\.timebase native"):
        open_action_source("recorded", dataset, recipe_of(dataset, fps=5.0, **settings))
    native = recipe_of(dataset, timebase="native", **settings)
    assert len(read(dataset, native)) == 8


def test_absolute_actions_are_thinned_out_with_the_frames(plain):
    """PushT's two columns are positions, and each stands for itself."""
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset, embodiment="pusht", fps=5.0, view_point="top_down_2d_view")
    recorded = dataset.read_columns(0, ["action"])["action"]
    np.testing.assert_array_equal(read(dataset, recipe), recorded[[0, 3]])


# --- action files ---


def test_a_file_says_the_same_for_every_episode(plain, tmp_path):
    path = tmp_path / "actions.json"
    write_action_file(path, droid_actions(20))
    dataset = open_dataset(plain)
    for episode in (0, 1):
        np.testing.assert_allclose(read(dataset, recipe_of(dataset), episode, str(path)), droid_actions(20), atol=1e-6)


def test_a_file_is_known_by_its_actions_and_not_by_its_name(plain, tmp_path):
    """Nor by its format, nor by what else stands in it."""
    actions = droid_actions(4).astype(np.float32)
    write_action_file(tmp_path / "a.json", actions)
    write_action_file(tmp_path / "b.json", actions, about={"units": "m"})
    (tmp_path / "c.json").write_text(json.dumps({"action_chunks": [actions[:1].tolist(), actions[1:].tolist()]}))
    write_action_file(tmp_path / "d.json", actions[:3])
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset)
    a, b, c, d = (open_action_source(str(tmp_path / f"{name}.json"), dataset, recipe).to_json() for name in "abcd")
    assert a == b == c != d


def test_a_file_that_changes_during_the_run_is_refused(plain, tmp_path):
    """The records' keys stand for the actions that were there when the run was planned."""
    path = tmp_path / "actions.json"
    write_action_file(path, droid_actions(6))
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset)
    source = open_action_source(str(path), dataset, recipe)
    write_action_file(path, droid_actions(6, seed=1))
    with pytest.raises(ActionFileError, match="found others"):
        source.read(dataset, 0, recipe.timebase)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([[0.0] * 8], "width 10, found 8"), ([[0.0] * 9 + [float("nan")]], "not finite"), ([], "must be a list of rows")],
)
def test_a_file_that_cannot_be_followed_is_refused_at_once(plain, tmp_path, rows, message):
    path = tmp_path / "actions.json"
    path.write_text(json.dumps({"data": rows}))
    dataset = open_dataset(plain)
    with pytest.raises(ActionFileError, match=message):
        open_action_source(str(path), dataset, recipe_of(dataset))


def test_a_file_that_is_not_there_is_refused(plain):
    dataset = open_dataset(plain)
    with pytest.raises(ActionFileError, match=r"nowhere\.json: cannot read"):
        open_action_source("nowhere.json", dataset, recipe_of(dataset))


def test_sources_differ_by_where_they_look(plain, with_columns, tmp_path):
    """Two recipes that follow other actions have other records."""
    write_action_file(tmp_path / "actions.json", droid_actions(4))
    dataset = with_columns({**droid_states(NUM_FRAMES), "action": droid_actions(NUM_FRAMES)})
    recipe = recipe_of(dataset)
    states = open_action_source("recorded", dataset, recipe)
    column = open_action_source("recorded", dataset, replace(recipe, embodiment=_without_states(recipe)))
    file = open_action_source(str(tmp_path / "actions.json"), dataset, recipe)
    assert len({json.dumps(source.to_json(), sort_keys=True) for source in (states, column, file)}) == 3


def _without_states(recipe: Recipe):
    return replace(recipe.embodiment, pose_state_keys=())

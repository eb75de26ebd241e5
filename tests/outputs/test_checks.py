"""What the labels look like: quiet where they can be right, loud where they cannot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.transform import Rotation, Slerp

from pipeline.actions import Normalizer, load_normalizer, matrix_to_rot6d, recorded_actions
from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.embodiments import get_embodiment
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.labels import label_schema
from pipeline.recipe import Recipe, make_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

POSITION, GRIPPER = "observation.state.cartesian_position", "action.gripper_position"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Recipe:
    """DROID's actions in the model's own scale."""
    folder = tmp_path_factory.mktemp("checks")
    write_video(folder / "a.mp4", range(5))
    config = LabelConfig(dataset=DatasetConfig(cameras=("video",)), action_normalization="none")
    return make_recipe(config, open_dataset(folder), "weights")


def with_bounds(recipe: Recipe, method: str = "quantile") -> Recipe:
    width = recipe.raw_action_dim
    return replace(recipe, normalizer=Normalizer(method, np.zeros(width), np.ones(width)))


def table_of(action: np.ndarray, recipe: Recipe, normalized: np.ndarray | None = None) -> pa.Table:
    """Labels of one episode: these actions, then the last frame without one."""
    num_rows = len(action) + 1
    columns = {
        "episode_index": [0] * num_rows,
        "frame_index": list(range(num_rows)),
        "timestamp": [0.0] * num_rows,
        "task": [""] * num_rows,
        "action": [*np.asarray(action, np.float32).tolist(), None],
        "action_normalized": [*np.asarray(action if normalized is None else normalized, np.float32).tolist(), None],
        "action_valid": [True] * len(action) + [False],
    }
    return pa.table(columns, schema=label_schema(recipe))


def checked(action: np.ndarray, recipe: Recipe, normalized: np.ndarray | None = None) -> LabelChecks:
    checks = LabelChecks(recipe)
    checks.add(table_of(action, recipe, normalized))
    return checks


def good_actions(num: int = 20) -> np.ndarray:
    rotations = matrix_to_rot6d(Rotation.random(num, rng=np.random.default_rng(0)).as_matrix())
    return np.concatenate([np.full((num, 3), 0.01), rotations, np.full((num, 1), 0.5)], axis=1)


def test_nothing_to_measure_is_null_and_not_zero(plain):
    for checks in (LabelChecks(plain), checked(np.zeros((0, 10)), plain)):
        found = checks.to_json()
        assert found["valid_actions"] == 0
        assert [found[name] for name in found if name not in {"rows", "valid_actions"}] == [None] * 4
        assert checks.warnings() == []
        json.dumps(found, allow_nan=False)


def test_share_of_values_outside_the_models_range(plain):
    normalized = np.zeros((4, 10))
    normalized[0, :5], normalized[1, 0], normalized[2, 0] = 1.5, -1.01, 1.0
    checks = checked(good_actions(4), with_bounds(plain), normalized)
    assert checks.to_json()["share_clamped"] == pytest.approx(6 / 40)
    assert checks.to_json()["rows"] == 5


@pytest.mark.parametrize("method", ["none", "meanstd"])
def test_without_bounds_there_is_no_outside(plain, method):
    checks = checked(good_actions(), with_bounds(plain, method), np.full((20, 10), 9.0))
    assert checks.to_json()["share_clamped"] is None
    assert checks.warnings() == []


def test_orthonormality_in_closed_form(plain):
    """Columns twice as long as they should be: CᵀC = 4·I, off by 3."""
    action = good_actions(10)
    action[:5, 3:9] *= 2
    found = checked(action, plain).to_json()
    assert found["rotation_orthonormality_error_max"] == pytest.approx(3, abs=1e-5)
    assert found["rotation_orthonormality_error_mean"] == pytest.approx(1.5, abs=1e-5)


def test_share_of_gripper_values_that_no_gripper_has(plain):
    action = good_actions(10)
    action[:, 9] = [0, 1, -0.09, 1.09, -0.2, 1.2, 0.5, 0.5, 0.5, 5]
    assert checked(action, plain).to_json()["share_gripper_outside"] == pytest.approx(0.3)


def test_sums_run_over_all_tables(plain):
    action = good_actions(10)
    action[:3, 3:9] *= 2
    whole, parts = checked(action, plain), LabelChecks(plain)
    for part in (action[:2], action[2:7], action[7:]):
        parts.add(table_of(part, plain))
    assert parts.to_json() == pytest.approx(whole.to_json() | {"rows": 13})


def test_a_layout_of_the_users_own_is_not_judged(plain):
    """Whether column 9 of 12 is a gripper is not known."""
    recipe = replace(plain, raw_action_dim=12)
    found = checked(np.full((5, 12), 7.0), recipe).to_json()
    assert found["valid_actions"] == 5
    assert found["rotation_orthonormality_error_mean"] is found["share_gripper_outside"] is None


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda action, normalized: normalized.__setitem__((slice(None), slice(0, 3)), 1.5), "outside [-1, 1]"),
        (lambda action, normalized: action.__setitem__((slice(None), slice(3, 9)), 0.0), "orthonormal"),
        (lambda action, normalized: action.__setitem__((slice(None), 9), 3.0), "gripper"),
    ],
    ids=["clamped", "rotation", "gripper"],
)
def test_each_warning_says_what_to_check(plain, spoil, word):
    action, normalized = good_actions(), np.zeros((20, 10))
    assert checked(action, with_bounds(plain), normalized).warnings() == []
    spoil(action, normalized)
    [warning] = checked(action, with_bounds(plain), normalized).warnings()
    assert word in warning
    assert "action_normalization=quantile" in warning


# --- real actions ---


def real_actions(root: Path, *, steps_per_frame: int) -> np.ndarray:
    """DROID's recorded motion as actions; `steps_per_frame` 3 takes its 5 fps back to the 15 Hz it was recorded at."""
    dataset, droid = open_dataset(root), get_embodiment("droid_lerobot")
    actions = []
    for episode in dataset.episode_indexes():
        columns = dataset.read_columns(episode, [POSITION, GRIPPER])
        states, gripper = columns[POSITION], columns[GRIPPER][:, 0]
        times = np.arange(len(states))
        wanted = np.linspace(0, times[-1], steps_per_frame * times[-1] + 1)
        xyz = np.stack([np.interp(wanted, times, states[:, axis]) for axis in range(3)], axis=1)
        euler = Slerp(times, Rotation.from_euler("xyz", states[:, 3:]))(wanted).as_euler("xyz")
        actions.append(
            recorded_actions(
                np.concatenate([xyz, euler], axis=1),
                np.interp(wanted, times, gripper),
                frame_rotation=droid.frame_rotation,
                inverts_gripper=droid.inverts_gripper,
            )
        )
    return np.concatenate(actions)


def checks_of_answers(recipe: Recipe, answers: np.ndarray) -> LabelChecks:
    """What a run sees: the model's answers and what the declared normaliser makes of them."""
    return checked(recipe.normalizer.denormalize(answers), recipe, answers)


@pytest.fixture(scope="module")
def droid(plain, shared_data) -> Recipe:
    path = shared_data / "stats" / "droid_lerobot_stats.json"
    return replace(plain, normalizer=load_normalizer("quantile", path, 10))


def test_real_actions_under_the_right_statistics_are_quiet(droid, shared_data):
    actions = real_actions(shared_data / "droid_real", steps_per_frame=3)
    checks = checks_of_answers(droid, droid.normalizer.normalize(actions, clamp=False))
    found = checks.to_json()
    assert checks.warnings() == []
    assert found["valid_actions"] == len(actions) > 1500
    assert 0 < found["share_clamped"] < 0.06
    assert found["rotation_orthonormality_error_max"] < 1e-4
    assert found["share_gripper_outside"] == 0


def test_a_model_trained_on_clamped_actions_is_quiet_too(droid, shared_data):
    actions = real_actions(shared_data / "droid_real", steps_per_frame=3)
    checks = checks_of_answers(droid, droid.normalizer.normalize(actions))
    assert checks.warnings() == []
    assert checks.to_json()["rotation_orthonormality_error_mean"] < 0.01


def test_motion_at_another_rate_than_the_statistics_is_loud(droid, shared_data):
    """At 5 fps a step is three times as long as at the 15 fps that the statistics were computed at."""
    actions = real_actions(shared_data / "droid_real", steps_per_frame=1)
    [warning] = checks_of_answers(droid, droid.normalizer.normalize(actions, clamp=False)).warnings()
    assert "26% of the model's values" in warning


def test_answers_taken_for_physical_units_are_loud(droid, plain, shared_data):
    """The checkpoint was trained with quantiles, the config says none: positions come out 55 times too large."""
    actions = real_actions(shared_data / "droid_real", steps_per_frame=3)
    warnings = checks_of_answers(plain, droid.normalizer.normalize(actions)).warnings()
    assert any("orthonormal" in warning for warning in warnings)
    assert any("gripper" in warning for warning in warnings)
    assert all("action_normalization=none" in warning for warning in warnings)


def test_answers_of_a_meanstd_checkpoint_taken_for_quantiles_are_loud(droid, shared_data):
    actions = real_actions(shared_data / "droid_real", steps_per_frame=3)
    standardized = (actions - actions.mean(0)) / actions.std(0)
    warnings = checks_of_answers(droid, standardized).warnings()
    assert any("outside [-1, 1]" in warning for warning in warnings)

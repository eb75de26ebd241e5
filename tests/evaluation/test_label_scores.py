"""Scores of labels: what they are worth when everything is known, and that each kind of mistake shows in its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.actions import matrix_to_rot6d
from pipeline.embodiments import get_embodiment
from pipeline.errors import ResultError
from pipeline.evaluation.agreement import ActionLayout
from pipeline.evaluation.label_scores import HEADLINES, LabelledEpisode, render_label_scores, score_labels

DROID = get_embodiment("droid_lerobot")
LAYOUT = ActionLayout(DROID.names_for(10), DROID.rot6d_starts, DROID.gripper_columns)
JOINTS = ActionLayout(("left_0", "left_1"))


def actions(seed: int, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(rng.normal(scale=0.02, size=(count, 3))).as_matrix()
    moved_m = rng.normal(scale=0.01, size=(count, 3))
    return np.concatenate([moved_m, matrix_to_rot6d(turns), rng.integers(0, 2, (count, 1))], axis=1)


def scored(change=lambda action: action, layout: ActionLayout = LAYOUT) -> dict:
    episodes = [LabelledEpisode(index, change(actions(index)), actions(index)) for index in (3, 7)]
    return score_labels(episodes, layout)


def headlines(metrics: dict) -> list[float]:
    return [metrics[name] for name in HEADLINES]


def test_right_labels_score_one_and_the_file_is_json():
    metrics = scored()
    assert headlines(metrics) == pytest.approx([1.0, 1.0, 1.0])
    assert (metrics["num_actions"], metrics["num_episodes"]) == (80, 2)
    assert metrics["translation_error_mm"]["p90"] == metrics["rotation_error_deg"]["mean"] == 0.0
    assert [entry["episode_index"] for entry in metrics["per_episode"]] == [3, 7]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_the_mean_scores_nothing_and_copying_less_where_steps_are_independent():
    baselines = scored()["baselines"]
    assert headlines(baselines["always_the_mean"])[:2] == pytest.approx([0.0, 0.0])
    assert baselines["copy_last"]["translation_r2"] == pytest.approx(-1, abs=0.3)
    assert baselines["copy_last"]["rotation_r2"] == pytest.approx(-1, abs=0.3)


def test_copying_is_right_where_nothing_changes_but_the_first_step():
    steady = np.repeat(actions(0)[:1], 10, axis=0)
    metrics = score_labels([LabelledEpisode(0, steady, steady), LabelledEpisode(1, actions(1), actions(1))], LAYOUT)
    alone = score_labels([LabelledEpisode(0, steady, steady)], LAYOUT)
    assert alone["translation_r2"] is None, "no spread, no share of it"
    assert alone["baselines"]["copy_last"]["gripper_accuracy"] == 1.0
    assert metrics["translation_r2"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("columns", "hurt"),
    [(slice(0, 3), "translation_r2"), (slice(3, 9), "rotation_r2"), (slice(9, 10), "gripper_accuracy")],
)
def test_a_mistake_shows_where_it_was_made(columns, hurt):
    def shuffle(action: np.ndarray) -> np.ndarray:
        wrong = action.copy()
        wrong[:, columns] = np.random.default_rng(0).permutation(action[:, columns])
        return wrong

    metrics = scored(shuffle)
    assert metrics[hurt] < 0.7
    assert [metrics[name] for name in HEADLINES if name != hurt] == pytest.approx([1.0, 1.0])


def test_errors_are_told_in_millimetres_and_degrees():
    def off(action: np.ndarray) -> np.ndarray:
        turned = Rotation.from_rotvec([0, 0, np.deg2rad(2)]) * Rotation.from_matrix(
            np.stack([action[:, 3:6], action[:, 6:9], np.cross(action[:, 3:6], action[:, 6:9])], axis=-1)
        )
        return np.concatenate(
            [action[:, :3] + [0, 0.003, 0], matrix_to_rot6d(turned.as_matrix()), action[:, 9:]], axis=1
        )

    metrics = scored(off)
    assert metrics["translation_error_mm"] == pytest.approx({"mean": 3, "median": 3, "p90": 3})
    assert metrics["rotation_error_deg"] == pytest.approx({"mean": 2, "median": 2, "p90": 2})
    by_name = {entry["name"]: entry for entry in metrics["dimensions"]}
    assert (by_name["dy_m"]["mae"], by_name["dy_m"]["unit"]) == (pytest.approx(0.003), "m")
    assert by_name["dx_m"]["r2"] == pytest.approx(1.0)


def test_a_layout_without_poses_has_dimensions_alone():
    values = np.random.default_rng(0).normal(size=(10, 2))
    metrics = score_labels([LabelledEpisode(0, values, values)], JOINTS)
    assert headlines(metrics) == [None, None, None]
    assert [entry["r2"] for entry in metrics["dimensions"]] == pytest.approx([1.0, 1.0])
    assert "–" in render_label_scores(metrics)


def test_nothing_to_compare_is_said():
    with pytest.raises(ResultError, match="nothing to compare"):
        score_labels([], LAYOUT)


def test_the_table_has_a_row_for_each_answer():
    lines = render_label_scores(scored()).splitlines()
    assert [line[:16].strip() for line in lines[1:]] == ["labels", "always the mean", "copy last"]
    assert lines[1].split()[-3:] == ["1.000", "1.000", "1.000"]

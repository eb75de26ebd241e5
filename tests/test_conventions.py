"""Conventions have teeth: with any one of them broken, the demo's checkpoint labels clearly worse.

The checkpoint learned DROID's conventions from a world whose truth is known. So what is mistaken about them, here or in
a later change, costs score; and what costs score here would mislabel a robot's data with a real checkpoint, which no
test can run. Each break prints what is left and by how much it fell (`pytest -s`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from stage_by_stage import drive_without_ray

from pipeline import recipe as recipe_room
from pipeline.action_sources import open_action_source
from pipeline.actions import load_normalizer, matrix_to_rot6d, rot6d_to_matrix
from pipeline.config import DatasetConfig, EngineConfig, LabelEvaluationConfig
from pipeline.demo import IMAGE_SIZE, STATISTICS, TRAINED
from pipeline.demo.tabletop import DEMO_CAMERA_KEYS
from pipeline.embodiments import get_embodiment
from pipeline.evaluating_labels import labelled_episodes, prepare
from pipeline.evaluation.label_scores import LabelledEpisode, score_labels
from pipeline.labelling import merge_recorded
from pipeline.outputs.merging import read_merged
from pipeline.scoring import action_layout

# What the right conventions reach at least. A broken one must stay MARGIN below it, in what it concerns.
THRESHOLDS = {"translation_r2": 0.82, "rotation_r2": 0.82, "gripper_accuracy": 0.95}
MARGIN = 0.2
# By how much labels may come early or late. Motion is smooth: a neighbouring frame's action is nearly right, so a shift
# by one costs little of R².
LAG_FRAMES = 0.3


class Labelled(NamedTuple):
    """What a run said and what was recorded, per episode [N, D] in physical units; what the columns mean."""

    labels: list[np.ndarray]
    recorded: list[np.ndarray]
    layout: Any

    def score(self) -> dict[str, float]:
        pairs = zip(self.labels, self.recorded, strict=True)
        metrics = score_labels([LabelledEpisode(index, *pair) for index, pair in enumerate(pairs)], self.layout)
        return {name: metrics[name] for name in THRESHOLDS}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> LabelEvaluationConfig:
    from pipeline.demo.dataset import write_world_dataset

    folder = tmp_path_factory.mktemp("conventions")
    root = write_world_dataset(folder / "dataset", seed=3, num_episodes=10, held_out=True)
    return LabelEvaluationConfig(
        dataset=DatasetConfig(root=str(root)),
        engine=EngineConfig(checkpoint=str(TRAINED), num_inference_steps=4, device="cpu"),
        action_stats_path=str(STATISTICS),
        image_size=IMAGE_SIZE,
        output_dir=str(folder / "labels"),
    )


@pytest.fixture(scope="module")
def label(base, tmp_path_factory) -> Callable[..., Labelled]:
    def run(**changes: Any) -> Labelled:
        prepared = prepare(replace(base, output_dir=str(tmp_path_factory.mktemp("run")), **changes))
        assert not any(status["error"] for status in drive_without_ray(prepared))
        merge_recorded(prepared, prepared.recorded_keys())
        episodes = labelled_episodes(prepared, read_merged(prepared.output_dir / "labels"))
        layout = action_layout(prepared.recipe)
        return Labelled([own.labelled for own in episodes], [own.recorded for own in episodes], layout)

    return run


@pytest.fixture(scope="module")
def right(label) -> Labelled:
    return label()


def assert_falls(broken: Labelled, right: Labelled, *concerned: str) -> None:
    now, before = broken.score(), right.score()
    for name in concerned:
        print(f"{name:<18}{before[name]:6.3f} → {now[name]:7.3f}   (at most {THRESHOLDS[name] - MARGIN:.2f})")
        assert now[name] < THRESHOLDS[name] - MARGIN


def lag_frames(labelled: Labelled, columns: slice) -> float:
    """How late labels are: least squares of each on the actions of its own frame and of two on either side."""
    lateness = np.arange(-2, 3)
    own = np.concatenate([labels[2:-2, columns] for labels in labelled.labels])
    near = [
        np.concatenate([actions[2 - late : len(actions) - 2 - late, columns] for actions in labelled.recorded])
        for late in lateness
    ]
    centred = np.stack([actions - actions.mean(0) for actions in near])
    weights, *_ = np.linalg.lstsq(centred.reshape(len(lateness), -1).T, (own - own.mean(0)).ravel())
    return float(weights @ lateness / weights.sum())


def test_the_right_conventions_reach_the_thresholds(right):
    for name, value in right.score().items():
        print(f"{name:<18}{value:6.3f}   (at least {THRESHOLDS[name]:.2f})")
        assert value >= THRESHOLDS[name]


@pytest.mark.parametrize(
    ("change", "concerned"),
    [
        # It turns about the approach axis, as most rotations of this world do, and leaves those as they are.
        ({"frame_rotation": None}, ("translation_r2",)),
        ({"inverts_gripper": False}, ("gripper_accuracy",)),
    ],
    ids=["frame rotation", "gripper sense"],
)
def test_what_is_recorded_in_another_convention_is_not_what_is_labelled(base, right, monkeypatch, change, concerned):
    other = replace(get_embodiment("droid_lerobot"), **change)
    monkeypatch.setattr(recipe_room, "get_embodiment", lambda name: other)
    prepared = prepare(base)
    source = open_action_source("recorded", prepared.dataset, prepared.recipe)
    recorded = [
        source.read(prepared.dataset, index, prepared.recipe.timebase) for index in prepared.dataset.episode_indexes()
    ]
    assert_falls(right._replace(recorded=recorded), right, *concerned)


@pytest.mark.parametrize("order", ["rows", "second column first"])
def test_rotations_that_are_read_in_another_order(right, order):
    """Six numbers are the first two columns, one after the other; here the first two rows, or the columns swapped."""

    def reorder(actions: np.ndarray) -> np.ndarray:
        matrices = rot6d_to_matrix(actions[:, 3:9])
        other = matrix_to_rot6d(matrices.swapaxes(1, 2)) if order == "rows" else actions[:, [6, 7, 8, 3, 4, 5]]
        return np.concatenate([actions[:, :3], other, actions[:, 9:]], axis=1)

    assert_falls(right._replace(labels=[reorder(labels) for labels in right.labels]), right, "rotation_r2")


def test_cameras_in_another_order(base, label, right):
    """The wrist's picture where an exterior one belongs: all pictures are there."""
    wrist, *exterior = DEMO_CAMERA_KEYS
    assert_falls(label(dataset=replace(base.dataset, cameras=(*exterior, wrist))), right, "translation_r2")


def test_frames_at_another_rate(label, right):
    """Every third frame, as if fifteen a second were five: the recorded actions are those of three frames, too."""
    assert_falls(label(fps=5.0), right, "translation_r2", "rotation_r2")


def test_an_action_that_belongs_to_a_neighbouring_frame(right):
    lags = {}
    for shift in (-1, 0, 1):
        shifted = right._replace(labels=[np.roll(own, shift, axis=0) for own in right.labels])
        lags[shift] = {"translation": lag_frames(shifted, slice(0, 3)), "rotation": lag_frames(shifted, slice(3, 9))}
    for name, aligned in lags[0].items():
        print(f"{name:<18}{aligned:6.3f} → {lags[-1][name]:6.3f}, {lags[1][name]:6.3f} frames   (±{LAG_FRAMES})")
        assert abs(aligned) < LAG_FRAMES
        assert lags[1][name] > 1 - LAG_FRAMES
        assert lags[-1][name] < LAG_FRAMES - 1


def test_another_normalisation(label, right):
    """Statistics meant as mean and deviation instead of quantiles."""
    assert_falls(label(action_normalization="meanstd"), right, "translation_r2", "rotation_r2")


def test_units_that_are_given_back_twice(base, right):
    normalizer = load_normalizer(base.action_normalization, STATISTICS, right.labels[0].shape[1])
    twice = [normalizer.denormalize(labels) for labels in right.labels]
    assert_falls(right._replace(labels=twice), right, "translation_r2", "rotation_r2")

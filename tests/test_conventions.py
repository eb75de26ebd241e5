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
THRESHOLDS = {"translation_r2": 0.75, "rotation_r2": 0.7, "gripper_accuracy": 0.9}
MARGIN = 0.2
# Motion is smooth: a neighbouring frame's action is nearly right. Of R², the right frame's must have so much more, and
# the same labels a frame off must have less.
ADVANTAGE = {"translation_r2": 0.03, "rotation_r2": 0.2}


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
    def advantage(labels: list[np.ndarray]) -> dict[str, float]:
        """How much better each label fits its own frame's action than the next or the previous one's."""
        shifted = {
            shift: right._replace(
                labels=[own[1:-1] for own in labels],
                recorded=[own[1 + shift : len(own) - 1 + shift] for own in right.recorded],
            ).score()
            for shift in (-1, 0, 1)
        }
        return {name: shifted[0][name] - max(shifted[-1][name], shifted[1][name]) for name in ADVANTAGE}

    aligned = advantage(right.labels)
    for shift in (-1, 1):
        off = advantage([np.roll(own, shift, axis=0) for own in right.labels])
        for name, value in off.items():
            print(f"{name:<18}{aligned[name]:6.3f} → {value:7.3f} by {shift:+d}   (at least {ADVANTAGE[name]:.2f})")
            assert value < -ADVANTAGE[name]
    assert all(aligned[name] >= least for name, least in ADVANTAGE.items())


def test_another_normalisation(label, right):
    """Statistics meant as mean and deviation instead of quantiles."""
    assert_falls(label(action_normalization="meanstd"), right, "translation_r2")


def test_units_that_are_given_back_twice(base, right):
    normalizer = load_normalizer(base.action_normalization, STATISTICS, right.labels[0].shape[1])
    twice = [normalizer.denormalize(labels) for labels in right.labels]
    assert_falls(right._replace(labels=twice), right, "translation_r2")

"""Labels against recorded actions, from flags to metrics: the demo's own world and the real stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from stage_by_stage import finish_without_ray

from pipeline.config import DatasetConfig, EngineConfig, LabelEvaluationConfig
from pipeline.demo.choreography import true_actions
from pipeline.errors import DatasetError
from pipeline.evaluating_labels import evaluate, prepare
from pipeline.evaluation.agreement import ActionLayout
from pipeline.evaluation.label_scores import LABEL_METRICS_SCHEMA, LabelledEpisode, score_labels
from pipeline.scoring import Scored


@pytest.fixture(scope="module")
def base(tiny_checkpoint, held_out_world, tmp_path_factory) -> LabelEvaluationConfig:
    return LabelEvaluationConfig(
        dataset=DatasetConfig(root=str(held_out_world[0])),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint), num_inference_steps=1, device="cpu"),
        action_normalization="none",
        image_size=256,
        output_dir=str(tmp_path_factory.mktemp("labels")),
    )


@pytest.fixture(scope="module")
def finished(base) -> Scored:
    return finish_without_ray(lambda: prepare(base), evaluate)


def test_the_metrics_are_those_of_the_labels_on_disk_against_what_was_played(base, held_out_world, finished):
    """The truth comes from the world itself, not through the pipeline's reader."""
    output = Path(base.output_dir)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["schema"] == LABEL_METRICS_SCHEMA
    rows = pq.read_table(output / "labels").to_pandas()
    rows = rows[rows["action_valid"]].sort_values(["episode_index", "frame_index"])
    episodes = []
    for index, recording in enumerate(held_out_world[1]):
        labelled = np.stack(rows[rows["episode_index"] == index]["action"])
        episodes.append(LabelledEpisode(index, labelled, true_actions(recording)[:-1]))
    recipe = prepare(base).recipe
    layout = ActionLayout(recipe.action_names, recipe.rot6d_starts, recipe.embodiment.gripper_columns)
    expected = score_labels(episodes, layout)
    for name in ("translation_r2", "rotation_r2", "gripper_accuracy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-3)
        for baseline, scores in expected["baselines"].items():
            assert metrics["baselines"][baseline][name] == pytest.approx(scores[name], abs=1e-4)
    assert metrics["num_actions"] == sum(len(episode.recorded) for episode in episodes)
    assert finished.exit_code == 0
    assert "copy last" in finished.render()


def test_a_dataset_without_actions_is_refused_before_a_model_is_loaded(base, shared_data):
    videos = DatasetConfig(
        root=str(shared_data / "droid_videos"), format="videos", cameras=("video",), timebase="native"
    )
    with pytest.raises(DatasetError, match="no recorded actions"):
        prepare(replace(base, dataset=videos))


def test_other_settings_are_other_labels(base, finished):
    """A record that is there is used again; one of another seed is not."""
    assert not prepare(base).missing
    assert prepare(replace(base, engine=replace(base.engine, seed=1))).missing

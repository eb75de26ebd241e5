"""A policy's evaluation from flags to metrics: the demo's own scenes, the real stages, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stage_by_stage import finish_without_ray

from pipeline.config import DatasetConfig, EngineConfig, EvaluationConfig
from pipeline.demo.tabletop import TIP_M
from pipeline.errors import ConfigError
from pipeline.evaluating_policy import evaluate, prepare
from pipeline.evaluation.policy_scores import towards
from pipeline.scoring import Scored


@pytest.fixture(scope="module")
def base(tiny_checkpoint, held_out_world, tmp_path_factory) -> EvaluationConfig:
    root, _ = held_out_world
    return EvaluationConfig(
        dataset=DatasetConfig(root=str(root)),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint), num_inference_steps=1, device="cpu"),
        action_normalization="none",
        action_chunk_size=4,
        image_size=256,
        scenes_path=str(root / "scenes.json"),
        output_dir=str(tmp_path_factory.mktemp("policy")),
    )


@pytest.fixture(scope="module")
def finished(base) -> Scored:
    return finish_without_ray(lambda: prepare(base), evaluate)


def test_every_scene_is_judged_and_the_metrics_are_beside_the_rollouts(base, held_out_world, finished):
    metrics = json.loads((Path(base.output_dir) / "policy" / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert metrics["num_scenes"] + metrics["num_held_already"] == len(held_out_world[1])
    assert finished.exit_code == 0
    assert "chance" in finished.render()


def test_the_recorded_way_is_that_of_the_fingertips(held_out_world, finished):
    """Against the world itself, which the pipeline knows only by the file."""
    right = []
    for recording in held_out_world[1]:
        tips = recording.hand_poses[:5, :3, 3] + TIP_M * recording.hand_poses[:5, :3, 2]
        objects_m = {name: poses[0, :3, 3] for name, poses in recording.object_poses.items()}
        if np.linalg.norm(tips[0] - objects_m[recording.target]) > 0.03:
            right.append(towards(tips, objects_m) == recording.target)
    assert finished.metrics["baselines"]["recorded_actions"] == pytest.approx(np.mean(right))


def test_scenes_of_other_episodes_are_refused(base, tmp_path):
    scenes = json.loads(Path(base.scenes_path).read_text())
    for entry in scenes["episodes"]:
        entry["episode_index"] += 100
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(scenes))
    with pytest.raises(ConfigError, match="100, 101, 102"):
        prepare(replace(base, scenes_path=str(path)))


def test_a_dataset_without_recorded_poses_is_refused(base, tmp_path):
    root = Path(shutil.copytree(base.dataset.root, tmp_path / "world"))
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.state.cartesian_position"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="recorded poses are needed"):
        prepare(replace(base, dataset=DatasetConfig(root=str(root))))

"""Evaluating a policy from config to metrics: one chunk of each scene's first frame, held against where things are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import rollouts
from pipeline.action_sources import RecordedStates, open_action_source
from pipeline.actions import integrate_actions, poses_from_xyz_euler, xyz_euler_from_poses
from pipeline.config import EvaluationConfig, PolicyConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.policy_scores import PolicyEpisode, render_policy_scores, score_policy
from pipeline.evaluation.scenes import Scenes, read_scenes
from pipeline.printable import listed
from pipeline.run import Prepared, Show, open_input
from pipeline.scoring import Scored, by_episode, drive_and_score


@dataclass(frozen=True, kw_only=True)
class PreparedPolicy(Prepared):
    """A policy run, and what it will be judged by."""

    scenes: Scenes


def prepare(config: EvaluationConfig) -> PreparedPolicy:
    """A policy run below the evaluation's output folder, of the episodes that `scenes_path` has scenes of.

    Raises a typed error for whatever does not fit, such as a dataset without recorded poses.
    """
    scenes, dataset = read_scenes(config.scenes_path), open_input(config)
    chosen = set(config.dataset.episodes or dataset.episode_indexes()) & scenes.by_episode.keys()
    if not chosen:
        raise ConfigError(
            f"{config.scenes_path}: expected scenes of the episodes to evaluate, found those of "
            f"{listed(sorted(scenes.by_episode))}. Check --dataset.episodes."
        )
    shared = {setting.name: getattr(config, setting.name) for setting in dataclasses.fields(RunConfig)}
    shared["dataset"] = replace(config.dataset, episodes=tuple(sorted(chosen)))
    shared["output_dir"] = f"{config.output_dir.rstrip('/')}/policy"
    prepared = rollouts.prepare_policy(PolicyConfig(**shared, lerobot_dataset=False))
    _recorded_states(prepared)
    return PreparedPolicy(**vars(prepared), scenes=scenes)


def evaluate(prepared: PreparedPolicy, show: Show | None = None) -> Scored:
    """Draws what has no record yet, then writes `metrics.json` beside the rollouts."""
    return drive_and_score(
        prepared,
        show,
        merge=rollouts.merge_rollouts,
        folder="rollouts",
        score=_score,
        render=render_policy_scores,
    )


def _score(prepared: PreparedPolicy, rows: pa.Table) -> dict[str, Any]:
    source, timebase = _recorded_states(prepared), prepared.recipe.timebase
    scenes, episodes = prepared.scenes, []
    for index, own in by_episode(rows):
        actions = np.array(own["action"].to_pylist(), dtype=np.float64)
        recorded = prepared.dataset.read_columns(index, (source.pose_key,))[source.pose_key][:: timebase.stride]
        poses = poses_from_xyz_euler(recorded[:1], source.embodiment.frame_rotation)
        drawn = xyz_euler_from_poses(integrate_actions(poses[0], actions), source.embodiment.frame_rotation)
        episodes.append(
            PolicyEpisode(
                index,
                own["task"][0].as_py(),
                scenes.by_episode[index],
                way_m=_tips(drawn, scenes.tool_m),
                recorded_way_m=_tips(recorded[: len(actions) + 1], scenes.tool_m),
            )
        )
    return score_policy(episodes)


def _recorded_states(prepared: Prepared) -> RecordedStates:
    source = open_action_source("recorded", prepared.dataset, prepared.recipe)
    if not isinstance(source, RecordedStates):
        raise ConfigError(
            f"{prepared.dataset.root}: a policy is judged by where the hand goes, so recorded poses are needed "
            f"({' or '.join(prepared.recipe.embodiment.pose_state_keys) or 'none are known for this embodiment'}), "
            "and there are none. Leave --scenes_path out."
        )
    return source


def _tips(xyz_euler: np.ndarray, tool_m: np.ndarray) -> np.ndarray:
    poses = poses_from_xyz_euler(xyz_euler)
    return poses[:, :3, 3] + poses[:, :3, :3] @ tool_m

"""Whether a policy goes for what its instruction names: the way of the fingertips against where objects are.

The hand goes *towards* that object of whose distance it covers the largest share, where it comes nearest within its
first chunk. Beside the policy: the recorded actions of the same steps, which are what it should do; always the object
that is nearest at the beginning, what one can do without reading; and chance, a scene's share of one among its objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ResultError
from pipeline.evaluation.scenes import Scene

POLICY_METRICS_SCHEMA = "policy-metrics/1"
# Closer than this the hand holds its target already: there is nothing to go towards.
HELD_WITHIN_M = 0.03


@dataclass(frozen=True, eq=False)
class PolicyEpisode:
    """The fingertips' way from the first frame, [T, 3] in m: the policy's, and the recorded one."""

    episode_index: int
    task: str
    scene: Scene
    way_m: np.ndarray
    recorded_way_m: np.ndarray


def towards(way_m: np.ndarray, objects_m: Mapping[str, np.ndarray]) -> str:
    """The object that a way [T, 3] leads to."""
    shares = {}
    for name, position_m in objects_m.items():
        distances = np.linalg.norm(way_m - position_m, axis=1)
        shares[name] = 1.0 - distances.min() / distances[0] if distances[0] > 0 else 0.0
    return max(shares, key=lambda name: shares[name])


def score_policy(episodes: Sequence[PolicyEpisode]) -> dict[str, Any]:
    """The metrics' `policy`. Raises ResultError where no scene is left to be judged."""
    judged = [episode for episode in episodes if _distances(episode)[episode.scene.target] > HELD_WITHIN_M]
    if not judged:
        raise ResultError(
            f"No episode begins with its target farther than {HELD_WITHIN_M} m from the fingertips: there is nothing "
            "to go towards. Give scenes whose instruction is still to be carried out."
        )
    found = [towards(episode.way_m, episode.scene.objects_m) for episode in judged]
    answers = {
        "recorded_actions": [towards(episode.recorded_way_m, episode.scene.objects_m) for episode in judged],
        "nearest_object": [min(_distances(episode).items(), key=lambda item: item[1])[0] for episode in judged],
    }
    targets = [episode.scene.target for episode in judged]
    return {
        "schema": POLICY_METRICS_SCHEMA,
        "towards_target": _share_right(found, targets),
        "chance": float(np.mean([1 / len(episode.scene.objects_m) for episode in judged])),
        "baselines": {name: _share_right(answer, targets) for name, answer in answers.items()},
        "num_scenes": len(judged),
        "num_held_already": len(episodes) - len(judged),
        "per_episode": [
            {
                "episode_index": episode.episode_index,
                "task": episode.task,
                "target": episode.scene.target,
                "towards": name,
                "num_objects": len(episode.scene.objects_m),
            }
            for episode, name in zip(judged, found, strict=True)
        ],
    }


def render_policy_scores(metrics: Mapping[str, Any]) -> str:
    """For a terminal."""
    baselines = metrics["baselines"]
    return (
        f"policy     towards the object that is named in {metrics['towards_target']:.0%} of {metrics['num_scenes']} "
        f"scenes (recorded actions {baselines['recorded_actions']:.0%}, always the nearest object "
        f"{baselines['nearest_object']:.0%}, chance {metrics['chance']:.0%})"
    )


def _distances(episode: PolicyEpisode) -> dict[str, float]:
    """Of each object from the fingertips, at the beginning."""
    start_m = episode.recorded_way_m[0]
    return {name: float(np.linalg.norm(position - start_m)) for name, position in episode.scene.objects_m.items()}


def _share_right(answers: Sequence[str], targets: Sequence[str]) -> float:
    return float(np.mean([answer == target for answer, target in zip(answers, targets, strict=True)]))

"""Towards which object a way leads, and how often that is the one that was named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.errors import ConfigError, ResultError
from pipeline.evaluation.policy_scores import PolicyEpisode, render_policy_scores, score_policy, towards
from pipeline.evaluation.scenes import Scene, read_scenes

CUBE, DISC, CAN = np.array([0.4, 0.1, 0.0]), np.array([0.4, -0.1, 0.0]), np.array([0.6, 0.0, 0.0])
START = np.array([0.4, 0.0, 0.1])


def way(*ends: np.ndarray, start: np.ndarray = START) -> np.ndarray:
    points = [start]
    for end in ends:
        points += [points[-1] + (end - points[-1]) * share for share in (0.25, 0.5, 0.75, 0.9)]
    return np.array(points)


def episode(index: int, target: str, policy: np.ndarray, recorded: np.ndarray) -> PolicyEpisode:
    objects_m = {"red cube": CUBE, "blue disc": DISC, "red can": CAN}
    return PolicyEpisode(index, f"Pick up the {target}.", Scene(target, objects_m), policy, recorded)


def test_a_way_leads_to_the_object_of_whose_distance_it_covers_most():
    objects_m = {"cube": CUBE, "disc": DISC, "can": CAN}
    assert towards(way(CUBE), objects_m) == "cube"
    assert towards(way(DISC), objects_m) == "disc"
    # There and back again: where it came nearest counts.
    assert towards(way(DISC, START), objects_m) == "disc"
    # A long way that ends far from everything may still be meant for what lies farthest.
    assert towards(way((START + CAN) / 2), objects_m) == "can"


def test_scores_stand_beside_what_one_can_do_without_reading():
    episodes = [
        episode(0, "red cube", way(CUBE), way(CUBE)),
        episode(1, "blue disc", way(CUBE), way(DISC)),
        episode(2, "red can", way(CAN), way(CAN)),
        episode(3, "red can", way(DISC), way(DISC)),  # the recording itself goes elsewhere
    ]
    metrics = score_policy(episodes)
    assert metrics["towards_target"] == 0.5
    assert metrics["baselines"] == {"recorded_actions": 0.75, "nearest_object": 0.25}
    assert metrics["chance"] == pytest.approx(1 / 3)
    assert [entry["towards"] for entry in metrics["per_episode"]] == ["red cube", "red cube", "red can", "blue disc"]
    told = render_policy_scores(metrics)
    assert "50% of 4 scenes" in told
    assert "chance 33%" in told
    json.dumps(metrics, allow_nan=False)


def test_what_is_held_already_is_left_out_and_counted():
    held = way(CUBE, start=CUBE + 0.005)
    metrics = score_policy([episode(0, "red cube", held, held), episode(1, "blue disc", way(DISC), way(DISC))])
    assert (metrics["num_scenes"], metrics["num_held_already"], metrics["towards_target"]) == (1, 1, 1.0)
    with pytest.raises(ResultError, match="nothing to go towards"):
        score_policy([episode(0, "red cube", held, held)])


def test_a_scenes_file_is_read(tmp_path):
    path = tmp_path / "scenes.json"
    entry = {"episode_index": 3, "target": "a", "objects_m": {"a": [1, 2, 3], "b": [0, 0, 0]}}
    path.write_text(json.dumps({"tool_m": [0, 0, 0.1], "episodes": [entry]}))
    scenes = read_scenes(path)
    assert scenes.tool_m.tolist() == [0, 0, 0.1]
    assert scenes.by_episode[3].target == "a"
    assert scenes.by_episode[3].objects_m["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"tool_m": [0, 0], "episodes": []}',
        '{"tool_m": [0, 0, 0], "episodes": []}',
        '{"tool_m": [0, 0, NaN], "episodes": []}',
        '{"tool_m": [0, 0, 0], "episodes": [{"episode_index": 0, "target": "a", "objects_m": {"b": [0, 0, 0]}}]}',
        '{"tool_m": [0, 0, 0], "episodes": [{"episode_index": -1, "target": "a", "objects_m": {"a": [0, 0, 0]}}]}',
        '{"tool_m": [0, 0, 0], "episodes": [{"episode_index": 0, "target": "a", "objects_m": {"a": "here"}}]}',
        '{"tool_m": [0, 0, 0], "episodes": [{"episode_index": 0, "target": ["a"], "objects_m": {"a": [0, 0, 0]}}]}',
    ],
)
def test_a_wrong_scenes_file_is_named(tmp_path, text):
    path = tmp_path / "scenes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"scenes\.json: expected"):
        read_scenes(path)


def test_a_missing_scenes_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        read_scenes(tmp_path / "nowhere.json")

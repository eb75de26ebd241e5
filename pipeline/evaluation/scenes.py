"""Where objects are when an episode begins: what an instruction that names one of them is judged by.

A scenes file is JSON, in the coordinates of the recorded poses, metres:

    {"tool_m": [0, 0, 0.145],
     "episodes": [{"episode_index": 0, "target": "red cube",
                   "objects_m": {"red cube": [0.4, 0.1, 0.02], "blue disc": [0.5, -0.1, 0.01]}}]}

`tool_m` is the point between the fingertips, seen from the recorded hand. `target` is what the instruction names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from pipeline.errors import ConfigError
from pipeline.storage import open_path, read_bytes


@dataclass(frozen=True, eq=False)
class Scene:
    """One episode's first frame. Every position is float64 [3], in m."""

    target: str
    objects_m: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Scenes:
    """All that a scenes file says."""

    tool_m: np.ndarray
    by_episode: Mapping[int, Scene]


def read_scenes(path: str | Path | UPath) -> Scenes:
    """Raises ConfigError for a file that cannot be read, or says something else."""
    path = open_path(path)
    try:
        content = json.loads(read_bytes(path))
        tool_m = _position(content["tool_m"])
        scenes = {_index(entry["episode_index"]): _scene(entry) for entry in content["episodes"]}
    except (OSError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a scenes file, {{'tool_m': [x, y, z], 'episodes': [{{'episode_index': 0, 'target': "
            f"'red cube', 'objects_m': {{'red cube': [x, y, z], ...}}}}]}}, found something else ({error!r}). Correct "
            "it, or leave --scenes_path out."
        ) from error
    if not scenes:
        raise ConfigError(f"{path}: expected the scene of at least one episode, found none.")
    return Scenes(tool_m, scenes)


def _scene(entry: Mapping[str, Any]) -> Scene:
    objects_m = {str(name): _position(position) for name, position in entry["objects_m"].items()}
    if entry["target"] not in objects_m:
        raise ValueError(f"target {entry['target']!r} is none of the objects {', '.join(objects_m)}")
    return Scene(entry["target"], objects_m)


def _position(value: Any) -> np.ndarray:
    position = np.asarray(value, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise ValueError(f"{value!r} is not a position in m")
    return position


def _index(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not the index of an episode")
    return value

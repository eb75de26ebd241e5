"""Where the actions of a rollout come from: the recording, a label run's pseudo-actions, or a file.

All give physical actions in the embodiment's layout, one per step at the model's rate. Opened and checked on the
driver, before a model is loaded; read where the frames are.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipeline.action_files import read_action_file
from pipeline.actions import recorded_actions, rot6d_orthonormality_error
from pipeline.datasets import Episode, RobotVideoDataset, Timebase
from pipeline.embodiments import Embodiment
from pipeline.errors import ActionFileError, ConfigError, DatasetError, EpisodeError
from pipeline.fingerprint import digest
from pipeline.recipe import Recipe
from pipeline.storage import absolute, folder_names, kind, open_path, read_bytes

_ACTION_KEY = "action"
# On average over an episode. Recorded rotations are orthonormal to float32's last digits, a model's to about 0.01;
# numbers of another meaning are off by much more.
_MAX_ROTATION_ERROR = 0.1


class ActionSource(ABC):
    """Actions of any episode. Instances can be pickled."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Identity made of content: two sources that say the same have the same."""

    @abstractmethod
    def read(self, dataset: RobotVideoDataset, episode_index: int, timebase: Timebase) -> np.ndarray:
        """float64 [N, D] physical actions; row t leads from position t to t + 1. Raises a typed error."""

    def num_actions(self, episode: Episode, timebase: Timebase) -> int:
        """How many there are, as the metadata say."""
        return max(0, len(timebase.frame_indexes(episode.num_frames)) - 1)


@dataclass(frozen=True)
class RecordedStates(ActionSource):
    """Motion between observed poses, and the commanded gripper: how the model's DROID actions are defined."""

    embodiment: Embodiment
    pose_key: str
    gripper_key: str

    def to_json(self) -> dict[str, Any]:
        return {"source": "recorded", "pose": self.pose_key, "gripper": self.gripper_key}

    def read(self, dataset: RobotVideoDataset, episode_index: int, timebase: Timebase) -> np.ndarray:
        columns = _read_columns(dataset, episode_index, (self.pose_key, self.gripper_key))
        return recorded_actions(
            columns[self.pose_key][:: timebase.stride],
            columns[self.gripper_key][:: timebase.stride, 0],
            frame_rotation=self.embodiment.frame_rotation,
            inverts_gripper=self.embodiment.inverts_gripper,
        )


@dataclass(frozen=True)
class RecordedColumn(ActionSource):
    """A column that holds the model's own layout already, such as a dataset that was labelled with it."""

    domain_name: str
    key: str
    rot6d_starts: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"source": "recorded", "column": self.key}

    def read(self, dataset: RobotVideoDataset, episode_index: int, timebase: Timebase) -> np.ndarray:
        recorded = _read_columns(dataset, episode_index, (self.key,))[self.key]
        for start in self.rot6d_starts:
            error = rot6d_orthonormality_error(recorded[:, start : start + 6]).mean()
            if error > _MAX_ROTATION_ERROR:
                raise EpisodeError(
                    f"Episode {episode_index}: columns {start}..{start + 5} of {self.key!r} should be two columns of a "
                    f"rotation, as {self.domain_name} has them, and are off by {error:.2f}. The column has "
                    "the right width and another meaning: convert it, or give --actions labels:DIR or a file."
                )
        return recorded[:: timebase.stride][:-1]


@dataclass(frozen=True)
class PseudoLabels(ActionSource):
    """What a label run said about the same dataset."""

    folder: str
    run_id: str

    def to_json(self) -> dict[str, Any]:
        return {"source": "labels", "run_id": self.run_id}

    def read(self, dataset: RobotVideoDataset, episode_index: int, timebase: Timebase) -> np.ndarray:
        expected = timebase.frame_indexes(dataset.episode(episode_index).num_frames)[:-1]
        try:
            labels = open_path(self.folder) / "labels"
            rows = pq.read_table(
                labels.path,
                filesystem=labels.fs,
                columns=["frame_index", "action", "action_valid"],
                filters=[("episode_index", "=", episode_index)],
            )
            rows = rows.filter(rows["action_valid"])
            found = rows["frame_index"].cast(pa.int64()).to_numpy()
            actions = np.array(rows["action"].to_pylist(), dtype=np.float64)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise EpisodeError(
                f"{self.folder}: expected the labels of episode {episode_index}, found files that cannot be read as "
                f"such ({error}). Remove labels/ and run the same command again."
            ) from error
        if not np.array_equal(found, expected):
            raise EpisodeError(
                f"{self.folder}: expected labels of all {len(expected)} steps of episode {episode_index}, found "
                f"{len(found)}. Finish that run (the same command again), or leave the episode out with "
                "--dataset.episodes."
            )
        return actions


@dataclass(frozen=True)
class ActionsOfFile(ActionSource):
    """The same actions for every episode."""

    path: str
    raw_action_dim: int
    count: int
    content: str

    def to_json(self) -> dict[str, Any]:
        return {"source": "file", "digest": self.content}

    def num_actions(self, episode: Episode, timebase: Timebase) -> int:
        return self.count

    def read(self, dataset: RobotVideoDataset, episode_index: int, timebase: Timebase) -> np.ndarray:
        actions = read_action_file(self.path, raw_action_dim=self.raw_action_dim)
        if digest(actions.tolist()) != self.content:
            raise ActionFileError(
                f"{self.path}: expected the actions that this run was started with, found others. Start it again; on a "
                "cluster, see that every machine has the same file."
            )
        return actions.astype(np.float64)


def open_action_source(choice: str, dataset: RobotVideoDataset, recipe: Recipe) -> ActionSource:
    """`recorded`, `labels:DIR`, or the path of an action file; `recipe` says what the actions have to be.

    Raises DatasetError for a dataset without recorded actions in a known form, ConfigError for a label run of another
    dataset, embodiment or rate, ActionFileError for a file that cannot be used.
    """
    if choice == "recorded":
        return _open_recorded(dataset, recipe)
    if choice.startswith("labels:"):
        return _open_labels(open_path(choice.removeprefix("labels:")), dataset, recipe)
    path = absolute(choice)
    actions = read_action_file(path, raw_action_dim=recipe.raw_action_dim)
    return ActionsOfFile(path, recipe.raw_action_dim, len(actions), digest(actions.tolist()))


def _open_recorded(dataset: RobotVideoDataset, recipe: Recipe) -> ActionSource:
    embodiment, width, features = recipe.embodiment, recipe.raw_action_dim, dataset.features
    pose_key = next((key for key in embodiment.pose_state_keys if features.get(key) == 6), None)
    gripper_key = next((key for key in embodiment.gripper_command_keys if features.get(key) == 1), None)
    if pose_key and gripper_key and width == embodiment.raw_action_dim:
        return RecordedStates(embodiment, pose_key, gripper_key)
    if features.get(_ACTION_KEY) != width:
        numeric = ", ".join(f"{key} [{width}]" for key, width in features.items()) or "none at all"
        states = " and ".join((*embodiment.pose_state_keys, *embodiment.gripper_command_keys))
        raise DatasetError(
            f"{dataset.root}: no recorded actions of {embodiment.domain_name}. Expected {states or 'a column'}"
            f"{', or a column' if states else ''} 'action' of width {width}; found {numeric}. Give actions: "
            "--actions labels:DIR (of a label run) or --actions FILE.json."
        )
    if recipe.timebase.stride != 1 and not _is_absolute(recipe):
        raise DatasetError(
            f"{dataset.root}: as far as is known of {embodiment.domain_name}, 'action' holds the motion of one frame "
            f"at {recipe.timebase.dataset_fps:g} fps and cannot be thinned out to {recipe.timebase.model_fps:g} fps. "
            "Use --dataset.timebase native, or --actions labels:DIR."
        )
    return RecordedColumn(embodiment.domain_name, _ACTION_KEY, recipe.rot6d_starts)


def _is_absolute(recipe: Recipe) -> bool:
    """Whether each action stands for itself, such as joint positions: every layout with rotations is relative."""
    is_known_layout = recipe.action_names == recipe.embodiment.action_names
    return is_known_layout and not recipe.rot6d_starts


def _open_labels(folder: Path | UPath, dataset: RobotVideoDataset, recipe: Recipe) -> ActionSource:
    manifest = _read_manifest(folder)
    if manifest["dataset"].get("fingerprint") != dataset.fingerprint():
        raise ConfigError(
            f"{folder}: these labels are of another dataset ({manifest['dataset'].get('root')}), whose episodes differ "
            f"from those of {dataset.root}. Label this one first: jobs/label_inverse.py."
        )
    theirs, ours = manifest["recipe"], recipe.to_json()
    for name in ("embodiment", "raw_action_dim", "model_fps", "frame_stride"):
        if theirs.get(name) != ours[name]:
            raise ConfigError(
                f"{folder}: these labels have {name} {theirs.get(name)!r}, this run has {ours[name]!r}. Use the same "
                "settings, or label again with these."
            )
    scales = {theirs["action_normalization"]["method"], recipe.normalizer.method}
    if "none" in scales and len(scales) > 1:
        raise ConfigError(
            f"{folder}: either these labels or this run's actions are in the model's own scale, without units, and the "
            "others are physical. Use one --action_normalization for both."
        )
    return PseudoLabels(absolute(folder), manifest["run_id"])


def _read_manifest(folder: Path | UPath) -> dict[str, Any]:
    path = folder / "manifest.json"
    if kind(path) != "file" or kind(folder / "labels") != "folder":
        raise ConfigError(
            f"--actions labels:{folder}: expected the output folder of a label run, with manifest.json and labels/ in "
            "it. Run jobs/label_inverse.py first."
        )
    try:
        manifest = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON ({error}). Run jobs/label_inverse.py again.") from error
    recipe = _object(manifest, "recipe")
    if recipe.get("mode") != "inverse_dynamics":
        raise ConfigError(
            f"{path}: expected the manifest of a label run, found one of {recipe.get('mode', 'something else')!r}."
        )
    names = (manifest.get("run_id"), _object(recipe, "action_normalization").get("method"))
    if not isinstance(manifest.get("dataset"), dict) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{path}: expected run_id, dataset and recipe.action_normalization as a label run writes them, found them "
            "missing or of another kind. Run jobs/label_inverse.py again."
        )
    _check_same_run(folder, manifest["run_id"])
    return manifest


def _object(value: Any, name: str) -> dict[str, Any]:
    """`value[name]`, or an empty object where there is none."""
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _check_same_run(folder: Path | UPath, run_id: str) -> None:
    """A run that was broken off has left its manifest, and the labels of the run before it."""
    labels = folder / "labels"
    for path in (labels / name for name in folder_names(labels) if name.endswith(".parquet")):
        try:
            metadata = pq.read_schema(path.path, filesystem=path.fs).metadata or {}
            theirs = dict(json.loads(metadata.get(b"manifest", b"{}")))
        except (pa.ArrowException, OSError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}: expected labels with their run's manifest, found a file that cannot be read as such "
                f"({error}). Remove it, and finish that run: the same command again."
            ) from error
        if theirs.get("run_id", run_id) != run_id:
            raise ConfigError(
                f"{path}: these labels are of run {theirs['run_id']}, and the run that {folder / 'manifest.json'} "
                f"describes is {run_id}. Finish that one: the same command again."
            )


def _read_columns(dataset: RobotVideoDataset, episode_index: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns = dataset.read_columns(episode_index, keys)
    missing = [key for key in keys if key not in columns]
    if missing:
        raise EpisodeError(f"Episode {episode_index}: {' and '.join(missing)} were not recorded.")
    for key, values in columns.items():
        if not np.isfinite(values).all():
            raise EpisodeError(
                f"Episode {episode_index}: {key} has {int((~np.isfinite(values)).sum())} values that are not finite. "
                "Repair the recording, or leave the episode out with --dataset.episodes."
            )
    return columns

"""Whether actions can be read back from a video: recovered ones against given ones. Owns these error measures.

Recovered means: inverse dynamics of the same checkpoint looked at the video. From the rollout of the recorded actions
it tells whether the world model drew what it was told to do; from the recorded video itself (`ceiling`), how well
inverse dynamics does on a video that is right; always guessing the mean action, what knowing nothing costs.

Errors are averaged over the frames and samples of an episode, then over episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.actions import geodesic_angle, rot6d_to_matrix
from pipeline.errors import ConfigError, ResultError
from pipeline.evaluation.statistics import estimate, mean_or_none

SOURCES = ("recorded", "ceiling", "always_the_mean")

_ROT6D_WIDTH = 6
CLOSED_BELOW = 0.5  # grippers are 0 to 1; which end is open differs, but not the middle
# Sine of the angle between the two columns of a rotation. Stricter than rot6d_to_matrix, which raises below 1e-12.
_SMALLEST_SINE = 1e-9
_EXPLAINED = ("translation", "rotation")
LEAST_SPREAD = 1e-9  # m, rad: what is closer together differs by rounding alone


@dataclass(frozen=True)
class ActionLayout:
    """What the columns of an action mean: the fields of an Embodiment that errors depend on.

    Raises ConfigError when a block does not fit between the columns, or leaves no room for a translation before it.
    """

    names: tuple[str, ...]
    rot6d_starts: tuple[int, ...] = ()  # first column of each six-wide rotation block; its translation stands before it
    gripper_columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        width = len(self.names)
        if any(start < 3 or start + _ROT6D_WIDTH > width for start in self.rot6d_starts):
            raise ConfigError(
                f"Rotations at columns {list(self.rot6d_starts)} do not fit into {width} columns: each takes "
                f"{_ROT6D_WIDTH} columns and has its translation in the three before. Check the embodiment's layout."
            )
        if any(not 0 <= column < width for column in self.gripper_columns):
            raise ConfigError(
                f"Gripper columns {list(self.gripper_columns)} do not exist: actions have {width} columns. "
                "Check the embodiment's layout."
            )

    @property
    def translation_starts(self) -> tuple[int, ...]:
        """First of the three columns of each translation."""
        return tuple(start - 3 for start in self.rot6d_starts)

    @property
    def translation_unit(self) -> str:
        """`m` where every translation's name says so, else empty: some datasets publish normalised ones."""
        names = [name for start in self.translation_starts for name in self.names[start : start + 3]]
        return "m" if names and all(name.endswith("_m") for name in names) else ""

    @property
    def open_or_closed(self) -> tuple[int, ...]:
        """Gripper columns with a middle between open and closed. A width in metres has none."""
        return tuple(column for column in self.gripper_columns if not self.names[column].endswith("_m"))

    def unit(self, column: int) -> str:
        """`m`, `0..1` for a gripper, or empty."""
        if self.names[column].endswith("_m"):
            return "m"
        return "0..1" if column in self.gripper_columns else ""


@dataclass(frozen=True, eq=False)
class ActionPairs:
    """Given actions and those recovered, one pair per frame and sample, float64 [N, D] in physical units."""

    given: np.ndarray
    recovered: np.ndarray
    episode: np.ndarray  # [N], position in the list of episodes
    num_episodes: int

    def episode_means(self, values: np.ndarray) -> np.ndarray:
        """Mean of [N] over each episode's pairs, NaN skipped, [E]; NaN for an episode without any."""
        present = np.isfinite(values)
        sums = np.bincount(self.episode[present], values[present], self.num_episodes)
        counts = np.bincount(self.episode[present], minlength=self.num_episodes)
        return np.divide(sums, counts, out=np.full(self.num_episodes, np.nan), where=counts > 0)


@dataclass(frozen=True, eq=False)
class EpisodeErrors:
    """What each episode scored: [E] or [E, D], NaN for an episode without pairs."""

    mae: np.ndarray  # [E, D]
    mse: np.ndarray  # [E, D]
    groups: Mapping[
        str, Mapping[str, np.ndarray]
    ]  # translation, rotation, gripper → measure → [E]; absent without such columns
    num_frames: int
    num_no_rotation: int  # pairs in which six numbers span no plane; left out of `rotation`


def measure_agreement(
    rows: pa.Table, episode_index: np.ndarray, layout: ActionLayout
) -> tuple[dict[str, EpisodeErrors], np.ndarray] | None:
    """Errors by source, of SOURCES those there are, and which columns [D] of the given actions ever change.

    None where no action was recovered from the rollouts of the recorded actions. Raises ResultError when the actions'
    width is not the layout's or a number is not finite.
    """
    pairs = _recovered_pairs(rows, "recorded", episode_index, layout)
    if pairs is None:
        return None
    ceiling = _recovered_pairs(rows, "ceiling", episode_index, layout)
    by_source = {"recorded": pairs, "ceiling": ceiling, "always_the_mean": _mean_guess(pairs)}
    errors = {source: _errors(found, layout) for source, found in by_source.items() if found is not None}
    return errors, np.ptp(pairs.given, axis=0) > 0


def describe_agreement(
    errors: Mapping[str, EpisodeErrors], changes: np.ndarray, layout: ActionLayout
) -> dict[str, Any]:
    """The metrics' `agreement`: what `measure_agreement` found as numbers for JSON, the rollout's own outermost."""
    dimensions = [_dimension(column, errors, bool(changes[column]), layout) for column in range(len(layout.names))]
    units = {"translation": layout.translation_unit, "rotation": "rad", "gripper": ""}
    return {
        "num_frames": {source: errors[source].num_frames if source in errors else None for source in SOURCES},
        "num_no_rotation": {source: errors[source].num_no_rotation if source in errors else None for source in SOURCES},
        "dimensions": dimensions,
        **{group: _describe_group(group, unit, errors) for group, unit in units.items()},
        "intervals": {
            name: None if values is None else estimate(values).to_json()
            for name, values in headline_errors(errors["recorded"], layout).items()
        },
    }


def headline_errors(errors: EpisodeErrors, layout: ActionLayout) -> dict[str, np.ndarray | None]:
    """One number [E] for each kind of motion; None where the layout has no such columns or no metres."""
    in_metres = "translation" if layout.translation_unit == "m" else ""
    chosen = {
        "translation_rmse_m": (in_metres, "rmse"),
        "rotation_rmse_rad": ("rotation", "rmse"),
        "gripper_agreement": ("gripper", "agreement"),
    }
    return {name: errors.groups.get(group, {}).get(measure) for name, (group, measure) in chosen.items()}


def _describe_group(group: str, unit: str, errors: Mapping[str, EpisodeErrors]) -> dict[str, Any] | None:
    if group not in errors["recorded"].groups:
        return None
    means = {
        source: {name: mean_or_none(values) for name, values in found.groups[group].items()}
        for source, found in errors.items()
    }
    if group in _EXPLAINED:
        for source, numbers in means.items():
            numbers["r2"] = _explained(errors[source], errors["always_the_mean"], group)
    return {"unit": unit} | means["recorded"] | {source: means.get(source) for source in SOURCES[1:]}


def _explained(found: EpisodeErrors, guess: EpisodeErrors, group: str) -> float | None:
    """R² of distances or angles, of episodes' mean squares; None where the given actions never change."""
    ours, of_guess = (mean_or_none(errors.groups[group]["rmse"] ** 2) for errors in (found, guess))
    return None if ours is None or of_guess is None or of_guess < LEAST_SPREAD**2 else 1 - ours / of_guess


def _dimension(column: int, errors: Mapping[str, EpisodeErrors], changes: bool, layout: ActionLayout) -> dict[str, Any]:
    of_guess = mean_or_none(errors["always_the_mean"].mse[:, column])
    numbers = {
        source: {
            "mae": mean_or_none(found.mae[:, column]),
            "rmse": mean_or_none(np.sqrt(found.mse[:, column])),
            # Given actions that never change have nothing to explain.
            "r2": 1 - mean_or_none(found.mse[:, column]) / of_guess if changes else None,
        }
        for source, found in errors.items()
    }
    named = {"name": layout.names[column], "unit": layout.unit(column)}
    return named | numbers["recorded"] | {source: numbers.get(source) for source in SOURCES[1:]}


def _recovered_pairs(
    rows: pa.Table, variant: str, episode_index: np.ndarray, layout: ActionLayout
) -> ActionPairs | None:
    """The rows of `variant` that hold both actions; None where there are none."""
    chosen = pc.and_(
        pc.equal(rows["variant"], variant),
        pc.and_(pc.is_valid(rows["action_given"]), pc.is_valid(rows["action_recovered"])),
    )
    rows = rows.select(["episode_index", "action_given", "action_recovered"]).filter(chosen)
    if rows.num_rows == 0:
        return None
    given, recovered = (_columns(rows[name], name, layout) for name in ("action_given", "action_recovered"))
    episode = np.searchsorted(episode_index, rows["episode_index"].to_numpy())
    return ActionPairs(given, recovered, episode, len(episode_index))


def _mean_guess(pairs: ActionPairs) -> ActionPairs:
    """The same given actions, each answered by their mean, in which every episode has the same weight."""
    by_episode = np.stack([pairs.episode_means(column) for column in pairs.given.T], axis=1)
    mean = np.nanmean(by_episode, axis=0)
    return ActionPairs(pairs.given, np.broadcast_to(mean, pairs.given.shape), pairs.episode, pairs.num_episodes)


def _errors(pairs: ActionPairs, layout: ActionLayout) -> EpisodeErrors:
    errors = pairs.recovered - pairs.given
    rotation, num_no_rotation = _rotation(pairs, layout)
    groups: dict[str, Mapping[str, np.ndarray]] = {}
    if layout.rot6d_starts:
        groups |= {"translation": _translation(pairs, errors, layout), "rotation": rotation}
    if layout.open_or_closed:
        groups["gripper"] = _gripper(pairs, layout)
    return EpisodeErrors(
        mae=np.stack([pairs.episode_means(column) for column in np.abs(errors).T], axis=1),
        mse=np.stack([pairs.episode_means(column) for column in (errors**2).T], axis=1),
        groups=groups,
        num_frames=len(errors),
        num_no_rotation=num_no_rotation,
    )


def _columns(column: pa.ChunkedArray, name: str, layout: ActionLayout) -> np.ndarray:
    width = column.type.list_size
    if width != len(layout.names):
        raise ResultError(
            f"{name} has {width} columns, the embodiment's layout {len(layout.names)}. Score these rows with the "
            "embodiment that they were evaluated with."
        )
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = np.concatenate(chunks).reshape(-1, width).astype(np.float64)
    if not np.isfinite(values).all():
        raise ResultError(
            f"{name} is not finite in {(~np.isfinite(values)).any(axis=1).sum()} of {len(values)} rows, expected "
            "numbers. Check action_normalization and the checkpoint."
        )
    return values


def _translation(pairs: ActionPairs, errors: np.ndarray, layout: ActionLayout) -> dict[str, np.ndarray]:
    distances = [np.linalg.norm(errors[:, start : start + 3], axis=1) for start in layout.translation_starts]
    return _error_measures(pairs, np.stack(distances, axis=1), mean_name="mae")


def _rotation(pairs: ActionPairs, layout: ActionLayout) -> tuple[dict[str, np.ndarray], int]:
    """Angle between given and recovered rotation in rad, by episode; and how many were no rotations."""
    angles = np.full((len(pairs.given), len(layout.rot6d_starts)), np.nan)
    for block, start in enumerate(layout.rot6d_starts):
        given, recovered = (values[:, start : start + _ROT6D_WIDTH] for values in (pairs.given, pairs.recovered))
        valid = _is_rotation(given) & _is_rotation(recovered)
        angles[valid, block] = geodesic_angle(rot6d_to_matrix(given[valid]), rot6d_to_matrix(recovered[valid]))
    return _error_measures(pairs, angles, mean_name="mean"), int(np.isnan(angles).sum())


def _is_rotation(rot6d: np.ndarray) -> np.ndarray:
    """Which rows [N, 6] span a plane, so that some rotation is nearest to them: [N]."""
    first, second = rot6d[:, :3], rot6d[:, 3:]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.linalg.norm(np.cross(first, second), axis=1) > _SMALLEST_SINE * lengths


def _gripper(pairs: ActionPairs, layout: ActionLayout) -> dict[str, np.ndarray]:
    columns = list(layout.open_or_closed)
    same_side = (pairs.given[:, columns] < CLOSED_BELOW) == (pairs.recovered[:, columns] < CLOSED_BELOW)
    return {"agreement": pairs.episode_means(same_side.mean(axis=1))}


def _error_measures(pairs: ActionPairs, errors: np.ndarray, *, mean_name: str) -> dict[str, np.ndarray]:
    """Root mean square and mean of non-negative errors [N, blocks], by episode; arms count alike."""
    return {
        "rmse": np.sqrt(pairs.episode_means(_row_means(errors**2))),
        mean_name: pairs.episode_means(_row_means(errors)),
    }


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean over the blocks that have a value, [N]; NaN where none has."""
    present = np.isfinite(values)
    counts = present.sum(axis=1)
    sums = np.where(present, values, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)

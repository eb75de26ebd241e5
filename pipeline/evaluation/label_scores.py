"""How right labels are: labelled actions against recorded ones, beside two ways of knowing nothing.

R² is one minus the squared error over that of always answering the mean, of all steps of all episodes together: 1 is
right, 0 is the mean, below is worse. A translation's error is a distance, a rotation's an angle (geodesic); the mean of
rotations is the one from which their squared chordal distances are least. `copy_last` answers with the recorded action
of the step before, and stands still at an episode's first: what slow motion alone makes easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.actions import geodesic_angle, matrix_to_rot6d, rot6d_to_matrix, standing_still
from pipeline.errors import ResultError
from pipeline.evaluation.agreement import CLOSED_BELOW, LEAST_SPREAD, ActionLayout

LABEL_METRICS_SCHEMA = "label-metrics/1"
HEADLINES = ("translation_r2", "rotation_r2", "gripper_accuracy")
_QUANTILES = {"median": 0.5, "p90": 0.9}


@dataclass(frozen=True, eq=False)
class LabelledEpisode:
    """Physical actions [N, D], labelled and recorded, of the steps that have both."""

    episode_index: int
    labelled: np.ndarray
    recorded: np.ndarray


def score_labels(episodes: Sequence[LabelledEpisode], layout: ActionLayout) -> dict[str, Any]:
    """The metrics file's content: headlines, each baseline's, then per dimension, in mm and degrees, and per episode.

    What cannot be had is None: a layout without rotations has no rotation_r2, actions that never change no R². Raises
    ResultError where there is nothing to compare.
    """
    if not episodes or not sum(len(episode.recorded) for episode in episodes):
        raise ResultError("No labelled step has a recorded action beside it: there is nothing to compare.")
    recorded = np.concatenate([episode.recorded for episode in episodes]).astype(np.float64)
    answers = {
        "labels": np.concatenate([episode.labelled for episode in episodes]).astype(np.float64),
        "always_the_mean": np.broadcast_to(_mean_action(recorded, layout), recorded.shape),
        "copy_last": np.concatenate([_copied(episode.recorded, layout) for episode in episodes]).astype(np.float64),
    }
    headlines = {name: _headlines(answer, recorded, layout) for name, answer in answers.items()}
    labels = answers["labels"]
    return {
        "schema": LABEL_METRICS_SCHEMA,
        **headlines.pop("labels"),
        "baselines": headlines,
        "num_actions": len(recorded),
        "num_episodes": len(episodes),
        "dimensions": [_dimension(column, labels, recorded, layout) for column in range(recorded.shape[1])],
        "translation_error_mm": _spread(1e3 * _distances(labels, recorded, layout)) if layout.rot6d_starts else None,
        "rotation_error_deg": _spread(np.rad2deg(_angles(labels, recorded, layout))) if layout.rot6d_starts else None,
        "per_episode": [
            {"episode_index": episode.episode_index, "num_actions": len(episode.recorded)}
            | _headlines(episode.labelled.astype(np.float64), episode.recorded.astype(np.float64), layout)
            for episode in episodes
        ],
    }


def render_label_scores(metrics: dict[str, Any]) -> str:
    """The headlines as a table for a terminal."""
    rows = {"labels": metrics, **metrics["baselines"]}
    lines = [f"{'':<18}" + "".join(f"{name:>18}" for name in HEADLINES)]
    for name, row in rows.items():
        told = ["–" if row[headline] is None else f"{row[headline]:.3f}" for headline in HEADLINES]
        lines.append(f"{name.replace('_', ' '):<18}" + "".join(f"{value:>18}" for value in told))
    return "\n".join(lines)


def _headlines(answer: np.ndarray, recorded: np.ndarray, layout: ActionLayout) -> dict[str, float | None]:
    mean = np.broadcast_to(_mean_action(recorded, layout), recorded.shape)
    has_poses = bool(layout.rot6d_starts)
    grippers = list(layout.open_or_closed)
    is_closed = [values[:, grippers] < CLOSED_BELOW for values in (answer, recorded)]
    return {
        "translation_r2": _r2(_distances(answer, recorded, layout), _distances(mean, recorded, layout))
        if has_poses
        else None,
        "rotation_r2": _r2(_angles(answer, recorded, layout), _angles(mean, recorded, layout)) if has_poses else None,
        "gripper_accuracy": float(np.mean(is_closed[0] == is_closed[1])) if grippers else None,
    }


def _r2(errors: np.ndarray, of_mean: np.ndarray) -> float | None:
    spread = float(np.mean(of_mean**2))
    return 1.0 - float(np.mean(errors**2)) / spread if spread > LEAST_SPREAD**2 else None


def _distances(answer: np.ndarray, recorded: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """[N, poses], in the unit of the translations."""
    parts = [answer[:, start : start + 3] - recorded[:, start : start + 3] for start in layout.translation_starts]
    return np.stack([np.linalg.norm(part, axis=1) for part in parts], axis=1)


def _angles(answer: np.ndarray, recorded: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """[N, poses] in rad."""
    return np.stack(
        [
            geodesic_angle(
                rot6d_to_matrix(answer[:, start : start + 6]), rot6d_to_matrix(recorded[:, start : start + 6])
            )
            for start in layout.rot6d_starts
        ],
        axis=1,
    )


def _mean_action(recorded: np.ndarray, layout: ActionLayout) -> np.ndarray:
    mean = recorded.mean(0)
    for start in layout.rot6d_starts:
        rotations = Rotation.from_matrix(rot6d_to_matrix(recorded[:, start : start + 6]))
        mean[start : start + 6] = matrix_to_rot6d(rotations.mean().as_matrix())
    return mean


def _copied(recorded: np.ndarray, layout: ActionLayout) -> np.ndarray:
    first = standing_still(recorded[:1], layout.rot6d_starts)
    return np.concatenate([first, recorded[:-1]])


def _dimension(column: int, answer: np.ndarray, recorded: np.ndarray, layout: ActionLayout) -> dict[str, Any]:
    errors = answer[:, column] - recorded[:, column]
    return {
        "name": layout.names[column],
        "unit": layout.unit(column),
        "r2": _r2(errors, recorded[:, column] - recorded[:, column].mean()),
        "mae": float(np.abs(errors).mean()),
    }


def _spread(errors: np.ndarray) -> dict[str, float]:
    return {"mean": float(errors.mean())} | {name: float(np.quantile(errors, q)) for name, q in _QUANTILES.items()}

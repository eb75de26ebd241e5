"""What the labels look like: whether they can be in the space that the run declared them in.

Which normalisation a checkpoint was trained with is not recorded in it, and getting it wrong is silent; these figures
are where it shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.actions import rot6d_orthonormality_error
from pipeline.recipe import Recipe

# Real actions at the rate of their statistics: one to four percent of values are clamped, and rotation columns are
# orthonormal to about 0.01. Beyond these bounds something is wrong; within them it may still be (statistics of another
# robot of the same width cannot be told apart).
MAX_SHARE_CLAMPED = 0.2
MAX_ORTHONORMALITY_ERROR = 0.1
MAX_SHARE_GRIPPER_OUTSIDE = 0.2
_GRIPPER_TOLERANCE = 0.1


class LabelChecks:
    """Running sums over label tables."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.num_rows = self.num_valid = 0
        self._num_values = self._num_clamped = 0
        self._num_rotations, self._rotation_error_sum, self._rotation_error_max = 0, 0.0, 0.0
        self._num_grippers = self._num_grippers_outside = 0

    def add(self, table: pa.Table) -> None:
        self.num_rows += table.num_rows
        valid = table.filter(table["action_valid"])
        self.num_valid += valid.num_rows
        if not valid.num_rows:
            return
        action, normalized = (_matrix(valid[name]) for name in ("action", "action_normalized"))
        self._num_values += normalized.size
        self._num_clamped += int((np.abs(normalized) > 1).sum())
        embodiment = self._recipe.embodiment
        if action.shape[1] != embodiment.raw_action_dim:
            return  # a width of the user's own: the layout behind it is not known
        for start in embodiment.rot6d_starts:
            error = rot6d_orthonormality_error(action[:, start : start + 6])
            self._num_rotations += error.size
            self._rotation_error_sum += float(error.sum())
            self._rotation_error_max = max(self._rotation_error_max, float(error.max()))
        gripper = action[:, list(embodiment.gripper_columns)]
        outside = (gripper < -_GRIPPER_TOLERANCE) | (gripper > 1 + _GRIPPER_TOLERANCE)
        self._num_grippers += gripper.size
        self._num_grippers_outside += int(outside.sum())

    def to_json(self) -> dict[str, Any]:
        """Shares in 0..1; null where there is nothing to measure."""
        return {
            "rows": self.num_rows,
            "valid_actions": self.num_valid,
            "share_clamped": _ratio(self._num_clamped, self._num_values) if self._is_bounded else None,
            "rotation_orthonormality_error_mean": _ratio(self._rotation_error_sum, self._num_rotations),
            "rotation_orthonormality_error_max": self._rotation_error_max if self._num_rotations else None,
            "share_gripper_outside": _ratio(self._num_grippers_outside, self._num_grippers),
        }

    def lines(self) -> list[str]:
        found = self.to_json()
        return [
            f"labels     {self.num_rows} rows, {self.num_valid} valid actions",
            f"checks     outside [-1, 1]: {_percent(found['share_clamped'])}; rotation columns off orthonormal: "
            f"{_number(found['rotation_orthonormality_error_mean'])} mean, "
            f"{_number(found['rotation_orthonormality_error_max'])} max",
        ]

    def warnings(self) -> list[str]:
        """Loud where the labels cannot be in the declared space."""
        found = self.to_json()
        remedy = (
            f"Check that the checkpoint was trained with action_normalization={self._recipe.normalizer.method} and "
            "these statistics."
        )
        told = []
        if (found["share_clamped"] or 0) > MAX_SHARE_CLAMPED:
            told.append(f"{found['share_clamped']:.0%} of the model's values lie outside [-1, 1]. {remedy}")
        if (found["rotation_orthonormality_error_mean"] or 0) > MAX_ORTHONORMALITY_ERROR:
            error = found["rotation_orthonormality_error_mean"]
            told.append(f"Rotation columns are off orthonormal by {error:.2f} on average. {remedy}")
        if (found["share_gripper_outside"] or 0) > MAX_SHARE_GRIPPER_OUTSIDE:
            told.append(f"{found['share_gripper_outside']:.0%} of gripper values are outside 0..1. {remedy}")
        return told

    @property
    def _is_bounded(self) -> bool:
        return self._recipe.normalizer.method in {"minmax", "quantile", "quantile_rot"}


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

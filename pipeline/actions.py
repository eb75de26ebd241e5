"""Actions as numbers and as motion: normalisation, six-number rotations, relative and absolute poses.

Pure NumPy and SciPy, computed in float64, new arrays only; the one thing read from disk is the statistics JSON.
Poses are 4x4 matrices [R t; 0 1] in metres. Conventions are cosmos-framework's: action/utils/action_processing.py for
the normalisation, action/utils/pose_utils.py and action/datasets/droid_lerobot_dataset.py for the geometry.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.errors import ActionStatsError, ConfigError, DatasetError, ResultError, did_you_mean
from pipeline.storage import open_path, read_bytes

NORMALIZATIONS = ("meanstd", "minmax", "quantile", "quantile_rot", "none")

_FIELDS = {
    "meanstd": ("mean", "std"),
    "minmax": ("min", "max"),
    "quantile": ("q01", "q99"),
    "quantile_rot": ("q01", "q99"),
}
_BLOCKS = ("global", "global_raw")
_UNCLAMPED = ("meanstd", "none")
_SMALLEST_RANGE = 1e-8
_PARALLEL = 1e-12  # sine of the angle between two columns, below which they span no plane
_NO_ROTATION = (
    "These six numbers are no rotation: expected two finite columns that are not parallel. If every action is like "
    "this, action_normalization does not fit the checkpoint."
)

FrameRotation = Sequence[Sequence[float]] | None


@dataclass(frozen=True, eq=False)
class Normalizer:
    """An affine map per action column: normalised = (action - offset) / scale, in physical units.

    The formulas are cosmos-framework's, action/utils/action_processing.py.
    """

    method: str
    offset: np.ndarray  # [D] float64
    scale: np.ndarray  # [D] float64, positive

    def normalize(self, action: np.ndarray, *, clamp: bool | None = None) -> np.ndarray:
        """Physical [..., D] to model space, float32 [..., D].

        Clamped to [-1, 1] unless the method is meanstd or none, as the model was trained; `clamp` overrides that.
        Raises ActionStatsError when the last axis is not D.
        """
        normalized = self._scaled(action)
        clamp = self.method not in _UNCLAMPED if clamp is None else clamp
        return normalized.clip(-1.0, 1.0) if clamp else normalized

    def denormalize(self, action_normalized: np.ndarray) -> np.ndarray:
        """Model space [..., D] to physical units, float32 [..., D]. Undoes `normalize` but for what it clamped."""
        values = self._checked(action_normalized)
        return (values * self.scale + self.offset).astype(np.float32)

    def share_clamped(self, action: np.ndarray) -> float:
        """Which share of physical `action` [..., D] lies outside [-1, 1] once normalised; 0 where none is clamped."""
        normalized = self._scaled(action)
        if self.method in _UNCLAMPED or normalized.size == 0:
            return 0.0
        return float(np.mean(np.abs(normalized) > 1.0))

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps: the method and the numbers that were used."""
        return {"method": self.method, "offset": self.offset.tolist(), "scale": self.scale.tolist()}

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        # Rounding to float32 here keeps an action that sits exactly on a bound from counting as outside it.
        return ((self._checked(action) - self.offset) / self.scale).astype(np.float32)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        values = np.asarray(action, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != self.offset.size:
            raise ActionStatsError(
                f"The statistics have {self.offset.size} columns, the actions have shape {values.shape}. "
                "Use statistics of this embodiment, or set raw_action_dim to the actions' width."
            )
        return values


def load_normalizer(method: str, stats_path: str | Path | None, raw_action_dim: int) -> Normalizer:
    """The normaliser that `method` makes of a statistics file, for actions of width `raw_action_dim`.

    Files are flat (`{"q01": [...], "q99": [...]}`) or nested in `global` and `global_raw`; `quantile_rot` reads
    `global_raw`, the others `global`, and a flat file serves all. `none` is the identity and reads no file.
    Raises ConfigError for an unknown method; ActionStatsError for a file that is missing, unreadable, lacks a field,
    holds impossible numbers, or has another width than the actions.
    """
    if method not in NORMALIZATIONS:
        raise ConfigError(
            f"Unknown action_normalization {method!r}.{did_you_mean(method, NORMALIZATIONS)} "
            f"Known: {', '.join(NORMALIZATIONS)}."
        )
    if method == "none":
        return Normalizer(method, np.zeros(raw_action_dim), np.ones(raw_action_dim))
    if stats_path is None:
        raise ActionStatsError(f"action_normalization {method!r} needs statistics. Give their file: action_stats_path.")
    path = open_path(stats_path)
    fields = _read_fields(path, method)
    first, second = (_column_values(fields, name, path, raw_action_dim) for name in _FIELDS[method])
    _check_order(method, first, second, path)
    return Normalizer(method, *_affine(method, first, second))


def _affine(method: str, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if method == "meanstd":
        return first, np.maximum(second, _SMALLEST_RANGE)
    return (second + first) / 2, np.maximum(second - first, _SMALLEST_RANGE) / 2


def _read_fields(path: Path, method: str) -> dict[str, Any]:
    stats = _read_json_object(path)
    present = [name for name in _BLOCKS if name in stats]
    block = "global_raw" if method == "quantile_rot" else "global"
    fields = stats.get(block) if present else stats
    if not isinstance(fields, dict):
        raise ActionStatsError(
            f"{path}: {method} needs the block {block!r}, found {', '.join(sorted(stats))}. "
            "Use a file that has it, or another action_normalization."
        )
    missing = [name for name in _FIELDS[method] if name not in fields]
    if missing:
        raise ActionStatsError(
            f"{path}: {method} needs the fields {' and '.join(_FIELDS[method])}, found "
            f"{', '.join(sorted(fields)) or 'none'}. Use the normalization these fields allow, if the checkpoint was "
            "trained with it, or another file."
        )
    return fields


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        stats = json.loads(read_bytes(path))
    except OSError as error:
        raise ActionStatsError(
            f"{path}: cannot read the action statistics ({error}). Check action_stats_path."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ActionStatsError(f"{path}: action statistics must be JSON, but: {error}.") from error
    if not isinstance(stats, dict):
        raise ActionStatsError(f"{path}: action statistics must be a JSON object, found a {type(stats).__name__}.")
    return stats


def _column_values(fields: dict[str, Any], name: str, path: Path, raw_action_dim: int) -> np.ndarray:
    try:
        values = np.array(fields[name], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ActionStatsError(f"{path}: {name} must be a list of numbers, but: {error}.") from error
    if values.ndim != 1:
        raise ActionStatsError(f"{path}: {name} must be one list of numbers, found shape {values.shape}.")
    if values.size != raw_action_dim:
        raise ActionStatsError(
            f"{path}: {name} has {values.size} columns, the actions have {raw_action_dim}. Use a file made for these "
            "actions; where it holds more arms than they do, as UMI's 20 columns do for 10, write a file that keeps "
            "only the columns meant (UMI: the first 10)."
        )
    # Actions are float32. What is finite only in float64 would overflow as soon as two of these are added.
    is_wrong = ~(np.abs(values) <= np.finfo(np.float32).max)
    if is_wrong.any():
        raise ActionStatsError(f"{path}: {name} is not finite in columns {_columns(is_wrong)}. Recompute it.")
    return values


def _check_order(method: str, first: np.ndarray, second: np.ndarray, path: Path) -> None:
    low_name, high_name = _FIELDS[method]
    if method == "meanstd":
        wrong, what = second < 0, f"{high_name} is negative"
    else:
        wrong, what = second < first, f"{high_name} is below {low_name}"
    if wrong.any():
        raise ActionStatsError(f"{path}: {what} in columns {_columns(wrong)}. Recompute the statistics.")


def _columns(wrong: np.ndarray) -> str:
    return ", ".join(str(column) for column in np.flatnonzero(wrong))


def matrix_to_rot6d(rotation: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] as their first two columns, column by column, [..., 6]: R00 R10 R20 R01 R11 R21.

    The order is cosmos-framework's, action/utils/pose_utils.py.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    return np.concatenate([rotation[..., :, 0], rotation[..., :, 1]], axis=-1)


def rot6d_to_matrix(rot6d: np.ndarray) -> np.ndarray:
    """The rotation [..., 3, 3] nearest to six numbers [..., 6]: third column = cross product, then SVD onto SO(3).

    This is cosmos-framework's decoding (action/utils/pose_utils.py, normalize_matrix=True), not Gram-Schmidt.
    Raises ResultError where the numbers are not finite or the two columns are parallel, so that no rotation is nearest.
    """
    columns = _rot6d_columns(rot6d)
    if not np.isfinite(columns).all():
        raise ResultError(_NO_ROTATION)
    third = np.cross(columns[..., 0], columns[..., 1])
    lengths = np.linalg.norm(columns, axis=-2).prod(axis=-1)
    if not (np.linalg.norm(third, axis=-1) > _PARALLEL * lengths).all():
        raise ResultError(_NO_ROTATION)
    return _nearest_rotation(np.concatenate([columns, third[..., None]], axis=-1))


def rot6d_orthonormality_error(rot6d: np.ndarray) -> np.ndarray:
    """How far six numbers [..., 6] are from two orthonormal columns C: the largest |CᵀC - I|, [...]; 0 is exact."""
    columns = _rot6d_columns(rot6d)
    gram = np.swapaxes(columns, -1, -2) @ columns
    return np.abs(gram - np.eye(2)).max(axis=(-2, -1))


def geodesic_angle(rotation_a: np.ndarray, rotation_b: np.ndarray) -> np.ndarray:
    """The angle in rad, 0 to π, that turns rotation a [..., 3, 3] into rotation b [..., 3, 3], [...]."""
    between = np.swapaxes(np.asarray(rotation_a, dtype=np.float64), -1, -2) @ np.asarray(rotation_b, dtype=np.float64)
    skew = between - np.swapaxes(between, -1, -2)
    sine = np.linalg.norm(np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1), axis=-1) / 2
    cosine = (np.trace(between, axis1=-2, axis2=-1) - 1) / 2
    # The arc cosine alone loses half of the digits at small angles, which is where labels live.
    return np.arctan2(sine, cosine)


def poses_from_xyz_euler(xyz_euler: np.ndarray, frame_rotation: FrameRotation = None) -> np.ndarray:
    """Recorded end-effector states [T, 6] (xyz in m, extrinsic xyz Euler angles in rad) as poses [T, 4, 4].

    `frame_rotation` D turns the end effector's axes: R becomes R @ D, the position stays (cosmos-framework,
    action/datasets/droid_lerobot_dataset.py). Raises DatasetError unless the states are [T, 6].
    """
    states = np.asarray(xyz_euler, dtype=np.float64)
    if states.ndim != 2 or states.shape[1] != 6:
        raise DatasetError(
            f"Expected end-effector states of shape [frames, 6] (xyz in metres, Euler angles in rad), found "
            f"{states.shape}. Point to the column that holds the Cartesian position."
        )
    poses = np.tile(np.eye(4), (len(states), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("xyz", states[:, 3:]).as_matrix() @ _frame_matrix(frame_rotation)
    poses[:, :3, 3] = states[:, :3]
    return poses


def xyz_euler_from_poses(poses: np.ndarray, frame_rotation: FrameRotation = None) -> np.ndarray:
    """Inverse of `poses_from_xyz_euler`: poses [T, 4, 4] to [T, 6], xyz in m and extrinsic xyz Euler angles in rad."""
    poses = np.asarray(poses, dtype=np.float64)
    recorded = poses[:, :3, :3] @ _frame_matrix(frame_rotation).T
    return np.concatenate([poses[:, :3, 3], Rotation.from_matrix(recorded).as_euler("xyz")], axis=1)


def relative_actions(poses: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """The motion from each frame to the next, [T-1, 10]: translation in m, rot6d, gripper.

    Row t is inverse(pose t) @ pose t+1, so both parts are in the axes of frame t (`backward_framewise` in
    cosmos-framework, action/utils/pose_utils.py). `gripper` is [T-1], or [T] whose last command moves nothing and is
    dropped. Raises DatasetError for any other length.
    """
    poses = np.asarray(poses, dtype=np.float64)
    gripper = np.asarray(gripper, dtype=np.float64)
    num_actions = max(len(poses) - 1, 0)
    if gripper.shape not in ((num_actions,), (len(poses),)):
        raise DatasetError(
            f"{len(poses)} poses need {num_actions} or {len(poses)} gripper values in one row, found shape "
            f"{gripper.shape}. Check that both columns are of the same episode."
        )
    to_frame = np.swapaxes(poses[:-1, :3, :3], -1, -2)
    translation = (to_frame @ (poses[1:, :3, 3:] - poses[:-1, :3, 3:]))[..., 0]
    rotation = matrix_to_rot6d(to_frame @ poses[1:, :3, :3])
    return np.concatenate([translation, rotation, gripper[:num_actions, None]], axis=1)


def integrate_actions(initial_pose: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Inverse of `relative_actions`: a pose [4, 4] and actions [T-1, >=9] to poses [T, 4, 4].

    Rotations are projected onto SO(3) first, since a model's six numbers are only nearly orthonormal (cosmos-framework,
    pose_rel_to_abs with normalize_rotation=True). Columns after the ninth are not read. Raises ResultError where an
    action holds no rotation.
    """
    actions = np.asarray(actions, dtype=np.float64)
    steps = np.tile(np.eye(4), (len(actions), 1, 1))
    steps[:, :3, :3] = rot6d_to_matrix(actions[:, 3:9])
    steps[:, :3, 3] = actions[:, :3]
    poses = [np.array(initial_pose, dtype=np.float64)]
    for step in steps:
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def recorded_actions(
    xyz_euler: np.ndarray, gripper_command: np.ndarray, *, frame_rotation: FrameRotation, inverts_gripper: bool
) -> np.ndarray:
    """What was done between recorded frames, in the model's layout and physical units: float64 [T-1, 10].

    From end-effector states [T, 6] (m, extrinsic xyz rad) and gripper commands [T]; `inverts_gripper` turns DROID's
    0 = open into the model's 1 = open (cosmos-framework, action/datasets/droid_lerobot_dataset.py). Raises DatasetError
    when the shapes do not fit.
    """
    gripper = np.asarray(gripper_command, dtype=np.float64)
    return relative_actions(
        poses_from_xyz_euler(xyz_euler, frame_rotation), 1.0 - gripper if inverts_gripper else gripper
    )


def standing_still(actions: np.ndarray, rot6d_starts: Sequence[int]) -> np.ndarray:
    """As many actions [N, D] that move nothing: no translation, no rotation, all else held as in the first row.

    Each rotation block follows its three translations. A layout without any, such as absolute joints, holds its first
    row as a whole.
    """
    still = np.repeat(actions[:1], len(actions), axis=0)
    for start in rot6d_starts:
        still[:, start - 3 : start] = 0
        still[:, start : start + 6] = matrix_to_rot6d(np.eye(3))
    return still


def _rot6d_columns(rot6d: np.ndarray) -> np.ndarray:
    rot6d = np.asarray(rot6d, dtype=np.float64)
    return np.stack([rot6d[..., :3], rot6d[..., 3:6]], axis=-1)


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix)
    handedness = np.linalg.det(left @ right)  # -1 only where rounding swallowed the third column
    left[..., :, 2] *= handedness[..., None]
    return left @ right


def _frame_matrix(frame_rotation: FrameRotation) -> np.ndarray:
    return np.eye(3) if frame_rotation is None else np.array(frame_rotation, dtype=np.float64)


def merge_windows(actions: np.ndarray, window_starts: Sequence[int], label_start: int, label_stop: int) -> np.ndarray:
    """One action per position: [W, chunk, D] of windows at increasing `window_starts` -> [label_stop - label_start, D].

    A position that two windows cover takes the earlier one's answer. Whatever lies beyond `label_stop` is padding.
    """
    merged = np.empty((label_stop - label_start, actions.shape[-1]), dtype=actions.dtype)
    filled = label_start
    for start, action in zip(window_starts, actions, strict=True):
        stop = min(start + len(action), label_stop)
        if stop > filled:
            assert start <= filled, f"windows leave a gap: {filled}..{start}"
            merged[filled - label_start : stop - label_start] = action[filled - start : stop - start]
            filled = stop
    assert filled == label_stop, f"windows end at {filled}, labels at {label_stop}"
    return merged

"""What a robot would have recorded beside its pictures, put into a made LeRobot v3.0 dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.actions import recorded_actions
from pipeline.embodiments import EMBODIMENTS

POSE_KEY, GRIPPER_KEY = "observation.state.cartesian_position", "action.gripper_position"


def record(root: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns [frames of all episodes, D] beside, or in place of, those that the one data file has."""
    [path] = sorted((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    info = json.loads((root / "meta/info.json").read_text())
    for name, values in columns.items():
        flat = pa.array(np.asarray(values, np.float32).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = table.drop_columns([name] if name in table.column_names else []).append_column(name, column)
        info["features"][name] = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
    pq.write_table(table, path)
    (root / "meta/info.json").write_text(json.dumps(info))


def droid_states(num_frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Poses [T, 6] (m, rad) and gripper commands [T, 1] that differ in every frame."""
    random = np.random.default_rng(seed)
    return {POSE_KEY: random.uniform(-1, 1, (num_frames, 6)), GRIPPER_KEY: random.uniform(0, 1, (num_frames, 1))}


def droid_actions(num_frames: int, seed: int = 0) -> np.ndarray:
    """float64 [T, 10] in DROID's layout, each row's rotation a real one. The last row leads nowhere."""
    states = droid_states(num_frames + 1, seed)
    return recorded_actions(
        states[POSE_KEY],
        states[GRIPPER_KEY][:, 0],
        frame_rotation=EMBODIMENTS["droid_lerobot"].frame_rotation,
        inverts_gripper=True,
    )

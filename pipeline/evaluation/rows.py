"""What an evaluation measures, frame by frame: the one table that scores and report are made of.

A row is one frame of one rollout, compared with the recorded frame at the same moment. Both were processed
identically: composed, resized to the canvas and cropped to what the VAE draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

# What was compared with the recorded video.
VARIANTS = {
    "recorded": "rollout of the recorded actions",
    "other_actions": "rollout of another episode's actions from the same first frame",
    "zero_motion": "rollout of standing still from the same first frame",
    "copy": "the first frame, copied",
    "ceiling": "the recorded video itself, passed through the VAE: the best that this checkpoint can draw",
}

# Name → unit. All but LPIPS are better when they are higher.
METRICS = {"psnr": "dB", "ssim": "", "moving_psnr": "dB", "lpips": ""}
LOWER_IS_BETTER = frozenset({"lpips"})


def evaluation_schema(action_names: Sequence[str]) -> pa.Schema:
    """One row per frame, variant and sample.

    `horizon_step` counts frames since the rollout's first one, which is given and not scored: it starts at 1.
    `moving_psnr` is null where nothing moves, `lpips` where its weights are missing. `action_given` is what the model
    was told to do on the way to this frame, in physical units; `action_recovered` is what inverse dynamics sees in the
    rollout (of variant `ceiling`: in the recorded video itself), null where that was not asked.
    """
    action = pa.list_(pa.float32(), len(action_names))
    names = {"names": ",".join(action_names)}
    return pa.schema(
        [
            pa.field("episode_index", pa.int64()),
            pa.field("task", pa.string()),
            pa.field("frame_index", pa.int64(), metadata={"unit": "frames of the dataset"}),
            pa.field("timestamp", pa.float64(), metadata={"unit": "s"}),
            pa.field("rollout_start", pa.int64(), metadata={"unit": "frames of the dataset"}),
            pa.field("horizon_step", pa.int32(), metadata={"unit": "frames at the model's rate"}),
            pa.field("variant", pa.string()),
            pa.field("sample", pa.int32()),
            *(pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in METRICS.items()),
            pa.field("moving_share", pa.float64(), metadata={"unit": "share of pixels that moved"}),
            pa.field("action_given", action, metadata=names),
            pa.field("action_recovered", action, metadata=names),
        ]
    )


def evaluation_table(columns: Mapping[str, Any], action_names: Sequence[str]) -> pa.Table:
    """The rows of one segment: arrays and lists of one length by column name; NaN stands for what is not there."""
    schema = evaluation_schema(action_names)
    arrays = {}
    for field in schema:
        values = columns[field.name]
        if pa.types.is_fixed_size_list(field.type):
            rows = [None if np.isnan(row).any() else row for row in np.asarray(values, dtype=np.float32)]
            arrays[field.name] = pa.array(rows, type=field.type)
        else:
            arrays[field.name] = pa.array(values, type=field.type, from_pandas=True)
    return pa.table(arrays, schema=schema)

"""Per-frame labels: the rows of a record, and the merged Parquet files of a run.

One row per frame at the model's rate. `action` of row t leads from frame t to the next one; the last frame of an
episode has none, and neither does padding: there `action` is null and `action_valid` false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from pipeline.actions import merge_windows
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.merging import merge_records
from pipeline.outputs.records import RecordStore
from pipeline.recipe import Recipe


def label_schema(recipe: Recipe) -> pa.Schema:
    """Columns with names and units in their metadata. Actions are float32 [raw_action_dim]."""
    action = pa.list_(pa.float32(), recipe.raw_action_dim)
    names = ",".join(recipe.action_names)
    normalization = recipe.normalizer.method
    unit = "as the names say" if normalization != "none" else "model's own scale"
    return pa.schema(
        [
            _field("episode_index", pa.int64()),
            _field("frame_index", pa.int64(), unit="frames of the dataset, from the start of the episode"),
            _field("timestamp", pa.float64(), unit="s"),
            _field("task", pa.string()),
            _field("action", action, names=names, unit=unit, embodiment=recipe.embodiment.domain_name),
            _field("action_normalized", action, names=names, unit=f"model's own scale ({normalization})"),
            _field("action_valid", pa.bool_()),
        ]
    )


def label_table(row: Mapping[str, Any], recipe: Recipe) -> pa.Table:
    """The labels that one inferred segment answers for.

    `row` holds the segment's fields, `timestamps` [F] of its positions from the first window's start on, and `action`
    and `action_normalized` [W, chunk, D].
    """
    start, stop = int(row["label_start"]), int(row["label_stop"])
    is_last = stop == int(row["num_positions"]) - 1
    positions = np.arange(start, stop + is_last)
    starts = [int(value) for value in row["window_starts"]]
    num_rows = len(positions)
    columns = {
        "episode_index": np.full(num_rows, row["episode_index"], dtype=np.int64),
        "frame_index": positions * recipe.timebase.stride,
        "timestamp": np.asarray(row["timestamps"], dtype=np.float64)[positions - starts[0]],
        "task": [row["task"]] * num_rows,
        "action_valid": positions < stop,
    }
    schema = label_schema(recipe)
    for name in ("action", "action_normalized"):
        merged = merge_windows(np.asarray(row[name], dtype=np.float32), starts, start, stop)
        columns[name] = pa.array([*merged, None] if is_last else list(merged), type=schema.field(name).type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def merge_labels(
    store: RecordStore, keys: Sequence[str], recipe: Recipe, folder: str | Path | UPath, manifest: Mapping[str, Any]
) -> LabelChecks:
    """Writes the labels of `keys`, in their order, to `folder` and returns what they look like.

    Raises what `merge_records` does, so that there are as many rows as the records have.
    """
    checks = LabelChecks(recipe)
    merge_records(store, keys, label_schema(recipe), folder, manifest=manifest, look=checks.add)
    return checks


def _field(name: str, type_: pa.DataType, **metadata: str) -> pa.Field:
    return pa.field(name, type_, metadata=metadata or None)

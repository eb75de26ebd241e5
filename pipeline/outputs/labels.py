"""Per-frame labels: the rows of a record, and the merged Parquet files of a run.

One row per frame at the model's rate. `action` of row t leads from frame t to the next one; the last frame of an
episode has none, and neither does padding: there `action` is null and `action_valid` false.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.actions import merge_windows
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.records import RecordStore
from pipeline.recipe import Recipe

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_GROUP = 65_536


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
    store: RecordStore, keys: Sequence[str], recipe: Recipe, folder: Path, manifest: Mapping[str, Any]
) -> LabelChecks:
    """Writes the labels of `keys`, in their order, to `folder` and returns what they look like.

    The folder is replaced as a whole, so that labels of another run never stand beside these. Without a single record
    there is nothing to put in its place, and it stays as it is.
    """
    checks = LabelChecks(recipe)
    if not keys:
        return checks
    schema = label_schema(recipe).with_metadata({"manifest": json.dumps(manifest)})
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, tables in enumerate(_in_files(store, keys)):
        with pq.ParquetWriter(partial / f"labels-{number:05d}.parquet", schema, compression="zstd") as writer:
            for table in tables:
                checks.add(table)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return checks


def _in_files(store: RecordStore, keys: Sequence[str]) -> Iterator[Iterator[pa.Table]]:
    """Groups of row groups: each outer item is one file's worth. Records are read one at a time."""
    groups = _row_groups(store, keys)
    for first in groups:

        def one_file(first: pa.Table = first) -> Iterator[pa.Table]:
            num_rows = first.num_rows
            yield first
            while num_rows < _ROWS_PER_FILE and (table := next(groups, None)) is not None:
                num_rows += table.num_rows
                yield table

        yield one_file()


def _row_groups(store: RecordStore, keys: Sequence[str]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for key in keys:
        pending.append(store.read(key))
        if sum(table.num_rows for table in pending) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _field(name: str, type_: pa.DataType, **metadata: str) -> pa.Field:
    return pa.field(name, type_, metadata=metadata or None)

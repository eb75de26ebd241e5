"""Plans on disk: what the newest command of a recipe set out to do, so that its records can be held against it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipeline.errors import OutputError
from pipeline.outputs.writing import write_file
from pipeline.storage import open_path, read_bytes

KEY_BYTES = 32

PLAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("episode_index", pa.int64(), nullable=False),
        pa.field("label_start", pa.int64(), nullable=False, metadata={"unit": "positions of the episode"}),
        pa.field("label_stop", pa.int64(), nullable=False, metadata={"unit": "positions of the episode"}),
        pa.field("num_windows", pa.int64(), nullable=False),
    ]
)
_PLANNED_AT = b"planned_at"


class PlannedSegment(Protocol):
    """What is kept of a segment; `pipeline.plan.Segment` is one."""

    @property
    def key(self) -> str: ...

    @property
    def episode_index(self) -> int: ...

    @property
    def label_start(self) -> int: ...

    @property
    def label_stop(self) -> int: ...

    @property
    def window_starts(self) -> tuple[int, ...]: ...


class Planned(Protocol):
    """`pipeline.plan.Plan` is one."""

    @property
    def segments(self) -> Iterable[PlannedSegment]: ...


def plan_path(output_dir: str | Path | UPath, run_id: str) -> UPath:
    return open_path(output_dir) / "plans" / f"{run_id}.parquet"


def write_plan(output_dir: str | Path | UPath, run_id: str, plan: Planned) -> None:
    """Writes `plans/<run_id>.parquet` at once, in the place of an earlier command's. Keys are 64 hex digits."""
    table = plan_table(plan).replace_schema_metadata({_PLANNED_AT: datetime.now(UTC).isoformat(timespec="seconds")})

    def write(partial: Path) -> None:
        # Keys are digests: a dictionary of them would only cost time.
        numbers = [name for name in table.column_names if name != "key"]
        pq.write_table(table, partial, compression="zstd", use_dictionary=numbers)

    write_file(plan_path(output_dir, run_id), write)


def plan_table(plan: Planned) -> pa.Table:
    """The plan's segments in their order, as PLAN_SCHEMA says."""
    segments = tuple(plan.segments)
    digits = "".join(segment.key for segment in segments)
    assert all(len(segment.key) == 2 * KEY_BYTES for segment in segments), "keys are SHA-256 digests"
    keys = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(segments), [None, pa.py_buffer(bytes.fromhex(digits))]
    )
    columns = (
        (segment.episode_index, segment.label_start, segment.label_stop, len(segment.window_starts))
        for segment in segments
    )
    numbers = np.fromiter(chain.from_iterable(columns), dtype=np.int64, count=4 * len(segments)).reshape(-1, 4)
    return pa.Table.from_arrays([keys, *(pa.array(column) for column in numbers.T)], schema=PLAN_SCHEMA)


def read_plan(output_dir: str | Path | UPath, run_id: str) -> pa.Table | None:
    """The plan as PLAN_SCHEMA says, or None where that recipe has none.

    Raises OutputError for a file that is no plan, and StorageError where it cannot be had.
    """
    path = plan_path(output_dir, run_id)
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        # `read_table` would import pandas. What Python holds is read without Arrow's threads: one that gives it back
        # while the interpreter ends aborts the process, after all was said ("terminate called without ...").
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        is_plan = table.schema.equals(PLAN_SCHEMA) and not any(column.null_count for column in table.columns)
        found = ", ".join(table.column_names)
    except (pa.ArrowException, OSError, ValueError) as error:
        is_plan, found = False, f"{type(error).__name__}: {error}"
    if not is_plan:
        raise OutputError(
            f"{path}: expected the plan of a run, with {', '.join(PLAN_SCHEMA.names)}; found {found}. Run the command "
            "again: it writes the plan anew."
        )
    return table


def planned_at(plan: pa.Table) -> str:
    """When it was written, ISO; empty where the file does not say."""
    return (plan.schema.metadata or {}).get(_PLANNED_AT, b"").decode("utf-8", "replace")


def plan_keys(plan: pa.Table) -> list[str]:
    """Keys in hex, in the plan's order."""
    digits = key_bytes(plan).tobytes().hex()
    return [digits[start : start + 2 * KEY_BYTES] for start in range(0, len(digits), 2 * KEY_BYTES)]


def key_bytes(plan: pa.Table) -> np.ndarray:
    """Keys as uint8 [S, 32]."""
    column = plan["key"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    content = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8)
    return content[column.offset * KEY_BYTES :][: len(column) * KEY_BYTES].reshape(-1, KEY_BYTES)

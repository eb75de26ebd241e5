"""A run without Ray: the same road, one segment after another, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.outputs.labels import merge_labels
from pipeline.run import Prepared


def drive_without_ray(prepared: Prepared, *, batch_size: int = 8) -> list[dict[str, Any]]:
    """Every missing segment through the stages, one after another; their status rows."""
    from pipeline.stages.engine_stage import EngineSettings

    settings = EngineSettings(
        checkpoint=str(prepared.checkpoint), device="cpu", batch_size=batch_size, text_cache_bytes=2**28, num_threads=2
    )
    road = prepared.road()
    (load, load_arguments), (infer, infer_arguments), (record, record_arguments) = road.load, road.infer, road.record
    stages = (
        load(*load_arguments),
        infer(prepared.recipe, settings, *infer_arguments),
        record(*record_arguments),
    )
    statuses = []
    for segment in prepared.missing:
        row = segment.to_row()
        for stage in stages:
            row = stage(row)
        statuses.append(row)
    return statuses


def finish_without_ray[PreparedT: Prepared, ResultT](
    prepare: Callable[[], PreparedT], finish: Callable[[PreparedT], ResultT]
) -> ResultT:
    """All segments in this process, none of which may fail; then what a run does when nothing is left."""
    for status in drive_without_ray(prepare()):
        assert not status["error"], status["error"]
    prepared = prepare()
    assert not prepared.missing
    return finish(prepared)


def run_without_ray(prepared: Prepared, *, batch_size: int = 8) -> tuple[list[dict[str, Any]], pa.Table]:
    """Status rows and merged labels of a label run."""
    statuses = drive_without_ray(prepared, batch_size=batch_size)
    folder = Path(prepared.config.output_dir) / "labels"
    merge_labels(prepared.store, prepared.recorded_keys(), prepared.recipe, folder, manifest={})
    return statuses, pq.read_table(folder)

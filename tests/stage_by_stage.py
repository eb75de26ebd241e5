"""A labelling run without Ray: the same stages, one segment after another, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.labelling import Prepared
from pipeline.outputs.labels import merge_labels
from pipeline.outputs.records import RecordStore


def run_without_ray(prepared: Prepared) -> tuple[list[dict[str, Any]], pa.Table]:
    """Every missing segment through the stages, one after another; the status rows and the merged labels."""
    from pipeline.stages.infer import EngineSettings, Infer
    from pipeline.stages.load import Load
    from pipeline.stages.record import Record

    config, recipe = prepared.config, prepared.recipe
    settings = EngineSettings(
        checkpoint=str(prepared.checkpoint), device="cpu", batch_size=8, text_cache_bytes=2**28, num_threads=2
    )
    stages = (
        Load(str(prepared.dataset.root), config.dataset.format, recipe),
        Infer(recipe, settings),
        Record(config.output_dir, recipe),
    )
    statuses = []
    for segment in prepared.missing:
        row = segment.to_row()
        for stage in stages:
            row = stage(row)
        statuses.append(row)
    store = RecordStore(Path(config.output_dir))
    recorded = store.keys()
    keys = [segment.key for segment in prepared.plan.segments if segment.key in recorded]
    merge_labels(store, keys, recipe, Path(config.output_dir) / "labels", manifest={})
    return statuses, pq.read_table(Path(config.output_dir) / "labels")

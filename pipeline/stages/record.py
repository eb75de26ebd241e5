"""Record: inferred segment → one atomic record on disk; hands on a small status row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.outputs.labels import label_table
from pipeline.outputs.records import RecordStore
from pipeline.recipe import Recipe
from pipeline.stages.stage import Row, Stage


class Record(Stage):
    """Writes a segment's labels. After this the payload is gone and only bookkeeping travels on."""

    name = "record"
    consumes = ("timestamps", "action", "action_normalized")
    empty: Mapping = MappingProxyType({})

    def __init__(self, output_dir: str, recipe: Recipe) -> None:
        self._store = RecordStore(Path(output_dir))
        self._recipe = recipe

    def process(self, row: Row) -> Row:
        self._store.write(row["key"], label_table(row, self._recipe))
        return {}

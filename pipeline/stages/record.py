"""Record: inferred segment → one atomic record on disk; hands on a small status row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from pipeline.outputs.labels import label_table
from pipeline.outputs.records import RecordStore
from pipeline.outputs.rollouts import rollout_table
from pipeline.recipe import Recipe
from pipeline.stages.stage import Row, Stage


class Record(Stage):
    """Writes what a segment came to. After this the payload is gone and only bookkeeping travels on."""

    name = "record"
    empty: Mapping = MappingProxyType({})

    def __init__(self, output_dir: str, recipe: Recipe) -> None:
        self._store = RecordStore(output_dir)
        self._recipe = recipe

    def process(self, row: Row) -> Row:
        self._store.write(row["key"], self.table(row))
        return {}

    def table(self, row: Row) -> pa.Table:
        """The record's rows."""
        raise NotImplementedError


class RecordLabels(Record):
    """One row per frame that the segment answers for."""

    consumes = ("timestamps", "action", "action_normalized")

    def table(self, row: Row) -> pa.Table:
        return label_table(row, self._recipe)


class RecordRollout(Record):
    """One row per frame of the video, which is in its place by now."""

    consumes = ("action", "action_normalized", "seeds", "video")

    def table(self, row: Row) -> pa.Table:
        return rollout_table(row, self._recipe)


class RecordEvaluation(Record):
    """One row per compared frame."""

    consumes = ("measured",)

    def table(self, row: Row) -> pa.Table:
        return pa.ipc.open_stream(row["measured"]).read_all()

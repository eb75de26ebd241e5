"""Small records of known content, for tests of where they end up."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.fingerprint import digest
from pipeline.outputs.records import RecordStore

SCHEMA = pa.schema(
    [
        pa.field("episode_index", pa.int64()),
        pa.field("task", pa.string()),
        pa.field("action", pa.list_(pa.float32(), 3), metadata={"unit": "m"}),
    ]
)


def key_of(number: int) -> str:
    return digest(number)


def record(number: int, num_rows: int = 3, schema: pa.Schema = SCHEMA) -> pa.Table:
    """All rows of a record tell its number; the last has no action. No two numbers have equal actions."""
    actions = np.random.default_rng(number).random((num_rows, 3)).tolist()
    columns = {
        "episode_index": [number] * num_rows,
        "task": [f"task {number % 2}"] * num_rows,
        "action": [*actions[:-1], None][:num_rows],
    }
    return pa.table(columns, schema=schema)


def write_records(store: RecordStore, numbers, **settings) -> list[str]:
    """Their keys, in the order of the numbers."""
    for number in numbers:
        store.write(key_of(number), record(number, **settings))
    return [key_of(number) for number in numbers]


def numbers_in(tables) -> list[int]:
    """The number of each record, which is found to be whole."""
    numbers = []
    for table in tables:
        [number] = set(table["episode_index"].to_pylist())
        assert table.equals(record(number, table.num_rows))
        numbers.append(number)
    return numbers

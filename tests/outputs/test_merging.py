"""Merged files hold each record's rows exactly once, on a disk and on an object store, or nothing is put in place."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_samples import SCHEMA, key_of, numbers_in, record, write_records

from pipeline.errors import RecordError, ResultError
from pipeline.outputs import merging, writing
from pipeline.outputs.merging import Merged, merge_records, merged_tables, read_merged
from pipeline.outputs.records import RecordStore
from pipeline.storage import list_files, local_copy


@pytest.fixture
def store(output_dir) -> RecordStore:
    return RecordStore(output_dir)


def merge(store: RecordStore, keys: list[str], run_id: str = "abc", look=lambda table: None) -> Merged:
    folder = store.folder.parent / "labels"
    return merge_records(store, keys, SCHEMA, folder, manifest={"run_id": run_id}, look=look)


def merged_numbers(store: RecordStore) -> list[int]:
    table = read_merged(store.folder.parent / "labels")
    return numbers_in(table.slice(first, 3) for first in range(0, table.num_rows, 3))


def everything(store: RecordStore) -> list[str]:
    return sorted(name for name in list_files(store.folder.parent) if not name.startswith("records/"))


def test_packed_and_loose_records_become_the_files_that_people_open(store, monkeypatch):
    monkeypatch.setattr(merging, "_ROWS_PER_FILE", 12)
    monkeypatch.setattr(merging, "_ROWS_PER_GROUP", 6)
    keys = write_records(store, range(6))
    store.compact(1)
    keys += write_records(store, range(6, 11))
    seen: list[pa.Table] = []
    assert merge(store, keys[::-1], look=seen.append) == Merged(num_records=11, num_rows=33, num_files=3)
    assert everything(store) == [f"labels/labels-{number:05d}.parquet" for number in range(3)]
    assert merged_numbers(store) == list(range(11))[::-1]
    assert [table.num_rows for table in merged_tables(store.folder.parent / "labels")] == [6, 6, 6, 6, 6, 3]
    assert pa.concat_tables(seen).equals(read_merged(store.folder.parent / "labels"))
    for name in everything(store):
        with local_copy(store.folder.parent / name) as path:
            schema = pq.read_schema(path)
            assert json.loads(schema.metadata[b"manifest"]) == {"run_id": "abc"}
            assert schema.field("action").metadata == {b"unit": b"m"}


def test_another_runs_rows_never_stand_beside_these(store, monkeypatch):
    monkeypatch.setattr(merging, "_ROWS_PER_FILE", 3)
    monkeypatch.setattr(merging, "_ROWS_PER_GROUP", 3)
    merge(store, write_records(store, range(4)))
    merge(store, write_records(store, range(10, 12)), run_id="def")
    assert everything(store) == ["labels/labels-00000.parquet", "labels/labels-00001.parquet"]
    assert merged_numbers(store) == [10, 11]


def test_a_reader_of_an_object_store_never_sees_rows_of_two_runs(s3, monkeypatch):
    """Looked at after each request: the old rows or a part of them, or a part of the new ones or all of them."""
    monkeypatch.setattr(merging, "_ROWS_PER_FILE", 3)
    monkeypatch.setattr(merging, "_ROWS_PER_GROUP", 3)
    url = s3.url("reading/out")
    store, seen = RecordStore(url), []
    merge(store, write_records(store, range(3)))
    keys = write_records(store, range(10, 14))

    def watch(function):
        def watched(*arguments, **settings):
            result = function(*arguments, **settings)
            labels = [name for name in everything(store) if name.startswith("labels/labels-")]
            seen.append(set(merged_numbers(store)) if labels else set())
            return result

        return watched

    monkeypatch.setattr(writing, "_CONNECTIONS", 1)
    monkeypatch.setattr(writing, "request", watch(writing.request))
    monkeypatch.setattr(writing, "remove_files", watch(writing.remove_files))
    merge(store, keys)
    old, new = {0, 1, 2}, {10, 11, 12, 13}
    assert seen[0] == old, "while new files are brought, the old ones stay"
    assert seen[-1] == new
    assert [numbers for numbers in seen if numbers & old and numbers & new] == []
    assert s3.keys("reading/out/labels") == [f"out/labels/labels-{number:05d}.parquet" for number in range(4)]
    assert [key for key in s3.keys("reading/out/") if ".partial" in key] == []


@pytest.mark.parametrize("which", ["missing", "damaged", "twice", "of another schema", "lost", "doubled"])
def test_what_does_not_add_up_is_not_put_in_place(store, monkeypatch, which):
    before = write_records(store, range(3))
    merge(store, before)
    keys = write_records(store, range(10, 14))
    tables = RecordStore.tables
    match which:
        case "missing":
            expected, keys = FileNotFoundError, [*keys, key_of(99)]
        case "damaged":
            expected = RecordError
            store.path(keys[2]).write_bytes(b"PAR1")
        case "twice":
            expected, keys = ResultError, [*keys, keys[1]]
        case "of another schema":
            expected = ValueError
            store.write(keys[2], record(12).drop_columns(["task"]))
        case "lost":
            expected = ResultError
            monkeypatch.setattr(RecordStore, "tables", lambda self, keys: tables(self, keys[1:]))
        case "doubled":
            expected = ResultError
            monkeypatch.setattr(RecordStore, "tables", lambda self, keys: tables(self, [*keys, keys[0]]))
    with pytest.raises(expected):
        merge(store, keys)
    assert everything(store) == ["labels/labels-00000.parquet"]
    assert merged_numbers(store) == [0, 1, 2]


def test_without_records_earlier_rows_stay(store):
    merge(store, write_records(store, range(3)))
    assert merge(store, []) == Merged(0, 0, 0)
    assert merged_numbers(store) == [0, 1, 2]


def test_after_merging_no_record_is_needed_any_more(store):
    merge(store, write_records(store, range(3)))
    for name in list(list_files(store.folder)):
        (store.folder / name).unlink()
    assert merged_numbers(store) == [0, 1, 2]


def test_nothing_merged_is_told(output_dir):
    with pytest.raises(FileNotFoundError, match="expected merged rows"):
        read_merged(output_dir / "labels")

"""Records are complete or not there, whatever happens while they are written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.outputs.records import RecordStore
from pipeline.outputs.writing import write_file

ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS = 2
NUM_ROWS = 200_000
PATIENCE_S = 60

# Writes records of known content until it is killed; every key starts with the round, so that no two rounds meet.
WRITER = f"""
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from pipeline.outputs.records import RecordStore
store = RecordStore(Path(sys.argv[1]))
for number in range(1_000_000):
    values = np.random.default_rng(number).random({NUM_ROWS})
    store.write(f"{{sys.argv[2]}}-{{number % 7:02d}}", pa.table({{"number": [number] * {NUM_ROWS}, "value": values}}))
"""


@pytest.fixture
def store(tmp_path) -> RecordStore:
    return RecordStore(tmp_path)


def table(value: int, num_rows: int = 3) -> pa.Table:
    field = pa.field("x", pa.list_(pa.float32(), 2), metadata={"unit": "m"})
    return pa.table({"x": [[value, k] for k in range(num_rows - 1)] + [None]}, schema=pa.schema([field]))


def files_of(store: RecordStore) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_what_was_written_is_read_back_with_its_metadata(store):
    store.write("abc123", table(1))
    assert store.read("abc123").equals(table(1))
    assert store.read("abc123").schema.field("x").metadata[b"unit"] == b"m"
    assert store.keys() == {"abc123"}
    assert store.path("abc123").is_file()


def test_before_the_first_record_there_are_no_keys(store):
    assert store.keys() == set()


def test_a_second_write_replaces_the_record(store):
    store.write("abc123", table(1))
    store.write("abc123", table(2))
    assert store.read("abc123").equals(table(2))
    assert files_of(store) == [store.path("abc123")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_nothing_and_keeps_the_older_record(tmp_path, error):
    path = tmp_path / "record"

    def fail_halfway(partial: Path) -> None:
        partial.write_text("half")
        raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write_file(path, fail_halfway)
    assert list(tmp_path.iterdir()) == []
    write_file(path, lambda partial: partial.write_text("whole"))
    with pytest.raises(error, match="stopped"):
        write_file(path, fail_halfway)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]


def test_a_table_that_cannot_be_written_is_no_record(store):
    """Parquet has no unions, which shows only once the file has been opened."""
    store.write("abc123", table(1))
    impossible = pa.table({"x": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])})
    for key in ("abc123", "def456"):
        with pytest.raises(pa.ArrowException):
            store.write(key, impossible)
    assert store.keys() == {"abc123"}
    assert store.read("abc123").equals(table(1))
    assert files_of(store) == [store.path("abc123")]


def test_leftovers_of_interrupted_writes_are_no_keys(store):
    whole = store.write("abc123", table(1))
    for name in (".abc999.parquet.0123.partial", "abc999.parquet.partial", ".abc999.parquet"):
        (whole.parent / name).write_bytes(b"PAR1")
    assert store.keys() == {"abc123"}


def test_while_a_record_is_written_it_is_no_key(store):
    path = store.path("abc123")
    path.parent.mkdir(parents=True)
    seen = []

    def write(partial: Path) -> None:
        partial.write_bytes(b"half")
        seen.append(store.keys())

    write_file(path, write)
    assert seen == [set()]
    assert store.keys() == {"abc123"}


def test_a_killed_process_leaves_only_complete_records(tmp_path):
    """Real SIGKILL, in the middle of a loop that hardly does anything but write and replace records."""
    store = RecordStore(tmp_path)
    for number in range(NUM_KILLS):
        kill_while_writing(store, prefix=f"{number:02d}", delay_s=0.013 * number)
    keys = store.keys()
    assert {key[:2] for key in keys} == {f"{number:02d}" for number in range(NUM_KILLS)}
    for key in keys:
        record = store.read(key)
        [content] = record["number"].unique().to_pylist()
        assert content % 7 == int(key[3:])
        np.testing.assert_array_equal(record["value"].to_numpy(), np.random.default_rng(content).random(NUM_ROWS))


def kill_while_writing(store: RecordStore, *, prefix: str, delay_s: float) -> None:
    """Kills a writer of its own a moment after its second record appeared."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(store.folder.parent), prefix], cwd=ROOT) as writer:
        deadline = time.monotonic() + PATIENCE_S
        while len(list(store.folder.glob(f"??/{prefix}-*.parquet"))) < 2:
            assert writer.poll() is None, "the writer ended by itself"
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.005)
        time.sleep(delay_s)  # another moment of the write each time
        writer.kill()
        assert writer.wait() == -signal.SIGKILL

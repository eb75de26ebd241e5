"""Records in packs are the records that were written: after compaction, after a kill, on a disk and on a store."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_samples import SCHEMA, key_of, numbers_in, record, write_records

from pipeline.errors import RecordError, StorageError
from pipeline.outputs import compaction, packs, records
from pipeline.outputs.packs import Pack
from pipeline.outputs.records import RecordStore, remove_leftovers
from pipeline.outputs.writing import write_file
from pipeline.storage import is_local, list_files, read_bytes

ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS = 3
PATIENCE_S = 60

# Says when it has imported everything, so that what is killed is the compaction.
COMPACTOR = """
import sys
from pathlib import Path
from pipeline.outputs import compaction, records, packs, writing
for name, value in {sizes}.items():
    setattr(compaction, name, value)
store = records.RecordStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(store.compact(1, order=sorted(store.keys())), flush=True)
"""


@pytest.fixture
def store(output_dir) -> RecordStore:
    return RecordStore(output_dir)


@pytest.fixture
def small_packs(monkeypatch) -> None:
    """Five records make a full pack, two and less a small one."""
    monkeypatch.setattr(compaction, "_RECORDS_PER_PACK", 5)
    monkeypatch.setattr(compaction, "_MAX_SMALL_PACKS", 3)


def files_of(store: RecordStore) -> list[str]:
    return sorted(list_files(store.folder))


def packs_of(store: RecordStore) -> list[list[int]]:
    """The numbers in each pack, packs sorted by their first."""
    numbers = {key_of(number): number for number in range(100)}
    return sorted([numbers[key] for key in pack.keys.to_pylist()] for pack in store.listing().packs)


# --- what is in them ---


def test_packed_records_are_the_records_that_were_written(store):
    keys = write_records(store, range(12))
    before = list(store.tables(keys))
    assert store.compact(1, order=keys) == 12
    assert [name.split("/")[0] for name in files_of(store)] == ["packs"]
    again = RecordStore(store.folder.parent)
    assert again.keys() == store.keys() == set(keys)
    for old, new in zip(before, again.tables(keys), strict=True):
        assert new.equals(old)
        assert new.schema.equals(old.schema, check_metadata=True)
    assert again.read(keys[7]).equals(record(7))


def test_records_of_any_number_of_rows(store):
    rows = [0, 1, 0, 40, 0, 0]
    for number, num_rows in enumerate(rows):
        store.write(key_of(number), record(number, num_rows))
    keys = [key_of(number) for number in range(len(rows))]
    store.compact(1, order=keys)
    assert [table.num_rows for table in store.tables(keys)] == rows
    assert [table.num_rows for table in store.tables(keys[::-1])] == rows[::-1]
    assert store.read(keys[3]).equals(record(3, 40))


def test_a_pack_of_records_without_rows(store):
    keys = [key_of(number) for number in range(3)]
    for key in keys:
        store.write(key, record(0, 0))
    store.compact(1)
    assert [table.num_rows for table in store.tables(keys)] == [0, 0, 0]
    assert store.read(keys[0]).schema.field("action").metadata == {b"unit": b"m"}


def test_row_groups_end_between_records(store, monkeypatch):
    monkeypatch.setattr(packs, "_ROWS_PER_GROUP", 7)
    keys = write_records(store, range(9))
    store.compact(1, order=keys)
    [pack] = store.listing().packs
    footer = packs.read_footer(pack.path)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [6, 6, 6, 6, 3]
    assert numbers_in(store.tables(keys)) == list(range(9))
    shuffled = random.Random(0).sample(range(9), 9)
    assert numbers_in(store.tables([key_of(number) for number in shuffled])) == shuffled


def test_anybody_can_read_a_pack(tmp_path):
    store = RecordStore(tmp_path)
    keys = write_records(store, range(4))
    store.compact(1, order=keys)
    table = pq.read_table(tmp_path / "records" / "packs")
    assert table["episode_index"].to_pylist() == [number for number in range(4) for _ in range(3)]


def test_a_long_index_is_read_by_two_reads(store, monkeypatch):
    monkeypatch.setattr(packs, "_TAIL_BYTES", 64)
    keys = write_records(store, range(4))
    store.compact(1)
    assert RecordStore(store.folder.parent).keys() == set(keys)


def test_equal_records_give_equal_packs(tmp_path):
    contents = []
    for name in ("a", "b"):
        store = RecordStore(tmp_path / name)
        keys = write_records(store, range(9) if name == "a" else reversed(range(9)))
        store.compact(1, order=sorted(keys))
        [pack] = files_of(store)
        contents.append((pack, read_bytes(store.folder / pack)))
    assert contents[0] == contents[1]


# --- which go where ---


def test_few_records_stay_loose(store):
    keys = write_records(store, range(3))
    assert store.compact(4) == 0
    assert files_of(store) == sorted(f"{key[:2]}/{key}.parquet" for key in keys)
    assert store.compact(3) == 3
    assert store.compact(1) == 0


def test_packs_keep_to_the_order_and_strangers_follow(store, small_packs):
    keys = write_records(store, range(8))
    store.compact(1, order=[*keys[6:0:-1], key_of(99)])
    rest = sorted([keys[0], keys[7]])
    assert packs_of(store) == sorted([[6, 5, 4, 3, 2], [1, *(keys.index(key) for key in rest)]])


def test_a_pack_ends_at_its_bytes(store, monkeypatch):
    monkeypatch.setattr(compaction, "_BYTES_PER_PACK", 2 * record(0).nbytes)
    keys = write_records(store, range(5))
    assert store.compact(1, order=keys) == 5
    assert packs_of(store) == [[0, 1], [2, 3], [4]]
    assert numbers_in(store.tables(keys)) == list(range(5))


def test_records_of_another_schema_have_packs_of_their_own(store):
    other = SCHEMA.with_metadata({"recipe": "other"})
    keys = write_records(store, range(0, 6, 2)) + write_records(store, range(1, 6, 2), schema=other)
    assert store.compact(1, order=sorted(keys)) == 6
    assert sorted(sorted(numbers) for numbers in packs_of(store)) == [[0, 2, 4], [1, 3, 5]]
    assert store.read(key_of(1)).schema.metadata == {b"recipe": b"other"}
    assert store.read(key_of(2)).schema.metadata is None


def test_small_packs_are_put_together_in_time(store, small_packs):
    for number in range(3):
        assert store.compact(1, order=write_records(store, [number])) == 1
    assert packs_of(store) == [[0], [1], [2]]
    keys = write_records(store, [3, 4, 5])
    assert store.compact(1, order=[key_of(number) for number in range(6)]) == 3
    assert packs_of(store) == [[0, 1, 2, 3, 4], [5]]
    assert store.keys() == {key_of(number) for number in range(6)}
    assert numbers_in(store.tables(keys)) == [3, 4, 5]


def test_what_is_both_loose_and_packed_is_one_record(store, small_packs):
    keys = write_records(store, range(4))
    store.compact(1, order=keys)
    write_records(store, [1, 2])
    assert store.keys() == set(keys)
    assert numbers_in(store.tables(keys)) == [0, 1, 2, 3]
    assert len(files_of(store)) == 3
    assert store.compact() == 0
    assert len(files_of(store)) == 1
    assert store.keys() == set(keys)


def test_a_pack_that_is_wholly_in_others_goes(store, small_packs):
    """As after a kill between putting small packs together and deleting them."""
    packed = [store.compact(1, order=write_records(store, [number])) for number in range(3)]
    assert packed == [1, 1, 1]
    contents = {name: read_bytes(store.folder / name) for name in files_of(store)}
    write_records(store, [3])
    store.compact(1, order=[key_of(number) for number in range(4)])
    for name, content in contents.items():
        (store.folder / name).write_bytes(content)
    assert sorted(numbers_in(store.tables(sorted(store.keys())))) == [0, 1, 2, 3]
    store = RecordStore(store.folder.parent)
    store.compact()
    assert packs_of(store) == [[0, 1, 2, 3]]


# --- how they are read ---


def test_a_merge_reads_each_row_group_once_and_few_records_ahead(tmp_path, monkeypatch):
    """Records of many packs in turns, as after interruptions."""
    monkeypatch.setattr(packs, "_ROWS_PER_GROUP", 12)
    store = RecordStore(tmp_path)
    for start in range(3):
        store.compact(1, order=write_records(store, range(start, 60, 3)))
    asked, read_group = [], records.read_group

    def counted(path, footer, group):
        asked.append((path.name, group))
        return read_group(path, footer, group)

    monkeypatch.setattr(records, "read_group", counted)
    assert numbers_in(store.tables([key_of(number) for number in range(60)])) == list(range(60))
    assert len(asked) == len(set(asked)) == 15


def test_only_so_many_records_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_AHEAD", 4)
    store = RecordStore(tmp_path)
    keys = write_records(store, range(40))
    asked, read_bytes_ = [], records.read_bytes
    monkeypatch.setattr(records, "read_bytes", lambda path: asked.append(path) or read_bytes_(path))
    tables = store.tables(keys)
    for number in range(1, 31):
        next(tables)
        assert len(asked) <= number + 4
    tables.close()


def test_resuming_lists_and_reads_no_record(s3):
    store = RecordStore(s3.url("resuming"))
    keys = write_records(store, range(30))
    store.compact(1)
    write_records(store, range(30, 40))
    before = s3.requests
    assert len(RecordStore("s3://resuming").keys()) == len(keys) + 10
    assert s3.requests - before <= 6


def test_records_survive_requests_that_fail(s3):
    store = RecordStore(s3.url("failing/out"))
    with s3.fail(every=5, kinds=("error_500", "truncated")):
        keys = write_records(store, range(6))
        store.compact(1, order=keys)
        assert numbers_in(store.tables(keys)) == list(range(6))
        assert store.keys() == set(keys)


# --- damage ---


def test_a_missing_record_is_told(store):
    keys = write_records(store, range(2))
    store.compact(2)
    with pytest.raises(FileNotFoundError, match=key_of(7)):
        list(store.tables([*keys, key_of(7)]))


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign", "of another key", "without a key"])
def test_a_damaged_record_is_told_and_never_packed(store, damage):
    keys = write_records(store, range(4), num_rows=500)
    path = store.path(keys[2])
    content = bytearray(read_bytes(path))
    content[len(content) // 3] ^= 0xFF
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "short":
            path.write_bytes(bytes(content[: len(content) // 2]))
        case "flipped":
            path.write_bytes(bytes(content))
        case "foreign":
            path.write_bytes(b"\x00" * 4096)
        case "of another key":
            path.write_bytes(read_bytes(store.path(keys[1])))
        case "without a key":
            sink = pa.BufferOutputStream()
            pq.write_table(record(2), sink)
            path.write_bytes(sink.getvalue().to_pybytes())
    for _ in range(2):
        assert store.keys() == set(keys)
        with pytest.raises(RecordError) as caught:
            list(store.tables(keys))
        assert str(path) in str(caught.value)
        assert "Delete it and run the same command again" in str(caught.value)
        store.compact(1)
    assert [name for name in files_of(store) if not name.startswith("packs/")] == [f"{keys[2][:2]}/{keys[2]}.parquet"]
    path.unlink()
    assert numbers_in(store.tables([keys[0], keys[1], keys[3]])) == [0, 1, 3]


@pytest.mark.parametrize("damage", ["empty", "short", "foreign"])
def test_a_pack_that_cannot_be_opened_is_told_before_anything_is_done_twice(store, damage):
    store.compact(1, order=write_records(store, range(4)))
    path = store.folder / files_of(store)[0]
    content = {"empty": b"", "short": read_bytes(path)[:-20], "foreign": b"PAR1" * 1000}[damage]
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"packs/.*\.parquet: expected a pack of records") as caught:
        RecordStore(store.folder.parent).keys()
    assert "Delete it and run the same command again" in str(caught.value)


def test_a_parquet_file_that_is_no_pack_is_told(store):
    path = store.pack_path("mine")
    if is_local(path):
        path.parent.mkdir(parents=True)
    sink = pa.BufferOutputStream()
    pq.write_table(record(1), sink)
    path.write_bytes(sink.getvalue().to_pybytes())
    with pytest.raises(RecordError, match="no index of records"):
        store.keys()


def test_rows_of_a_pack_that_changed_are_told(store):
    keys = write_records(store, range(4))
    store.compact(1, order=keys)
    path = store.folder / files_of(store)[0]
    content = bytearray(read_bytes(path))
    content[40] ^= 0xFF
    path.write_bytes(bytes(content))
    assert store.keys() == set(keys), "the index is whole"
    with pytest.raises(RecordError, match="damaged"):
        list(store.tables(keys))


def test_an_index_that_does_not_belong_to_its_rows_is_told(tmp_path):
    path = tmp_path / "pack.parquet"
    index = packs._encode_index(["a", "b"], [3, 4], 100)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        writer.write_table(record(0, 6))
        writer.add_key_value_metadata({"record_index": index})
    with pytest.raises(RecordError, match="does not belong to its rows"):
        Pack.open(path)


# --- leftovers, kills and full disks ---


def test_leftovers_are_found_by_the_listing_that_finds_the_keys(tmp_path):
    store = RecordStore(tmp_path)
    keys = write_records(store, range(3))
    left = [
        store.path(keys[0]).parent / f".{keys[0]}.parquet.0123.partial",
        store.folder / "packs" / ".abc.parquet.0123.partial",
        tmp_path / "videos" / "episode_000000" / ".sample_00.mp4.0123.partial",
        tmp_path / ".labels-0123.partial" / "labels" / "labels-00000.parquet",
    ]
    kept = [tmp_path / "videos" / "episode_000000" / "sample_00.mp4", tmp_path / ".summary.json.0123.partial"]
    for path in [*left, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    old = tmp_path / ".manifest.json.0123.partial"
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert remove_leftovers(tmp_path) == set(keys)
    assert [path for path in [*left, old] if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert not (tmp_path / ".labels-0123.partial").exists()


def test_an_object_store_keeps_no_folder_that_was_not_put_in_place(s3):
    url = s3.url("leftovers/out")
    s3.put("leftovers/out/.labels-0123.partial/labels-00000.parquet", b"half")
    s3.put("leftovers/out/labels/labels-00000.parquet", b"whole")
    keys = write_records(RecordStore(url), range(2))
    assert remove_leftovers(url) == set(keys)
    assert [key for key in s3.keys("leftovers/out") if "records" not in key] == ["out/labels/labels-00000.parquet"]


def test_before_a_run_there_are_no_leftovers(output_dir):
    assert remove_leftovers(output_dir) == set()


def test_compaction_may_die_at_any_moment(tmp_path):
    """Real SIGKILL at random moments; whatever is there then is the whole store, and the next compaction mends it."""
    store, moments, amid = RecordStore(tmp_path), random.Random(5), 0
    numbers = range(0)
    for round_ in range(1, NUM_KILLS + 1):
        write_records(store, range(len(numbers), 24 * round_))
        numbers = range(24 * round_)
        keys = [key_of(number) for number in numbers]
        kill_while_compacting(store, delay_s=moments.uniform(0.0, 0.05))
        store = RecordStore(tmp_path)
        amid += bool(store.listing().loose)
        assert store.keys() == set(keys)
        assert numbers_in(store.tables(keys)) == list(numbers)
        remove_leftovers(tmp_path)
        assert [name for name in files_of(store) if not name.endswith(".parquet")] == []
    assert amid, "nobody was killed amid the work"
    store.compact(1, order=keys)
    assert [name for name in files_of(store) if not name.startswith("packs/")] == []
    assert sum(len(pack.keys) for pack in store.listing().packs) == len(keys), "each record is in one pack"
    assert numbers_in(RecordStore(tmp_path).tables(keys)) == list(numbers)


def kill_while_compacting(store: RecordStore, *, delay_s: float) -> None:
    """Kills a compaction of its own a moment after it has put the first pack in place."""
    sizes = {"_RECORDS_PER_PACK": 5, "_MAX_SMALL_PACKS": 2}
    command = [sys.executable, "-c", COMPACTOR.format(sizes=json.dumps(sizes)), str(store.folder.parent)]
    before = set(list_files(store.folder / "packs"))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as compactor:
        assert compactor.stdout.readline() == "ready\n"
        compactor.stdin.write("go\n")
        compactor.stdin.flush()
        deadline = time.monotonic() + PATIENCE_S
        while not any(name.endswith(".parquet") for name in set(list_files(store.folder / "packs")) - before):
            assert compactor.poll() is None, "the compaction ended by itself"
            assert time.monotonic() < deadline, "no pack was written"
            time.sleep(0.001)
        time.sleep(delay_s)
        compactor.kill()
        assert compactor.wait() in (-signal.SIGKILL, 0)


def test_actors_write_while_a_driver_compacts(tmp_path):
    writer = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from record_samples import write_records
from pipeline.outputs.records import RecordStore
write_records(RecordStore(Path(sys.argv[1])), range(60))
"""
    store, seen = RecordStore(tmp_path), set()
    with subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)], cwd=ROOT) as process:
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            assert time.monotonic() < deadline
            store.compact(5)
            keys = store.keys()
            assert keys >= seen, "a record that was there is gone"
            seen = keys
        assert process.returncode == 0
    store.compact(1)
    keys = [key_of(number) for number in range(60)]
    assert store.keys() == set(keys)
    assert numbers_in(store.tables(keys)) == list(range(60))


FILL = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from record_samples import key_of, record
from pipeline.errors import StorageError
from pipeline.outputs.manifest import write_json
from pipeline.outputs.merging import merge_records
from pipeline.outputs.records import RecordStore
from pipeline.outputs.videos import write_video
out = Path(sys.argv[1])
store, keys = RecordStore(out), []
def told(action):
    try:
        action()
    except StorageError as error:
        assert "disk full" in str(error) and "Free space" in str(error), error
        return True
    return False
while not told(lambda: store.write(key_of(len(keys)), record(len(keys), 2000))):
    keys.append(key_of(len(keys)))
assert len(keys) > 3, keys
noise = np.random.default_rng(0).integers(0, 255, (20, 128, 128, 3), dtype=np.uint8)
assert told(lambda: write_video(out / "videos" / "a.mp4", [noise], fps=10))
assert told(lambda: write_json(out / "summary.json", ["x" * 100] * 4000))
assert told(lambda: merge_records(store, keys, record(0).schema, out / "labels", manifest={}, look=lambda table: None))
assert told(lambda: store.compact(1))
assert [str(path) for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet"] == []
assert store.keys() == set(keys)
[table.num_rows for table in store.tables(keys)]
store.path(keys.pop()).unlink()
store.path(keys.pop()).unlink()
print(store.write(key_of(500), record(500, 2000)).name, len(keys))
"""


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    """A real file system of half a megabyte, in a namespace of its own."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=512k tmpfs {tmp_path}"
    try:
        possible = subprocess.run([*alone, "sh", "-c", mount], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("nobody may mount a file system here")
    script = f'{mount} && exec "$@"'
    command = [*alone, "sh", "-c", script, "sh", sys.executable, "-c", FILL, str(tmp_path), str(Path(__file__).parent)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(key_of(500))


def test_room_that_is_not_there_is_no_error_of_the_segment(tmp_path):
    """Also where somebody else's error stands in front of it."""

    def fail(partial: Path) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("the encoder stopped") from error

    with pytest.raises(StorageError, match="disk full") as caught:
        write_file(tmp_path / "a", fail)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_million_keys_are_had_from_fifty_megabytes():
    """By their size: so many bytes a key costs, whatever is in its record."""
    keys = [key_of(number) for number in range(20_000)]
    index = packs._encode_index(keys, [150] * len(keys), 1)
    assert len(index) < 50 * len(keys)

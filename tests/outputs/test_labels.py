"""Labels: one row per frame, one action per pair of frames, and files that any Parquet reader understands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.outputs import merging
from pipeline.outputs.labels import label_schema, label_table, merge_labels
from pipeline.outputs.records import RecordStore
from pipeline.plan import window_starts
from pipeline.recipe import Recipe, make_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

CHUNK = 4
MANIFEST = {"run_id": "abc", "settings": {"engine.seed": 3}}


def make_recipe_for(folder: Path, **changes) -> Recipe:
    write_video(folder / "a.mp4", range(5))
    dataset = DatasetConfig(cameras=("video",))
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK, "raw_action_dim": 10} | changes
    return make_recipe(LabelConfig(dataset=dataset, **settings), open_dataset(folder), "weights")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return make_recipe_for(tmp_path_factory.mktemp("labels"))


def inferred(num_positions: int, *, recipe: Recipe, episode: int = 0, only: slice = slice(None), label_start=0) -> dict:
    """A row as infer hands it on. Column 0 of an action is its window, column 1 the position it starts from."""
    starts = window_starts(num_positions, CHUNK)[only]
    stop = min(starts[-1] + CHUNK, num_positions - 1)
    action = np.zeros((len(starts), CHUNK, recipe.raw_action_dim), np.float32)
    action[..., 0] = np.asarray(starts)[:, None]
    action[..., 1] = np.asarray(starts)[:, None] + np.arange(CHUNK)
    positions = np.arange(starts[0], min(starts[-1] + CHUNK + 1, num_positions))
    return {
        "key": f"{episode:04d}-{starts[0]:04d}",
        "episode_index": episode,
        "task": "Lift.",
        "num_positions": num_positions,
        "window_starts": starts,
        "label_start": label_start,
        "label_stop": stop,
        "timestamps": 100 + positions * 0.2,
        "action": action,
        "action_normalized": -action,
    }


def test_one_row_per_frame_and_no_action_on_the_last(recipe):
    table = label_table(inferred(9, recipe=recipe), recipe)
    assert table.schema.equals(label_schema(recipe), check_metadata=True)
    assert table["frame_index"].to_pylist() == list(range(9))
    assert table["action_valid"].to_pylist() == [True] * 8 + [False]
    for name in ("action", "action_normalized"):
        assert [value is None for value in table[name].to_pylist()] == [False] * 8 + [True]
    assert [value[1] for value in table["action"].to_pylist()[:-1]] == list(range(8))
    assert [value[1] for value in table["action_normalized"].to_pylist()[:-1]] == [-k for k in range(8)]
    assert set(table["task"].to_pylist()) == {"Lift."}
    assert set(table["episode_index"].to_pylist()) == {0}


def test_timestamps_are_the_recorded_ones(recipe):
    table = label_table(inferred(9, recipe=recipe), recipe)
    np.testing.assert_allclose(table["timestamp"].to_numpy(), 100 + np.arange(9) * 0.2, rtol=0, atol=1e-12)


def test_where_windows_overlap_the_earlier_one_answers(recipe):
    actions = label_table(inferred(10, recipe=recipe), recipe)["action"].to_pylist()[:-1]
    assert [value[0] for value in actions] == [0, 0, 0, 0, 4, 4, 4, 4, 5]


@pytest.mark.parametrize("num_positions", [2, 3, 5])
def test_padding_of_a_short_episode_is_never_a_label(recipe, num_positions):
    table = label_table(inferred(num_positions, recipe=recipe), recipe)
    assert table.num_rows == num_positions
    assert sum(table["action_valid"].to_pylist()) == num_positions - 1
    assert table["action"].null_count == 1


def test_segments_of_one_episode_join_without_gap_or_double(recipe):
    """Only the last one has the frame without an action; the others end where the next one begins."""
    first = label_table(inferred(15, recipe=recipe, only=slice(0, 2)), recipe)
    second = label_table(inferred(15, recipe=recipe, only=slice(2, None), label_start=8), recipe)
    assert first["frame_index"].to_pylist() == list(range(8))
    assert second["frame_index"].to_pylist() == list(range(8, 15))
    assert all(first["action_valid"].to_pylist())
    actions = [*first["action"].to_pylist(), *second["action"].to_pylist()]
    assert [value and value[1] for value in actions] == [*range(14), None]
    times = [*first["timestamp"].to_pylist(), *second["timestamp"].to_pylist()]
    np.testing.assert_allclose(times, 100 + np.arange(15) * 0.2)


def test_a_segment_of_nothing_but_the_moved_back_window(recipe):
    table = label_table(inferred(10, recipe=recipe, only=slice(2, None), label_start=8), recipe)
    assert table["frame_index"].to_pylist() == [8, 9]
    assert table["action"].to_pylist()[0][:2] == [5, 8]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [101.6, 101.8])


def test_frame_index_counts_frames_of_the_dataset(tmp_path):
    recipe = make_recipe_for(tmp_path, fps=5.0)
    assert recipe.timebase.stride == 3
    table = label_table(inferred(6, recipe=recipe), recipe)
    assert table["frame_index"].to_pylist() == [0, 3, 6, 9, 12, 15]


def test_columns_say_what_their_numbers_are(recipe):
    metadata = {field.name: field.metadata or {} for field in label_schema(recipe)}
    assert metadata["action"][b"names"].decode().split(",") == list(recipe.action_names)
    assert metadata["action"][b"embodiment"] == b"droid_lerobot"
    assert metadata["timestamp"][b"unit"] == b"s"
    assert b"none" in metadata["action_normalized"][b"unit"]


def test_units_are_claimed_only_where_statistics_gave_them(tmp_path, recipe):
    assert label_schema(recipe).field("action").metadata[b"unit"] == b"model's own scale"
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"q01": [-1] * 10, "q99": [1] * 10}))
    quantile = make_recipe_for(tmp_path / "videos", action_normalization="quantile", action_stats_path=str(stats))
    assert label_schema(quantile).field("action").metadata[b"unit"] == b"as the names say"


# --- merging ---


@pytest.fixture
def store(tmp_path, recipe) -> RecordStore:
    store = RecordStore(tmp_path)
    for episode in (2, 0, 1):
        row = inferred(9 + episode, recipe=recipe, episode=episode)
        store.write(row["key"], label_table(row, recipe))
    return store


KEYS = ["0001-0000", "0000-0000", "0002-0000"]


def merged_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_merged_labels_come_in_the_order_asked(store, recipe, tmp_path):
    checks = merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    rows = merged_rows(tmp_path / "labels")
    expected = [(1, k) for k in range(10)] + [(0, k) for k in range(9)] + [(2, k) for k in range(11)]
    assert [(row["episode_index"], row["frame_index"]) for row in rows] == expected
    assert (checks.num_rows, checks.num_valid) == (30, 27)


def test_many_rows_become_several_files(store, recipe, tmp_path, monkeypatch):
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    whole = merged_rows(tmp_path / "labels")
    monkeypatch.setattr(merging, "_ROWS_PER_FILE", 15)
    monkeypatch.setattr(merging, "_ROWS_PER_GROUP", 1)
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    files = sorted((tmp_path / "labels").iterdir())
    assert [path.name for path in files] == ["labels-00000.parquet", "labels-00001.parquet"]
    assert [pq.read_metadata(path).num_rows for path in files] == [19, 11]
    assert merged_rows(tmp_path / "labels") == whole


def test_rows_of_a_file_are_grouped(store, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_ROWS_PER_GROUP", 15)
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    metadata = pq.read_metadata(tmp_path / "labels" / "labels-00000.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [19, 11]


def test_merging_replaces_the_folder_as_a_whole(store, recipe, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "labels-00007.parquet").write_bytes(b"of another run")
    merge_labels(store, KEYS[:1], recipe, folder, MANIFEST)
    assert [path.name for path in folder.iterdir()] == ["labels-00000.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "records"]


def test_leftovers_of_an_interrupted_merge_do_no_harm(store, recipe, tmp_path):
    partial = tmp_path / ".labels.partial"
    partial.mkdir()
    (partial / "labels-00009.parquet").write_bytes(b"half")
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    assert len(merged_rows(tmp_path / "labels")) == 30


def test_a_merge_that_fails_keeps_the_labels_that_were_there(store, recipe, tmp_path):
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    before = merged_rows(tmp_path / "labels")
    with pytest.raises(FileNotFoundError):
        merge_labels(store, [*KEYS, "no-such-key"], recipe, tmp_path / "labels", MANIFEST)
    assert merged_rows(tmp_path / "labels") == before


def test_files_carry_the_manifest_and_the_columns_their_names(store, recipe, tmp_path):
    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    schema = pq.read_schema(tmp_path / "labels" / "labels-00000.parquet")
    assert json.loads(schema.metadata[b"manifest"]) == MANIFEST
    assert schema.field("action").metadata[b"names"].decode().split(",") == list(recipe.action_names)


def test_hugging_face_datasets_opens_the_labels(store, recipe, tmp_path):
    """The command that the job prints at its end."""
    import datasets

    merge_labels(store, KEYS, recipe, tmp_path / "labels", MANIFEST)
    opened = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "labels" / "*.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert len(opened) == 30
    assert opened.column_names == label_schema(recipe).names
    for row in opened:
        is_last = row["frame_index"] == 8 + row["episode_index"]
        assert row["action_valid"] is not is_last
        assert (row["action"] is None) is is_last
        assert is_last or len(row["action"]) == len(row["action_normalized"]) == 10

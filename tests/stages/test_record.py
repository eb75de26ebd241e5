"""Record: a segment's labels on disk, and a status row without the payload."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.outputs.labels import label_table
from pipeline.outputs.records import RecordStore
from pipeline.outputs.summary import Tally
from pipeline.plan import make_plan
from pipeline.recipe import make_recipe
from pipeline.stages.record import RecordLabels

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

PAYLOAD = {"timestamps", "action", "action_normalized"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    write_video(folder / "a.mp4", range(7))
    config = LabelConfig(
        dataset=DatasetConfig(cameras=("video",)), action_normalization="none", action_chunk_size=4, image_size=256
    )
    dataset = open_dataset(folder)
    recipe = make_recipe(config, dataset, "weights")
    [segment] = make_plan(dataset, recipe, max_segment_bytes=64 * 1024**2).segments
    return recipe, segment


@pytest.fixture
def recipe(planned):
    return planned[0]


@pytest.fixture
def row(planned) -> dict:
    """What infer hands on."""
    action = np.arange(2 * 4 * 10, dtype=np.float32).reshape(2, 4, 10)
    payload = {"timestamps": np.arange(7) / 15, "action": action, "action_normalized": -action}
    return planned[1].to_row() | payload | {"load_s": 0.1, "infer_s": 0.2}


def test_the_labels_are_on_disk_and_only_bookkeeping_travels_on(row, recipe, tmp_path):
    out = RecordLabels(str(tmp_path), recipe)(row)
    store = RecordStore(tmp_path)
    assert store.keys() == {row["key"]}
    assert store.read(row["key"]).equals(label_table(row, recipe))
    assert not PAYLOAD & set(out)
    assert (out["error"], out["key"], out["window_starts"]) == ("", row["key"], [0, 2])


def test_a_status_row_is_what_the_tally_counts(row, recipe, planned, tmp_path):
    tally = Tally([planned[1]])
    tally.add(RecordLabels(str(tmp_path), recipe)(row))
    assert (tally.windows_done, tally.outcomes) == (2, {})
    assert tally.seconds["load"] == 0.1
    assert tally.seconds["record"] > 0


def test_a_failed_row_leaves_no_record(row, recipe, planned, tmp_path):
    nothing = np.zeros((0, 4, 10), np.float32)
    failed = row | {"error": "gone", "error_type": "VideoError", "action": nothing, "action_normalized": nothing}
    out = RecordLabels(str(tmp_path), recipe)(failed)
    assert RecordStore(tmp_path).keys() == set()
    assert not PAYLOAD & set(out)
    tally = Tally([planned[1]])
    tally.add(out)
    assert tally.windows_done == 0


def test_a_disk_that_refuses_fails_the_segment(row, recipe, tmp_path):
    """The output folder is a file: what the operating system says has to reach the summary."""
    (tmp_path / "out").write_text("in the way")
    out = RecordLabels(str(tmp_path / "out"), recipe)(row)
    assert out["error_type"] in {"NotADirectoryError", "FileExistsError"}
    assert str(tmp_path / "out") in out["error"]
    assert not PAYLOAD & set(out)


def test_answers_that_do_not_cover_the_segment_are_no_record(row, recipe, tmp_path):
    out = RecordLabels(str(tmp_path), recipe)(row | {"action": row["action"][:1]})
    assert out["error_type"]
    assert RecordStore(tmp_path).keys() == set()


def test_doing_it_twice_gives_one_record(row, recipe, tmp_path):
    """A call whose process died after the write is tried again."""
    record = RecordLabels(str(tmp_path), recipe)
    record(row)
    record(row)
    assert RecordStore(tmp_path).keys() == {row["key"]}

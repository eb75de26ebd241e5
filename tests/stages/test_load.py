"""Load: exactly the frames of a segment, composed and fitted, or a failed row that names the file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, make_recipe
from pipeline.stages.load import Load
from pipeline.views import choose_canvas, compose_concat, fit

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import HEIGHT, Made, cut, draw, make_v3, read_ids, write_video

CHUNK = 4
LENGTHS = (30, 9, 3)
THIRD = "observation.images.side"


def add_third_camera(made: Made) -> None:
    """The second camera's videos once more: a composite needs three views."""
    second = made.cameras[1]
    shutil.copytree(made.root / "videos" / second, made.root / "videos" / THIRD)
    info_path = made.root / "meta/info.json"
    info = json.loads(info_path.read_text())
    info["features"][THIRD] = info["features"][second]
    info_path.write_text(json.dumps(info))
    for path in (made.root / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        for name in [name for name in table.column_names if name.startswith(f"videos/{second}/")]:
            table = table.append_column(name.replace(second, THIRD), table[name])
        pq.write_table(table, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    made = make_v3(tmp_path_factory.mktemp("load") / "dataset", LENGTHS, per_file=3, codec="libx264", gop=12)
    add_third_camera(made)
    return made


def recipe_of(root: Path, cameras: tuple[str, ...], **changes) -> Recipe:
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK, "image_size": 256} | changes
    return make_recipe(LabelConfig(dataset=DatasetConfig(cameras=cameras), **settings), open_dataset(root), "weights")


def rows_of(root: Path, recipe: Recipe, *, mib: float = 64) -> list[dict]:
    plan = make_plan(open_dataset(root), recipe, max_segment_bytes=int(mib * 1024**2))
    return [segment.to_row() for segment in plan.segments]


def loaded(root: Path, recipe: Recipe, **plan) -> list[dict]:
    load = Load(str(root), "auto", recipe)
    return [load(row) for row in rows_of(root, recipe, **plan)]


def test_one_camera_from_the_first_windows_start_to_the_last_ones_end(made):
    """Segments of a long episode too, where the episode is not the file's first."""
    rows = loaded(made.root, recipe_of(made.root, made.cameras[:1]), mib=2)
    assert len(rows) > len(LENGTHS), "one segment per episode shows too little"
    for row in rows:
        assert row["error"] == ""
        first, last = row["window_starts"][0], min(row["window_starts"][-1] + CHUNK, row["num_positions"] - 1)
        expected = made.ids(row["episode_index"], made.cameras[0], range(first, last + 1))
        assert read_ids(row["frames"]) == expected
        assert len(row["timestamps"]) == len(row["frames"])
        np.testing.assert_allclose(row["timestamps"], np.arange(first, last + 1) / 15, atol=1e-6)
        assert row["load_s"] > 0


def test_a_composite_shows_every_camera_in_its_place(made):
    front, wrist = made.cameras
    for row in loaded(made.root, recipe_of(made.root, (wrist, THIRD, front))):
        frames, positions = row["frames"], range(row["num_positions"])
        assert frames.shape[1:] == (HEIGHT + HEIGHT // 2, 128, 3)
        assert row["canvas"].tolist() == list(astuple(choose_canvas(*frames.shape[1:3], 256)))
        assert read_ids(frames[:, :HEIGHT]) == made.ids(row["episode_index"], wrist, positions)
        bottom = frames[:, HEIGHT:].repeat(2, axis=1).repeat(2, axis=2)
        assert read_ids(bottom[:, :, :128]) == made.ids(row["episode_index"], wrist, positions)
        assert read_ids(bottom[:, :, 128:]) == made.ids(row["episode_index"], front, positions)


def test_a_composite_is_what_views_make_of_the_frames(made):
    """The same arrays, resized where the canvas is smaller than the picture."""
    cameras = (*made.cameras, THIRD)
    recipe = recipe_of(made.root, cameras)
    dataset = open_dataset(made.root)
    row = Load(str(made.root), "lerobot", recipe)(rows_of(made.root, recipe)[1])
    views = [dataset.read_frames(1, camera, range(LENGTHS[1])) for camera in cameras]
    composed = compose_concat(*views)
    np.testing.assert_array_equal(row["frames"], fit(composed, choose_canvas(*composed.shape[1:3], 256)))
    assert row["frames"].dtype == np.uint8


def test_a_picture_larger_than_the_canvas_is_shrunk_to_it(shared_data):
    """Real DROID: 192x320 a view, 288x320 composed, on the smallest tier."""
    root = shared_data / "droid_real"
    config = LabelConfig(
        dataset=DatasetConfig(timebase="native"), action_normalization="none", action_chunk_size=CHUNK, image_size=256
    )
    recipe = make_recipe(config, open_dataset(root), "weights")
    [*_, row] = rows_of(root, recipe)
    row = Load(str(root), "auto", recipe)(row | {"window_starts": [2], "label_start": 2, "label_stop": 6})
    canvas = choose_canvas(288, 320, 256)
    assert (canvas.content_height_px, canvas.content_width_px) < (288, 320)
    assert row["frames"].shape == (CHUNK + 1, canvas.content_height_px, canvas.content_width_px, 3)
    assert row["canvas"].tolist() == list(astuple(canvas))


def test_a_slower_model_sees_every_third_frame(made):
    recipe = recipe_of(made.root, made.cameras[:1], fps=5.0)
    row = loaded(made.root, recipe)[0]
    assert read_ids(row["frames"]) == made.ids(0, made.cameras[0], range(0, 30, 3))
    np.testing.assert_allclose(row["timestamps"], np.arange(0, 30, 3) / 15, atol=1e-6)


def test_a_short_episode_has_the_frames_it_has(made):
    """Padding is the engine's business."""
    row = loaded(made.root, recipe_of(made.root, made.cameras[:1]))[2]
    assert read_ids(row["frames"]) == made.ids(2, made.cameras[0], range(3))


def test_a_known_problem_fails_its_segment_without_touching_a_file(tmp_path):
    write_video(tmp_path / "a.mp4", range(5))
    write_video(tmp_path / "b.mp4", range(1))
    recipe = recipe_of(tmp_path, ("video",))
    good, bad = loaded(tmp_path, recipe)
    assert good["error"] == ""
    assert bad["error_type"] == "EpisodeError"
    assert "--dataset.episodes" in bad["error"]
    assert {name: value.dtype for name, value in bad.items() if isinstance(value, np.ndarray)} == {
        name: value.dtype for name, value in good.items() if isinstance(value, np.ndarray)
    }
    assert bad["frames"].shape[0] == 0


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_video_fails_its_segment_and_names_the_file(tmp_path, damage):
    """The plan was made while the file was whole, or from metadata that does not know better."""
    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", range(40), options={"crf": "18"})
    recipe = recipe_of(tmp_path, ("video",))
    rows, load = rows_of(tmp_path, recipe), Load(str(tmp_path), "videos", recipe)
    if damage == "missing":
        (tmp_path / "a.mkv").unlink()
    else:
        cut(tmp_path / "a.mkv", 0.5)
    bad, good = (load(row) for row in rows)
    assert bad["error_type"] == "VideoError"
    assert "a.mkv" in bad["error"]
    assert bad["frames"].size == 0
    assert bad["key"] == rows[0]["key"]
    assert good["error"] == ""
    assert read_ids(good["frames"]) == list(range(40))


def test_views_that_cannot_be_composed_fail_their_segment(made):
    recipe = replace(recipe_of(made.root, made.cameras[:1]), cameras=made.cameras)
    row = loaded(made.root, recipe)[0]
    assert row["error_type"] == "ConfigError"
    assert "--dataset.cameras" in row["error"]


def test_the_ids_can_be_read_from_the_pixels():
    """Whether these tests can see a wrong frame at all."""
    assert read_ids(np.stack([draw(7), draw(20_008)])) == [7, 20_008]

"""LeRobot v3.0 metadata that is wrong, incomplete, or very long."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_factory import edit_json, edit_table, read_ids

from pipeline.datasets import Episode, open_dataset
from pipeline.errors import DatasetError, VideoError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


class TestMetadata:
    def test_an_episode_without_length_has_a_problem_and_the_others_go_on(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, length=[23, 0, None])
        dataset = open_dataset(made.root)
        assert dataset.episode(0).problem is None
        assert dataset.episode(1).num_frames == dataset.episode(2).num_frames == 0
        assert "length is 0" in dataset.episode(1).problem
        assert "length is None" in dataset.episode(2).problem
        with pytest.raises(VideoError, match="length is 0"):
            dataset.read_frames(1, FRONT, [0])

    @pytest.mark.parametrize(
        ("field", "value"),
        [("fps", 0), ("fps", "15"), ("fps", None), ("fps", True), ("features", None), ("features", {"a": 1}),
         ("video_path", None), ("data_path", 3), ("codebase_version", None)],
    )  # fmt: skip
    def test_a_wrong_field_names_file_and_field(self, v3, copy_of, field, value):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", **{field: value})
        with pytest.raises(DatasetError, match=rf"info\.json: expected '{field}"):
            open_dataset(made.root)

    @pytest.mark.parametrize("shape", [None, "3", [0], [2.5]])
    def test_a_wrong_shape_names_the_feature(self, v3, copy_of, shape):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", features={"action": {"dtype": "float32", "shape": shape}})
        with pytest.raises(DatasetError, match=r"info\.json: expected 'features\.action\.shape'"):
            open_dataset(made.root)

    @pytest.mark.parametrize("content", ["{", "[]", ""])
    def test_info_that_is_no_json_object(self, v3, copy_of, content):
        made = copy_of(v3)
        (made.root / "meta/info.json").write_text(content)
        with pytest.raises(DatasetError, match=r"info\.json: expected a JSON"):
            open_dataset(made.root)

    @pytest.mark.parametrize("path", ["/etc/{video_key}/{chunk_index}/{file_index}", "../{video_key}/{file_index}.mp4"])
    def test_paths_that_leave_the_dataset(self, v3, copy_of, path):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", video_path=path)
        with pytest.raises(DatasetError, match="'video_path' to be a path inside the dataset"):
            open_dataset(made.root)

    @pytest.mark.parametrize("path", ["{episode_index}.mp4", "{", "{chunk_index:q}", "{0}", "{chunk_index.x}"])
    def test_templates_of_another_version(self, v3, copy_of, path):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", video_path=path)
        with pytest.raises(DatasetError, match=r"'video_path' to be a template of \{chunk_index\} \{file_index\}"):
            open_dataset(made.root)

    def test_data_path_that_leaves_the_dataset(self, v3, copy_of):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", data_path="data/../../{file_index}")
        with pytest.raises(DatasetError, match="'data_path' to be a path inside the dataset"):
            open_dataset(made.root).read_columns(0, ["action"])

    def test_no_episode_list(self, v3, copy_of):
        made = copy_of(v3)
        shutil.rmtree(made.root / "meta/episodes")
        with pytest.raises(DatasetError, match="meta/episodes: expected Parquet files that list episodes"):
            open_dataset(made.root)

    def test_a_broken_episode_list(self, v3, copy_of):
        made = copy_of(v3)
        (made.root / EPISODES).write_bytes(b"no")
        with pytest.raises(DatasetError, match=r"file-000\.parquet: expected a Parquet file"):
            open_dataset(made.root)

    def test_an_episode_list_without_a_column(self, v3, copy_of):
        made = copy_of(v3)
        pq.write_table(pq.read_table(made.root / EPISODES).drop_columns("length"), made.root / EPISODES)
        with pytest.raises(DatasetError, match=r"file-000\.parquet: expected columns .*found no length"):
            open_dataset(made.root)

    def test_an_episode_listed_twice(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, episode_index=[0, 1, 1])
        with pytest.raises(DatasetError, match="each episode_index once"):
            open_dataset(made.root)

    def test_columns_of_other_types_in_another_file(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, length=["a", "b", "c"])
        with pytest.raises(DatasetError, match="files with the same columns"):
            open_dataset(made.root)

    def test_gaps_and_disorder_in_the_list_are_fine(self, v3, copy_of):
        made = copy_of(v3)
        table = pq.read_table(made.root / EPISODES)
        pq.write_table(table.take([2, 0]), made.root / EPISODES)
        dataset = open_dataset(made.root)
        assert list(dataset.episode_indexes()) == [0, 2, 3, 4]
        assert read_ids(dataset.read_frames(2, WRIST, [1, 5])) == made.ids(2, WRIST, [1, 5])
        assert dataset.warnings == (
            f"{made.root}/meta/info.json says total_episodes 5, its episode list has 4; the list is believed",
        )
        with pytest.raises(DatasetError, match="episode 1 is not there"):
            dataset.episode(1)

    def test_cameras_without_files_or_columns_are_left_out_with_a_warning(self, v3, copy_of):
        made = copy_of(v3)
        shutil.rmtree(made.root / f"videos/{WRIST}")
        info = json.loads((made.root / "meta/info.json").read_text())
        info["features"] |= {"cam.extra": {"dtype": "video"}, "cam.picture": {"dtype": "image"}}
        edit_json(made.root / "meta/info.json", **info)
        dataset = open_dataset(made.root)
        assert dataset.cameras == (FRONT,)
        warnings = "\n".join(dataset.warnings)
        assert f"camera {WRIST!r}, which has no files" in warnings
        assert "camera 'cam.extra', which has no files" in warnings
        assert "'cam.picture' as images inside Parquet" in warnings
        with pytest.raises(DatasetError, match=f"camera {WRIST!r} is not known"):
            dataset.read_frames(0, WRIST, [0])

    def test_no_videos_at_all(self, v3, copy_of):
        made = copy_of(v3)
        shutil.rmtree(made.root / "videos")
        with pytest.raises(DatasetError, match="expected a camera with video files, found 2 declared"):
            open_dataset(made.root)

    def test_no_camera_declared(self, v3, copy_of):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", features={"action": {"dtype": "float32", "shape": [2]}})
        with pytest.raises(DatasetError, match="no feature of dtype 'video'"):
            open_dataset(made.root)


def test_a_hundred_thousand_episodes_open_without_reading_statistics(v3, copy_of):
    made, count = copy_of(v3), 100_000
    columns = {
        "episode_index": np.arange(count),
        "tasks": pa.array([["pick it up"]] * count),
        "length": np.full(count, 300) + np.arange(count) % 7,
        "data/chunk_index": np.zeros(count, np.int64),
        "data/file_index": np.zeros(count, np.int64),
        "stats/action/mean": pa.array(np.zeros(count)),
    }
    for camera in made.cameras:
        for field, value in (("chunk_index", 0), ("file_index", 0), ("from_timestamp", 0.0), ("to_timestamp", 20.0)):
            columns[f"videos/{camera}/{field}"] = np.full(count, value)
    shutil.rmtree(made.root / "meta/episodes")
    (made.root / "meta/episodes/chunk-000").mkdir(parents=True)
    for file in range(10):
        part = pa.table(columns).slice(file * 10_000, 10_000)
        pq.write_table(part, made.root / f"meta/episodes/chunk-000/file-{file:03d}.parquet")
    dataset = open_dataset(made.root)
    assert dataset.num_episodes == count
    assert sum(dataset.episode(i).num_frames for i in dataset.episode_indexes()) == int(columns["length"].sum())
    assert dataset.episode(99_999) == Episode(99_999, 300 + 99_999 % 7, "pick it up")
    assert len(pickle.dumps(dataset)) < 20_000_000

"""LeRobot v2.x: a file per episode, JSON lines, and metadata that promises more than there is."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_factory import cut, edit_json, make_v2, read_ids, state

from pipeline.datasets import Episode, open_dataset
from pipeline.errors import DatasetError, EpisodeError, VideoError

FRONT = "observation.images.front"


def test_what_it_says_about_itself(v2):
    dataset = open_dataset(v2.root, "lerobot")
    assert (dataset.format, dataset.fps, dataset.cameras) == ("lerobot_v2", 20.0, (FRONT,))
    assert list(dataset.episode_indexes()) == [0, 1, 2]
    assert dataset.num_episodes == 3
    assert dataset.episode(2) == Episode(2, 40, "task of 2")
    assert len(dataset.warnings) == 1
    assert "camera 'observation.images.phantom', which has no files" in dataset.warnings[0]


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_both_versions_read_the_same(tmp_path, version):
    made = make_v2(tmp_path / "dataset", [5], version=version)
    assert read_ids(open_dataset(made.root).read_frames(0, FRONT, range(5))) == [0, 1, 2, 3, 4]


def test_random_windows_give_exactly_their_frames(v2):
    dataset, rng = open_dataset(v2.root), np.random.default_rng(0)
    for _ in range(40):
        episode = int(rng.integers(3))
        start, stride = int(rng.integers(v2.lengths[episode])), int(rng.integers(1, 4))
        window = range(start, min(start + 9 * stride, v2.lengths[episode]), stride)
        assert read_ids(dataset.read_frames(episode, FRONT, window)) == v2.ids(episode, FRONT, window)


def test_recorded_columns_and_timestamps(v2):
    dataset = open_dataset(v2.root)
    columns = dataset.read_columns(2, ["action", "nothing"])
    np.testing.assert_array_equal(columns["action"], state(v2.ids(2, FRONT, range(40)), 2).astype(np.float64))
    np.testing.assert_allclose(dataset.timestamps(2, [0, 5]), [0, 0.25], atol=1e-6)


def test_paths_use_the_chunk_of_the_episode(v2):
    path = open_dataset(v2.root).video_path(2, FRONT)
    assert path == v2.root / f"videos/chunk-001/{FRONT}/episode_000002.mp4"


def test_identity_holds_no_span(v2):
    video = open_dataset(v2.root).episode_identity(1, [FRONT])["videos"][FRONT]
    assert set(video) == {"path", "size", "digest"}


def test_a_missing_or_cut_episode_leaves_the_others(v2, copy_of):
    made = copy_of(v2)
    dataset = open_dataset(made.root)
    dataset.video_path(0, FRONT).unlink()
    cut(dataset.video_path(2, FRONT), 0.6)
    again = open_dataset(made.root)
    assert again.cameras == (FRONT,)
    with pytest.raises(VideoError, match=r"episode 0, .*episode_000000\.mp4: expected a video file, found nothing"):
        again.read_frames(0, FRONT, [0])
    with pytest.raises(VideoError, match=r"episode 2, .*episode_000002\.mp4: expected 40 frames"):
        again.read_frames(2, FRONT, range(40))
    assert read_ids(again.read_frames(1, FRONT, [20])) == made.ids(1, FRONT, [20])


def test_metadata_longer_than_the_video(v2, copy_of):
    made = copy_of(v2)
    _write_episodes(made.root, [{"episode_index": 1, "tasks": ["a"], "length": 25}])
    with pytest.raises(VideoError, match=r"expected 10 frames .* found 6"):
        open_dataset(made.root).read_frames(1, FRONT, range(15, 25))
    with pytest.raises(EpisodeError, match="expected 25 rows of episode 1, found 21"):
        open_dataset(made.root).timestamps(1, [0])


def test_recordings_without_an_episode_column(v2, copy_of):
    made = copy_of(v2)
    path = made.root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["episode_index", "frame_index"]), path)
    assert open_dataset(made.root).read_columns(1, ["action"])["action"].shape == (21, 2)


def test_a_length_of_zero_is_a_problem_of_that_episode(v2, copy_of):
    made = copy_of(v2)
    _write_episodes(made.root, [{"episode_index": 0, "length": 0}, {"episode_index": 1, "length": 21}])
    dataset = open_dataset(made.root)
    assert "episodes.jsonl:1 says its length is 0" in dataset.episode(0).problem
    assert dataset.episode(1) == Episode(1, 21, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{broken", "expected one JSON object"),
        ("[1]", "expected a JSON object, found list"),
        ('{"length": 3}', "expected 'episode_index' to be an integer"),
        ('{"episode_index": -1, "length": 3}', "expected 'episode_index' to be an integer"),
        ('{"episode_index": 9, "length": "3"}', "expected 'length' to be an integer"),
        ('{"episode_index": 9, "length": true}', "expected 'length' to be an integer"),
        ('{"episode_index": 9, "length": 3, "tasks": [4]}', "expected 'tasks' to be a list of texts"),
        ('{"episode_index": 9, "length": 3, "tasks": "pick"}', "expected 'tasks' to be a list of texts"),
        ('{"episode_index": 1, "length": 21}', "expected each episode once"),
    ],
)
def test_a_bad_line_is_named(v2, copy_of, line, expected):
    made = copy_of(v2)
    with (made.root / "meta/episodes.jsonl").open("a") as file:
        file.write("\n" + line + "\n")
    with pytest.raises(DatasetError, match=rf"episodes\.jsonl:5: {re.escape(expected)}"):
        open_dataset(made.root)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_an_episode_list_that_cannot_be_read(v2, copy_of, content):
    made = copy_of(v2)
    path = made.root / "meta/episodes.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"episodes\.jsonl: expected"):
        open_dataset(made.root)


@pytest.mark.parametrize("value", [None, 0, "1000"])
def test_chunks_size_is_needed(v2, copy_of, value):
    made = copy_of(v2)
    edit_json(made.root / "meta/info.json", chunks_size=value)
    with pytest.raises(DatasetError, match=r"info\.json: expected 'chunks_size'"):
        open_dataset(made.root)


def test_paths_that_leave_the_dataset(v2, copy_of):
    made = copy_of(v2)
    edit_json(made.root / "meta/info.json", video_path="../{video_key}.mp4")
    with pytest.raises(DatasetError, match="'video_path' to be a path inside the dataset"):
        open_dataset(made.root)


def test_an_unknown_episode_names_the_range(v2):
    with pytest.raises(DatasetError, match=r"episode 3 is not there.*3 episodes 0\.\.2"):
        open_dataset(v2.root).episode(3)


def _write_episodes(root, lines):
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

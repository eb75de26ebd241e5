"""A folder of plain videos: files are episodes, captions are tasks, and one bad file does not stop the others."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_factory import cut, read_ids, write_video

from pipeline.datasets import Episode, open_dataset
from pipeline.errors import DatasetError, VideoError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    write_video(root / "b.mp4", range(100, 130))
    write_video(root / "a" / "z.mkv", range(200, 220))
    write_video(root / "C.MP4", range(300, 310))
    write_video(root / ".hidden" / "x.mp4", range(3))
    (root / "notes.txt").write_text("not a video")
    return root


def caption(root: Path, *lines: dict | str) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "captions.jsonl").write_text("\n".join(texts) + "\n")


def test_files_in_order_of_their_paths(folder):
    dataset = open_dataset(folder)
    assert (dataset.format, dataset.fps, dataset.cameras) == ("videos", 15.0, ("video",))
    assert [dataset.video_path(i, "video").name for i in dataset.episode_indexes()] == ["C.MP4", "z.mkv", "b.mp4"]
    assert [dataset.episode(i).num_frames for i in dataset.episode_indexes()] == [10, 20, 30]
    assert (dataset.features, dataset.warnings, dataset.num_episodes) == ({}, (), 3)


def test_exactly_the_frames_asked_for(folder):
    dataset = pickle.loads(pickle.dumps(open_dataset(folder, "videos")))
    for episode, first_id in enumerate((300, 200, 100)):
        indexes = [0, 3, 4, 9]
        assert read_ids(dataset.read_frames(episode, "video", indexes)) == [first_id + i for i in indexes]
        count = dataset.episode(episode).num_frames
        assert read_ids(dataset.read_frames(episode, "video", range(count))) == list(range(first_id, first_id + count))


def test_nothing_was_recorded_beside_the_pictures(folder):
    dataset = open_dataset(folder)
    assert dataset.read_columns(0, ["action"]) == {}
    np.testing.assert_array_equal(dataset.timestamps(0, [0, 3]), [0, 0.2])


def test_captions_are_tasks_and_orphans_are_warned_about(folder):
    caption(folder, {"file_name": "a/z.mkv", "text": "Öffne die Tür"}, "", {"file_name": "gone.mp4", "text": "x"})
    dataset = open_dataset(folder)
    assert [dataset.episode(i).task for i in range(3)] == ["", "Öffne die Tür", ""]
    assert dataset.warnings == (f"{folder / 'captions.jsonl'} has a caption for 'gone.mp4', which is not there",)


def test_a_caption_changes_the_identity(folder):
    before = open_dataset(folder).episode_identity(1, ["video"])
    assert before["data"] is None
    assert before["videos"]["video"]["path"] == "a/z.mkv"
    caption(folder, {"file_name": "a/z.mkv", "text": "open it"})
    assert open_dataset(folder).episode_identity(1, ["video"]) == before | {"task": "open it"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "expected one JSON object"),
        ('"text"', "expected a JSON object, found str"),
        ({"text": "x"}, "expected 'file_name' to be a text, found None"),
        ({"file_name": "b.mp4", "text": 4}, "expected 'text' to be a text, found 4"),
        ({"file_name": "./C.MP4", "text": "again"}, "expected one caption per file, found another for 'C.MP4'"),
    ],
)
def test_a_bad_caption_names_its_line(folder, line, expected):
    caption(folder, {"file_name": "C.MP4", "text": "x"}, line)
    with pytest.raises(DatasetError, match=rf"captions\.jsonl:2: {expected}"):
        open_dataset(folder)


def test_an_unreadable_file_is_an_episode_with_a_problem(folder):
    (folder / "b.mp4").write_bytes(b"nothing")
    dataset = open_dataset(folder)
    episode = dataset.episode(2)
    assert episode == Episode(2, 0, "", episode.problem)
    assert str(folder / "b.mp4") in episode.problem
    with pytest.raises(VideoError, match=r"b\.mp4"):
        dataset.read_frames(2, "video", [0])
    assert read_ids(dataset.read_frames(0, "video", [1])) == [301]
    assert dataset.episode_identity(2, ["video"])["videos"]["video"]["size"] == 7


def test_a_cut_file_fails_when_its_frames_are_read(folder):
    cut(folder / "b.mp4", 0.6)
    dataset = open_dataset(folder)
    assert dataset.episode(2).num_frames == 30
    with pytest.raises(VideoError, match=r"episode 2, .*b\.mp4: expected 30 frames"):
        dataset.read_frames(2, "video", range(30))


def test_a_file_that_vanishes(folder):
    dataset = open_dataset(folder)
    (folder / "b.mp4").unlink()
    assert dataset.episode_identity(2, ["video"])["videos"]["video"] == {"path": "b.mp4", "missing": True}
    with pytest.raises(VideoError, match=r"b\.mp4"):
        dataset.read_frames(2, "video", [0])


def test_one_frame_rate_for_all(folder):
    write_video(folder / "fast.mp4", range(5), fps=30)
    with pytest.raises(
        DatasetError, match=r"15 fps in 3 \(C\.MP4, a/z\.mkv, b\.mp4\), 30 fps in 1 \(fast\.mp4\).*folder"
    ):
        open_dataset(folder)


def test_no_readable_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"at least one readable video, found 1 .*a\.mp4"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_unknown_episode_names_the_range(folder, index):
    dataset = open_dataset(folder)
    for call in (dataset.episode, lambda i: dataset.timestamps(i, [0]), lambda i: dataset.read_columns(i, [])):
        with pytest.raises(DatasetError, match=rf"episode {index} is not there.*3 episodes 0\.\.2"):
            call(index)


def test_there_is_one_camera(folder):
    with pytest.raises(DatasetError, match="camera 'front' is not known; expected one of video"):
        open_dataset(folder).read_frames(0, "front", [0])

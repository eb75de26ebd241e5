"""The real recordings beside the project, frame by frame against a second decoder (decord2)."""

from __future__ import annotations

from pathlib import Path

import decord
import numpy as np
import pytest

from pipeline.datasets import RobotVideoDataset, open_dataset

DROID_CAMERAS = tuple(f"observation.images.{name}" for name in ("exterior_1_left", "exterior_2_left", "wrist_left"))
DROID_TASKS = [
    "",
    "Put the blue block in the green bowl",
    "Move the bottom right tip of the duvet to the left",
    "Pick up the longer upright white container from the table and put it in the orange plastic bag",
    "",
    "",
    "",
]
DROID_LENGTHS = [56, 89, 137, 80, 124, 62, 39]


@pytest.fixture(scope="module")
def droid(shared_data: Path) -> RobotVideoDataset:
    return open_dataset(shared_data / "droid_real")


@pytest.fixture(scope="module")
def gr1(shared_data: Path) -> RobotVideoDataset:
    return open_dataset(shared_data / "gr1_v2")


def assert_same_frames(frames: np.ndarray, path: Path, first: int) -> None:
    """Each frame is decord's of the same number; neighbours are farther away, unless nothing moves."""
    reader = decord.VideoReader(str(path))
    last = min(first + len(frames), len(reader) - 1)
    around = reader.get_batch(list(range(max(first - 1, 0), last + 1))).asnumpy().astype(np.int16)
    offset = min(first, 1)
    for k, frame in enumerate(frames.astype(np.int16)):
        same = np.abs(frame - around[k + offset]).mean()
        assert same < 3
        neighbours = [n for n in (k + offset - 1, k + offset + 1) if 0 <= n < len(around)]
        for n in neighbours:
            is_static = np.abs(around[n] - around[k + offset]).mean() < 0.5
            assert is_static or same < np.abs(frame - around[n]).mean()


def test_droid_metadata(droid):
    assert (droid.format, droid.fps, droid.cameras, droid.warnings) == ("lerobot_v3", 5.0, DROID_CAMERAS, ())
    episodes = [droid.episode(i) for i in droid.episode_indexes()]
    assert [episode.task for episode in episodes] == DROID_TASKS
    assert [episode.num_frames for episode in episodes] == DROID_LENGTHS
    assert sum(DROID_LENGTHS) == 587
    assert droid.features["observation.state.cartesian_position"] == 6
    assert droid.features["action.gripper_position"] == 1


@pytest.mark.parametrize("camera", DROID_CAMERAS)
def test_droid_frames_are_decords(droid, camera):
    first = 0
    for episode, length in enumerate(DROID_LENGTHS):
        frames = droid.read_frames(episode, camera, range(length))
        assert frames.shape == (length, 192, 320, 3)
        assert_same_frames(frames, droid.video_path(episode, camera), first)
        first += length


def test_droid_windows_are_parts_of_the_whole(droid):
    rng = np.random.default_rng(0)
    for episode, length in enumerate(DROID_LENGTHS):
        whole = droid.read_frames(episode, DROID_CAMERAS[2], range(length))
        start = int(rng.integers(length - 17))
        window = droid.read_frames(episode, DROID_CAMERAS[2], range(start, start + 17))
        np.testing.assert_array_equal(window, whole[start : start + 17])


def test_droid_recordings(droid):
    keys = ["observation.state.cartesian_position", "observation.state.gripper_position", "not.recorded"]
    for episode, length in enumerate(DROID_LENGTHS):
        columns = droid.read_columns(episode, keys)
        assert {key: values.shape for key, values in columns.items()} == {keys[0]: (length, 6), keys[1]: (length, 1)}
        assert np.abs(columns[keys[0]][:, :3]).max() < 1.5  # metres
        np.testing.assert_allclose(droid.timestamps(episode, range(length)), np.arange(length) / 5, atol=1e-5)


def test_gr1_metadata_is_taken_for_what_it_is(gr1):
    assert (gr1.format, gr1.fps, gr1.cameras) == ("lerobot_v2", 20.0, ("observation.images.ego_view",))
    assert len(gr1.warnings) == 1
    assert "'observation.images.egoview', which has no files" in gr1.warnings[0]
    assert gr1.episode(0).task == "pick the pear from the counter and place it in the plate"
    assert [gr1.episode(i).num_frames for i in gr1.episode_indexes()] == [416, 470, 470, 412, 328]
    assert gr1.read_columns(3, ["action", "observation.state"])["action"].shape == (412, 44)
    assert gr1.timestamps(3, [0])[0] == pytest.approx(0.05, abs=1e-4)  # recorded so: its clock starts one frame late


@pytest.mark.parametrize("episode", range(5))
def test_gr1_frames_are_decords(gr1, episode):
    camera = gr1.cameras[0]
    count = gr1.episode(episode).num_frames
    for start in (0, 101, count - 40):
        frames = gr1.read_frames(episode, camera, range(start, start + 40))
        assert_same_frames(frames, gr1.video_path(episode, camera), start)


def test_droid_as_plain_videos(shared_data):
    dataset = open_dataset(shared_data / "droid_videos")
    assert (dataset.format, dataset.fps, dataset.warnings) == ("videos", 5.0, ())
    episodes = [dataset.episode(i) for i in dataset.episode_indexes()]
    assert [(episode.num_frames, episode.task) for episode in episodes] == list(
        zip(DROID_LENGTHS, DROID_TASKS, strict=True)
    )
    for index, length in enumerate(DROID_LENGTHS):
        frames = dataset.read_frames(index, "video", range(length - 20, length))
        assert_same_frames(frames, dataset.video_path(index, "video"), length - 20)

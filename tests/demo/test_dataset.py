"""The demo's dataset is a real one: LeRobot's own reader opens it, and its actions are what its arm did."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from pipeline.actions import geodesic_angle, integrate_actions, poses_from_xyz_euler, rot6d_to_matrix
from pipeline.demo.dataset import DEMO_CAMERA_KEYS, play_episodes, render_frame, true_actions, write_demo_dataset
from pipeline.embodiments import get_embodiment
from pipeline.errors import DatasetError

pytestmark = pytest.mark.slow

LENGTHS = [41, 33, 50, 17, 9]


@pytest.fixture(scope="module")
def no_network():
    def refuse(*_):
        raise AssertionError("the demo must not use the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, no_network) -> Path:
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "tabletop", seed=3)


@pytest.fixture(scope="module")
def dataset(root):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("demo/tabletop", root=root, video_backend="pyav")


@pytest.fixture(scope="module")
def episodes(dataset) -> list[dict[str, np.ndarray]]:
    """The columns of each episode, as LeRobot reads them."""
    rows = dataset.hf_dataset.with_format("numpy")[:]
    return [{key: column[rows["episode_index"] == i] for key, column in rows.items()} for i in range(len(LENGTHS))]


def test_lerobot_reads_what_was_promised(dataset):
    assert dataset.fps == 15
    assert list(dataset.meta.episodes["length"]) == LENGTHS
    assert [tasks[0] for tasks in dataset.meta.episodes["tasks"]] == [episode.task for episode in play_episodes(3)]
    assert len(set(dataset.meta.tasks.index)) >= 3
    assert all(dataset.meta.features[key]["shape"] == (96, 160, 3) for key in DEMO_CAMERA_KEYS)
    assert set(dataset.meta.video_keys) == set(DEMO_CAMERA_KEYS)


def test_actions_integrate_to_the_recorded_poses(episodes):
    frame_rotation = get_embodiment("droid_lerobot").frame_rotation
    for episode in episodes:
        poses = poses_from_xyz_euler(episode["observation.state.cartesian_position"], frame_rotation)
        np.testing.assert_allclose(integrate_actions(poses[0], episode["action"][:-1]), poses, atol=2e-6)


def test_the_last_action_stands_still_and_the_gripper_is_one_when_open(episodes):
    for episode in episodes:
        np.testing.assert_allclose(episode["action"][-1, :9], [0, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-7)
        np.testing.assert_allclose(episode["action"][:, 9], 1 - episode["action.gripper_position"].reshape(-1))
    assert {episode["action"][:, 9].max() for episode in episodes} >= {0.0, 1.0}


def test_motion_is_as_slow_as_a_real_arm(episodes):
    """DROID's q01..q99 end at about 14 mm and 2.7 degrees per frame and axis."""
    actions = np.concatenate([episode["action"] for episode in episodes])
    angles_deg = np.rad2deg(geodesic_angle(rot6d_to_matrix(actions[:, 3:9]), np.eye(3)))
    steps_mm = 1e3 * np.linalg.norm(actions[:, :3], axis=1)
    assert 3 < steps_mm.mean() < 10
    assert steps_mm.max() < 20
    assert 0.1 < angles_deg.mean() < 2
    assert angles_deg.max() < 3.5


@pytest.mark.parametrize("camera_key", DEMO_CAMERA_KEYS)
def test_every_camera_sees_motion(dataset, camera_key):
    first = 0
    for length in LENGTHS:
        start, end = (dataset[index][camera_key].numpy() for index in (first, first + length - 1))
        assert start.shape == (3, 96, 160)
        assert (np.abs(start - end).max(axis=0) > 0.15).mean() > 0.01
        first += length


def test_frames_are_at_the_promised_place(dataset):
    """A frame that was dropped or shifted on its way into the shared file would look like its neighbour."""
    index_of_frame_44, recording = sum(LENGTHS[:2]) + 44, play_episodes(3)[2]
    for camera_key in DEMO_CAMERA_KEYS:
        read = dataset[index_of_frame_44][camera_key].numpy().transpose(1, 2, 0) * 255
        errors = [np.abs(read - render_frame(recording, index)[camera_key]).mean() for index in range(38, 50)]
        assert np.argmin(errors) + 38 == 44


def test_the_seed_decides_everything(episodes):
    for episode, again, other in zip(episodes, play_episodes(3), play_episodes(4), strict=True):
        np.testing.assert_array_equal(episode["observation.state.cartesian_position"], again.xyz_euler)
        np.testing.assert_array_equal(episode["action"], true_actions(again))
        assert not np.array_equal(again.xyz_euler, other.xyz_euler)


def test_a_finished_demo_is_not_written_again(root):
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    assert write_demo_dataset(root, seed=3) == root
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before
    assert list(root.parent.iterdir()) == [root]  # no half-written folder is left beside it


def test_a_folder_with_something_else_is_refused(root, tmp_path):
    with pytest.raises(DatasetError, match="'seed': 5"):
        write_demo_dataset(root, seed=5)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DatasetError, match="something else"):
        write_demo_dataset(tmp_path)

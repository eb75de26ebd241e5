"""The demo's dataset is a real one: LeRobot's own reader opens it, and its actions are what its arm did."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from pipeline.actions import geodesic_angle, integrate_actions, poses_from_xyz_euler, rot6d_to_matrix
from pipeline.demo.choreography import true_actions
from pipeline.demo.dataset import render_frames, write_demo_dataset, write_world_dataset
from pipeline.demo.objects import HELD_OUT
from pipeline.demo.scripted import play_demo
from pipeline.demo.tabletop import DEMO_CAMERA_KEYS
from pipeline.demo.world import play_world
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
    assert [tasks[0] for tasks in dataset.meta.episodes["tasks"]] == [episode.task for episode in play_demo(3)]
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


def test_motion_is_as_slow_as_a_real_arm_but_for_its_turns(episodes):
    """DROID's q01..q99 end at about 14 mm and 2.7 degrees per frame and axis; the approach axis turns faster here."""
    actions = np.concatenate([episode["action"] for episode in episodes])
    angles_deg = np.rad2deg(geodesic_angle(rot6d_to_matrix(actions[:, 3:9]), np.eye(3)))
    steps_mm = 1e3 * np.linalg.norm(actions[:, :3], axis=1)
    assert 3 < steps_mm.mean() < 10
    assert steps_mm.max() < 20
    tilts_deg = np.rad2deg(np.arccos(rot6d_to_matrix(actions[:, 3:9])[:, 2, 2].clip(-1, 1)))
    assert 0.1 < angles_deg.mean() < 3
    assert tilts_deg.max() < 3.5


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
    index_of_frame_44, recording = sum(LENGTHS[:2]) + 44, play_demo(3)[2]
    drawn = render_frames(recording, range(38, 50))
    for camera_key in DEMO_CAMERA_KEYS:
        read = dataset[index_of_frame_44][camera_key].numpy().transpose(1, 2, 0) * 255
        errors = [np.abs(read - views[camera_key]).mean() for views in drawn]
        assert np.argmin(errors) + 38 == 44


def test_the_seed_decides_everything(episodes):
    for episode, again, other in zip(episodes, play_demo(3), play_demo(4), strict=True):
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


def test_a_drawn_world_is_a_dataset_too_and_tells_where_things_are(tmp_path, no_network):
    from pipeline.datasets import open_dataset
    from pipeline.evaluation.scenes import read_scenes

    root = write_world_dataset(tmp_path / "world", seed=2, num_episodes=2, held_out=True)
    dataset, played = open_dataset(root), play_world(2, 2, held_out=True)
    scenes = read_scenes(root / "scenes.json")
    for index, recording in enumerate(played):
        assert dataset.episode(index).task == recording.task
        assert dataset.episode(index).num_frames == recording.num_frames
        assert scenes.by_episode[index].target == recording.target
        for name, position_m in scenes.by_episode[index].objects_m.items():
            np.testing.assert_allclose(position_m, recording.object_poses[name][0, :3, 3], atol=1e-6)
    with pytest.raises(DatasetError, match="'held_out': False"):
        write_world_dataset(root, seed=2, num_episodes=2)


def test_many_episodes_drawn_ahead_are_the_same_frames(tmp_path, no_network, monkeypatch):
    """Another process draws them; what is written has to be in order."""
    monkeypatch.setattr("pipeline.demo.dataset._MANY_EPISODES", 2)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = write_world_dataset(tmp_path / "world", seed=5, num_episodes=3)
    dataset = LeRobotDataset("demo/tabletop", root=root, video_backend="pyav")
    first = 0
    for recording in play_world(5, 3):
        (drawn,) = render_frames(recording, [3])
        for camera_key in DEMO_CAMERA_KEYS:
            read = dataset[first + 3][camera_key].numpy().transpose(1, 2, 0) * 255
            assert np.abs(read - drawn[camera_key]).mean() < 6
        first += recording.num_frames


def test_no_other_episode_shows_what_is_held_out():
    for recording in play_world(0, 60):
        assert HELD_OUT.isdisjoint(recording.object_poses)
    for recording in play_world(0, 30, held_out=True):
        assert recording.target in HELD_OUT
        assert len(HELD_OUT & recording.object_poses.keys()) == 1

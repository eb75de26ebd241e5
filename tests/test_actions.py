"""Normalisation and pose geometry: closed forms, cosmos-framework's numbers, round trips, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from pipeline.actions import (
    NORMALIZATIONS,
    Normalizer,
    geodesic_angle,
    integrate_actions,
    load_normalizer,
    matrix_to_rot6d,
    poses_from_xyz_euler,
    recorded_actions,
    relative_actions,
    rot6d_orthonormality_error,
    rot6d_to_matrix,
    xyz_euler_from_poses,
)
from pipeline.embodiments import EMBODIMENTS
from pipeline.errors import ActionStatsError, ConfigError, DatasetError, ResultError

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
DROID_D = EMBODIMENTS["droid_lerobot"].frame_rotation

# Two DROID states and what lies between them, from the reference's section 2.6.
GOLDEN_STATES = np.array([[0.40, 0, 0.30, 3.10, -0.05, 0.20], [0.405, 0.003, 0.296, 3.11, -0.04, 0.215]])
GOLDEN_RAW = [-0.002123, -0.00529, 0.004185, 0.999825, -0.015289, 0.010746, 0.01539, 0.999838, -0.009362, 0.75]
GOLDEN_NORM = [-0.15882, -0.34814, 0.30465, 0.77335, -0.32036, 0.31118, 0.32263, 0.79355, -0.29634, 0.5]


def shared(relative: str) -> Path:
    path = SHARED_DATA / relative
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


def random_rotations(num: int, seed: int = 0) -> np.ndarray:
    return Rotation.random(num, rng=np.random.default_rng(seed)).as_matrix()


def golden_actions(frame_rotation=DROID_D) -> np.ndarray:
    gripper = np.array([0.25, 0.9])
    return recorded_actions(GOLDEN_STATES, gripper, frame_rotation=frame_rotation, inverts_gripper=True)


def write_stats(tmp_path: Path, stats: object) -> Path:
    path = tmp_path / "stats.json"
    path.write_text(stats if isinstance(stats, str) else json.dumps(stats))
    return path


FLAT = {"q01": [-1.0, 0.0], "q99": [3.0, 1.0], "min": [-2, 0], "max": [2, 4], "mean": [1, 2], "std": [0.5, 0]}


# --- normalisation ---


def test_golden_droid_action_normalised():
    normalizer = load_normalizer("quantile", shared("stats/droid_lerobot_stats.json"), 10)
    normalized = normalizer.normalize(golden_actions())
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized[0], GOLDEN_NORM, atol=1e-5)


def test_golden_droid_offset_and_scale():
    normalizer = load_normalizer("quantile", shared("stats/droid_lerobot_stats.json"), 10)
    np.testing.assert_allclose(normalizer.offset[:4], [0.0001575, -0.0009495, -0.000343, 0.9992295], atol=1e-12)
    np.testing.assert_allclose(normalizer.scale[:4], [0.0143575, 0.0124665, 0.014863, 0.0007705], atol=1e-12)


@pytest.mark.parametrize(
    ("method", "offset", "scale"),
    [
        ("quantile", [1.0, 0.5], [2.0, 0.5]),
        ("quantile_rot", [1.0, 0.5], [2.0, 0.5]),  # a flat file serves both
        ("minmax", [0.0, 2.0], [2.0, 2.0]),
        ("meanstd", [1.0, 2.0], [0.5, 1e-8]),  # a column that never moves
    ],
)
def test_offset_and_scale_of_a_flat_file(tmp_path, method, offset, scale):
    normalizer = load_normalizer(method, write_stats(tmp_path, FLAT), 2)
    np.testing.assert_array_equal(normalizer.offset, offset)
    np.testing.assert_array_equal(normalizer.scale, scale)
    assert normalizer.to_json() == {"method": method, "offset": offset, "scale": scale}


def test_range_of_zero_is_floored(tmp_path):
    normalizer = load_normalizer("minmax", write_stats(tmp_path, {"min": [2.0], "max": [2.0]}), 1)
    assert normalizer.scale == [0.5e-8]
    assert normalizer.normalize([[2.0]]) == 0


def test_nested_file_gives_each_method_its_block(tmp_path):
    stats = {"metadata": {}, "global": FLAT, "global_raw": {"q01": [0, 0], "q99": [2, 4]}}
    path = write_stats(tmp_path, stats)
    np.testing.assert_array_equal(load_normalizer("quantile", path, 2).offset, [1.0, 0.5])
    np.testing.assert_array_equal(load_normalizer("quantile_rot", path, 2).offset, [1.0, 2.0])


def test_shipped_nested_file():
    path = shared("stats/libero_native_frame_wise_relative_rot6d.json")
    assert load_normalizer("quantile", path, 10).scale[3] == 1.0  # rotations are left as they are
    assert load_normalizer("quantile_rot", path, 10).scale[3] == pytest.approx((1 - 0.934955) / 2)
    assert load_normalizer("meanstd", path, 10).offset[9] == pytest.approx(0.476725)


@pytest.mark.parametrize("method", NORMALIZATIONS)
def test_denormalise_undoes_normalise(tmp_path, method):
    normalizer = load_normalizer(method, write_stats(tmp_path, {**FLAT, "std": [0.5, 2]}), 2)
    action = np.array([[[-0.5, 0.25], [1.5, 0.75]]], dtype=np.float32)
    back = normalizer.denormalize(normalizer.normalize(action))
    assert back.shape == action.shape
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, action, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "clamp", "expected"),
    [
        ("minmax", None, [1.0, -1.0]),
        ("minmax", False, [3.0, -2.0]),
        ("meanstd", None, [10.0, -2.0]),
        ("meanstd", True, [1.0, -1.0]),
        ("none", None, [6.0, -2.0]),
    ],
)
def test_clamping(tmp_path, method, clamp, expected):
    normalizer = load_normalizer(method, write_stats(tmp_path, {**FLAT, "std": [0.5, 2]}), 2)
    action = np.array([6.0, -2.0])
    np.testing.assert_allclose(normalizer.normalize(action, clamp=clamp), expected)
    np.testing.assert_array_equal(action, [6.0, -2.0])  # the caller's array stays as it was


def test_share_clamped(tmp_path):
    path = write_stats(tmp_path, FLAT)
    action = [[-1.0, 0.0], [3.0, 1.0], [3.1, 0.5], [1.0, -0.1]]  # two values on the bounds, two beyond
    assert load_normalizer("quantile", path, 2).share_clamped(action) == 0.25
    assert load_normalizer("quantile", path, 2).share_clamped(np.zeros((0, 2))) == 0.0
    assert load_normalizer("meanstd", path, 2).share_clamped(action) == 0.0
    assert load_normalizer("none", None, 2).share_clamped(action) == 0.0


def test_identity_motion_is_not_counted_as_clamped():
    """R00 = 1 is DROID's q99 itself: rounding in (1 - offset) / scale must not push it over the bound."""
    normalizer = load_normalizer("quantile", shared("stats/droid_lerobot_stats.json"), 10)
    assert normalizer.share_clamped([0, 0, 0, 1, 0, 0, 0, 1, 0, 0]) == 0.0


def test_none_is_the_identity_and_reads_no_file():
    normalizer = load_normalizer("none", "/nowhere.json", 3)
    np.testing.assert_array_equal(normalizer.normalize([[5.0, -6.0, 7.0]]), [[5.0, -6.0, 7.0]])


def test_actions_of_another_width():
    normalizer = Normalizer("none", np.zeros(10), np.ones(10))
    for function in (normalizer.normalize, normalizer.denormalize, normalizer.share_clamped):
        with pytest.raises(ActionStatsError, match=r"10 columns, the actions have shape \(4, 8\)"):
            function(np.zeros((4, 8)))
    with pytest.raises(ActionStatsError, match=r"shape \(\)"):
        normalizer.normalize(1.0)


def test_unknown_method():
    with pytest.raises(ConfigError, match=r"'quantil'\. Did you mean 'quantile'\? Known: meanstd, .*none"):
        load_normalizer("quantil", None, 10)


def test_statistics_that_are_not_given():
    with pytest.raises(ActionStatsError, match=r"'quantile' needs statistics.*action_stats_path"):
        load_normalizer("quantile", None, 10)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ActionStatsError, match=r"absent\.json: cannot read .*action_stats_path"):
        load_normalizer("quantile", tmp_path / "absent.json", 10)
    with pytest.raises(ActionStatsError, match="cannot read"):
        load_normalizer("quantile", tmp_path, 10)


@pytest.mark.parametrize(
    ("method", "stats", "message"),
    [
        ("quantile", "{'q01'", "must be JSON"),
        ("quantile", [1, 2], "JSON object, found a list"),
        ("minmax", {"q01": [0], "q99": [1]}, "minmax needs the fields min and max, found q01, q99"),
        ("quantile", {"q01": [0]}, "needs the fields q01 and q99, found q01"),
        ("quantile", {}, "found none"),
        ("quantile_rot", {"global": FLAT}, "quantile_rot needs the block 'global_raw', found global"),
        ("quantile", {"global_raw": FLAT}, "quantile needs the block 'global', found global_raw"),
        ("quantile", {"global": [1]}, "needs the block 'global'"),
        ("quantile", {"q01": ["a", "b"], "q99": [1, 1]}, "q01 must be a list of numbers"),
        ("quantile", {"q01": [[0, 0]], "q99": [1, 1]}, "q01 must be one list of numbers, found shape (1, 2)"),
        ("quantile", {"q01": [0, 0], "q99": [1]}, "q99 has 1 columns, the actions have 2"),
        ("quantile", {"q01": [0] * 4, "q99": [1] * 4}, "q01 has 4 columns, the actions have 2"),
        ("quantile", '{"q01": [0, NaN], "q99": [1, 1]}', "q01 is not finite in columns 1"),
        ("quantile", '{"q01": [0, 0], "q99": [1e999, 1]}', "q99 is not finite in columns 0"),
        ("quantile", {"q01": [0, 2], "q99": [1, 1]}, "q99 is below q01 in columns 1"),
        ("minmax", {"min": [5, 6], "max": [1, 1]}, "max is below min in columns 0, 1"),
        ("meanstd", {"mean": [0, 0], "std": [1, -1]}, "std is negative in columns 1"),
    ],
)
def test_statistics_that_cannot_be_used(tmp_path, method, stats, message):
    path = write_stats(tmp_path, stats)
    with pytest.raises(ActionStatsError) as caught:
        load_normalizer(method, path, 2)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_bimanual_umi_statistics_are_not_cut_silently():
    with pytest.raises(ActionStatsError, match=r"20 columns, the actions have 10.*UMI: the first 10"):
        load_normalizer("quantile", shared("stats/umi_lerobot_stats.json"), 10)


# --- rotations ---


def test_rot6d_is_the_first_two_columns():
    matrix = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(matrix_to_rot6d(matrix), [0, 3, 6, 1, 4, 7])


def test_rot6d_round_trip():
    rotations = random_rotations(20).reshape(4, 5, 3, 3)
    np.testing.assert_allclose(rot6d_to_matrix(matrix_to_rot6d(rotations)), rotations, atol=1e-12)


def test_decoding_is_the_svd_projection_and_not_gram_schmidt():
    """Two unit columns at 90 - 2e degrees: the projection turns both by e, Gram-Schmidt only the second by 2e."""
    e = 0.05
    rot6d = np.array([np.cos(e), np.sin(e), 0, np.sin(e), np.cos(e), 0])
    np.testing.assert_allclose(rot6d_to_matrix(rot6d), np.eye(3), atol=1e-12)


def test_decoded_noise_is_a_rotation():
    noise = np.random.default_rng(1).standard_normal((200, 6))
    rotations = rot6d_to_matrix(noise)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.broadcast_to(np.eye(3), (200, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-9)


def test_tiny_columns_do_not_come_out_mirrored():
    """The cross product of columns of length 1e-20 vanishes beside them, and with it the sign that the SVD sees."""
    rotations = random_rotations(50)
    np.testing.assert_allclose(rot6d_to_matrix(1e-20 * matrix_to_rot6d(rotations)), rotations, atol=1e-9)


@pytest.mark.parametrize("rot6d", [[0] * 6, [1, 2, 3, 2, 4, 6], [1, 0, 0, 0, np.nan, 0], [np.inf, 0, 0, 0, 1, 0]])
def test_numbers_that_are_no_rotation(rot6d):
    with pytest.raises(ResultError, match="no rotation: expected two finite columns that are not parallel"):
        rot6d_to_matrix(np.array([[1, 0, 0, 0, 1, 0], rot6d]))


def test_orthonormality_error():
    rot6d = [[1, 0, 0, 0, 1, 0], [1.1, 0, 0, 0, 1, 0], [1, 0, 0, 0.3, 1, 0]]
    np.testing.assert_allclose(rot6d_orthonormality_error(rot6d), [0, 0.21, 0.3], atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, np.pi / 2, np.pi - 1e-6, np.pi])
def test_geodesic_angle(angle):
    start = random_rotations(1)[0]
    axis = np.array([1.0, 2.0, -2.0]) / 3
    end = start @ Rotation.from_rotvec(angle * axis).as_matrix()
    assert geodesic_angle(start, end) == pytest.approx(angle, abs=1e-12)
    assert geodesic_angle(end, start) == pytest.approx(angle, abs=1e-12)


# --- poses and actions ---


def test_euler_angles_are_extrinsic_xyz():
    """Rz @ Ry @ Rx: a turn of 90° about x, then 90° about the fixed z, takes y to z and leaves it there."""
    pose = poses_from_xyz_euler([[1.0, 2.0, 3.0, np.pi / 2, 0.0, np.pi / 2]])[0]
    np.testing.assert_allclose(pose[:3, :3] @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(pose[:, 3], [1, 2, 3, 1])


def test_frame_rotation_turns_the_axes_and_not_the_position():
    pose = poses_from_xyz_euler([[1.0, 2.0, 3.0, 0, 0, 0]], DROID_D)[0]
    np.testing.assert_allclose(pose[:3, :3], DROID_D, atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], [1, 2, 3])


@pytest.mark.parametrize("frame_rotation", [None, DROID_D])
def test_state_round_trip(frame_rotation):
    states = np.random.default_rng(2).uniform(-1.4, 1.4, (50, 6))
    back = xyz_euler_from_poses(poses_from_xyz_euler(states, frame_rotation), frame_rotation)
    np.testing.assert_allclose(back, states, atol=1e-12)


def test_states_of_another_shape():
    with pytest.raises(DatasetError, match=r"\[frames, 6\].*found \(4, 7\)"):
        poses_from_xyz_euler(np.zeros((4, 7)))


def test_golden_droid_action():
    np.testing.assert_allclose(golden_actions()[0], GOLDEN_RAW, atol=1e-6)


def test_golden_droid_action_without_the_frame_rotation():
    np.testing.assert_allclose(golden_actions(None)[0, :3], [0.00529, -0.002123, 0.004185], atol=1e-6)


def test_motion_is_in_the_axes_of_the_frame_it_starts_from():
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", np.pi / 2).as_matrix()
    moved = turned.copy()
    moved[:3, 3] = [0.0, 0.1, 0.0]  # along the turned frame's own x
    action = relative_actions(np.stack([turned, moved]), np.array([0.5]))
    np.testing.assert_allclose(action, [[0.1, 0, 0, 1, 0, 0, 0, 1, 0, 0.5]], atol=1e-12)


def test_gripper_of_each_action_is_the_command_at_its_first_frame():
    actions = recorded_actions(np.zeros((3, 6)), [0.0, 0.25, 1.0], frame_rotation=None, inverts_gripper=False)
    np.testing.assert_array_equal(actions[:, 9], [0.0, 0.25])
    actions = recorded_actions(np.zeros((3, 6)), [0.0, 0.25, 1.0], frame_rotation=DROID_D, inverts_gripper=True)
    np.testing.assert_array_equal(actions[:, 9], [1.0, 0.75])


@pytest.mark.parametrize("gripper", [np.zeros(1), np.zeros(4), np.zeros((3, 1))])
def test_gripper_of_another_length(gripper):
    with pytest.raises(DatasetError, match="3 poses need 2 or 3 gripper values"):
        relative_actions(np.tile(np.eye(4), (3, 1, 1)), gripper)


def test_integration_undoes_differences():
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, :3, :3] = random_rotations(40)
    poses[:, :3, 3] = np.random.default_rng(3).standard_normal((40, 3))
    actions = relative_actions(poses, np.zeros(39))
    np.testing.assert_allclose(integrate_actions(poses[0], actions), poses, atol=1e-10)
    np.testing.assert_allclose(integrate_actions(poses[0], actions[:, :9]), poses, atol=1e-10)


def test_integrated_noise_stays_rigid():
    """A model's six numbers are never exactly orthonormal; over a long episode that must not shear the pose."""
    actions = np.tile([0.01, 0, 0, 1, 0, 0, 0, 1, 0, 1], (500, 1))
    actions[:, 3:9] += 0.02 * np.random.default_rng(4).standard_normal((500, 6))
    rotations = integrate_actions(np.eye(4), actions)[:, :3, :3]
    np.testing.assert_allclose(rot6d_orthonormality_error(matrix_to_rot6d(rotations)), 0, atol=1e-12)


@pytest.mark.parametrize("num_frames", [0, 1])
def test_too_few_frames_for_an_action(num_frames):
    states = np.zeros((num_frames, 6))
    poses = poses_from_xyz_euler(states, DROID_D)
    assert poses.shape == (num_frames, 4, 4)
    assert xyz_euler_from_poses(poses, DROID_D).shape == (num_frames, 6)
    actions = recorded_actions(states, np.zeros(num_frames), frame_rotation=DROID_D, inverts_gripper=True)
    assert actions.shape == (0, 10)
    np.testing.assert_array_equal(integrate_actions(np.eye(4), actions), [np.eye(4)])


def test_recorded_droid_episodes_come_back_from_their_actions():
    path = shared("droid_real/data/chunk-000/file-000.parquet")
    columns = ["episode_index", "observation.state.cartesian_position", "action.gripper_position"]
    episode_index, states, gripper = (np.array(pq.read_table(path)[name].to_pylist()) for name in columns)
    assert len(np.unique(episode_index)) == 7
    for episode in np.unique(episode_index):
        of_episode = episode_index == episode
        actions = recorded_actions(
            states[of_episode], gripper[of_episode], frame_rotation=DROID_D, inverts_gripper=True
        )
        recorded = poses_from_xyz_euler(states[of_episode], DROID_D)
        integrated = integrate_actions(recorded[0], actions)
        assert np.abs(integrated[:, :3, 3] - recorded[:, :3, 3]).max() < 1e-6
        assert geodesic_angle(integrated[:, :3, :3], recorded[:, :3, :3]).max() < 1e-6
        np.testing.assert_allclose(
            xyz_euler_from_poses(integrated, DROID_D)[:, :3], states[of_episode][:, :3], atol=1e-6
        )
        assert 0 <= actions[:, 9].min() <= actions[:, 9].max() <= 1

"""The domain table against the reference's, and the choice of cameras and view point."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.embodiments import (
    EMBODIMENTS,
    VIEW_POINT_SENTENCES,
    Embodiment,
    get_embodiment,
    resolve_cameras,
    resolve_view_point,
)
from pipeline.errors import ConfigError, DatasetError

DROID = EMBODIMENTS["droid_lerobot"]
BRIDGE = EMBODIMENTS["bridge_orig_lerobot"]
LIBERO = EMBODIMENTS["libero"]

# cosmos-framework, action/utils/domain_utils.py
DOMAINS = {
    "no_action": (0, None),
    "av": (1, 9),
    "camera_pose": (2, 9),
    "hand_pose": (3, None),
    "pusht": (4, 2),
    "libero": (5, None),
    "umi": (6, 10),
    "bridge_orig_lerobot": (7, 10),
    "droid_lerobot": (8, 10),
    "robomind-franka": (8, 10),
    "embodiment_b": (9, 30),
    "robomind-franka-dual": (12, 20),
    "robomind-ur": (13, 10),
    "agibotworld": (15, 29),
    "embodiment_c_gripper": (15, 29),
    "embodiment_c_gripper_ext": (15, 29),
    "xdof_yam": (16, 20),
    "molmoact2_yam": (16, 20),
    "abc_yam": (16, 20),
    "robotwin": (17, 14),
    "fractal": (20, 10),
    "drawanything": (21, 3),
    "behavior1k_lerobot": (22, 23),
    "maniparena": (23, 20),
}


def test_table_is_the_references():
    assert {name: (row.domain_id, row.raw_action_dim) for name, row in EMBODIMENTS.items()} == DOMAINS


@pytest.mark.parametrize("row", EMBODIMENTS.values(), ids=lambda row: row.domain_name)
def test_rows_agree_with_themselves(row: Embodiment):
    width = row.raw_action_dim
    assert row.chunk_size % 4 == 0  # the VAE's temporal stride
    assert row.view_point in ("", *VIEW_POINT_SENTENCES)
    assert len(row.cameras) in (0, 1, 3)
    assert bool(row.view_description) == (len(row.cameras) == 3)
    assert len(set(row.action_names)) == len(row.action_names)
    if row.action_names:
        assert len(row.action_names) == width
    rotation_columns = {start + column for start in row.rot6d_starts for column in range(6)}
    assert not rotation_columns & set(row.gripper_columns)
    assert all(column < width for column in rotation_columns | set(row.gripper_columns))


@pytest.mark.parametrize(
    ("name", "rot6d_starts", "gripper_columns"),
    [
        ("droid_lerobot", (3,), (9,)),
        ("av", (3,), ()),
        ("robomind-franka-dual", (3, 13), (9, 19)),
        ("maniparena", (3, 13), (9, 19)),
        ("agibotworld", (3, 12, 22), (18, 28)),
        ("robotwin", (), (6, 13)),
        ("behavior1k_lerobot", (), (21, 22)),
    ],
)
def test_layout(name, rot6d_starts, gripper_columns):
    row = EMBODIMENTS[name]
    assert (row.rot6d_starts, row.gripper_columns) == (rot6d_starts, gripper_columns)


@pytest.mark.parametrize(
    ("name", "fps", "chunk_size", "view_point"),
    [
        ("droid_lerobot", 15, 16, "concat_view"),
        ("bridge_orig_lerobot", 5, 16, "ego_view"),
        ("fractal", 3, 16, "ego_view"),
        ("umi", 10, 16, "wrist_view"),
        ("robomind-franka", 10, 16, "concat_view"),
        ("robomind-ur", 10, 16, "third_person_view"),
        ("agibotworld", 10, 16, "concat_view"),
        ("hand_pose", 15, 16, "ego_view"),
        ("libero", 20, 16, "concat_view"),
        ("av", 10, 60, "ego_view"),
        ("camera_pose", 30, 60, "ego_view"),
        ("robotwin", None, 16, ""),
    ],
)
def test_loader_conventions(name, fps, chunk_size, view_point):
    row = EMBODIMENTS[name]
    assert (row.fps, row.chunk_size, row.view_point) == (fps, chunk_size, view_point)


def test_droid_layout():
    assert DROID.action_names == (
        *("dx_m", "dy_m", "dz_m", "r00", "r10", "r20", "r01", "r11", "r21"),
        "gripper_open",
    )
    assert DROID.frame_rotation == ((0, -1, 0), (1, 0, 0), (0, 0, 1))
    assert DROID.inverts_gripper
    assert DROID.view_description == (
        "The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated "
        "third-person perspective views of the scene from opposite sides, with the robot visible."
    )


def test_names_fall_back_to_numbers_where_the_width_is_another():
    assert DROID.names_for(10) == DROID.action_names
    assert DROID.names_for(3) == ("action_0", "action_1", "action_2")
    assert EMBODIMENTS["hand_pose"].names_for(2) == ("action_0", "action_1")


def test_table_cannot_be_changed():
    with pytest.raises(TypeError):
        EMBODIMENTS["mine"] = DROID


def test_view_point_sentences():
    assert set(VIEW_POINT_SENTENCES) == {
        *("ego_view", "third_person_view", "wrist_view", "concat_view", "top_down_2d_view", "video_game_view"),
    }
    expected = "This video contains concatenated views from multiple camera perspectives."
    assert VIEW_POINT_SENTENCES["concat_view"] == expected


def test_lookup_ignores_case_and_outer_space():
    assert get_embodiment(" DROID_lerobot\n") is DROID


def test_unknown_domain_names_the_closest_and_all():
    with pytest.raises(ConfigError, match=r"'droid_lerobt'\. Did you mean 'droid_lerobot'\? Known: .*umi"):
        get_embodiment("droid_lerobt")


@pytest.mark.parametrize("dialect", range(3))
def test_droid_cameras_of_each_published_dataset(dialect):
    keys = tuple(view[dialect] for view in DROID.cameras)
    assert resolve_cameras(DROID, sorted(keys)) == keys


def test_droid_camera_names_are_the_published_ones():
    available = [
        "observation.image.exterior_image_1_left",
        "observation.image.exterior_image_2_left",
        "observation.image.wrist_image_left",
    ]
    assert resolve_cameras(DROID, available) == (available[2], available[0], available[1])
    available = [
        "observation.images.exterior_1_left",
        "observation.images.exterior_2_left",
        "observation.images.wrist_left",
    ]
    assert resolve_cameras(DROID, available) == (available[2], available[0], available[1])


def test_wanted_cameras_win_and_keep_their_order():
    assert resolve_cameras(DROID, ["a", "b", "c"], ["c", "a"]) == ("c", "a")


def test_wanted_camera_that_is_absent():
    with pytest.raises(DatasetError, match=r"no camera 'wirst'\. Did you mean 'wrist'\? It has: wrist, side\."):
        resolve_cameras(DROID, ["wrist", "side"], ["wirst"])


def test_wanted_camera_named_twice():
    with pytest.raises(DatasetError, match="twice: a, a"):
        resolve_cameras(DROID, ["a"], ["a", "a"])


def test_missing_view_names_what_was_looked_for_and_what_there_is():
    available = ["observation.images.wrist_left", "observation.images.exterior_1_left", "side"]
    with pytest.raises(DatasetError, match=r"exterior_2_left or .*has: .*side.*--dataset\.cameras") as caught:
        resolve_cameras(DROID, available)
    assert "Looked for observation.images.wrist_left" not in str(caught.value)


def test_one_camera_does_not_stand_in_for_three():
    with pytest.raises(DatasetError, match="wrist_left or"):
        resolve_cameras(DROID, ["video"])


def test_one_camera_serves_an_embodiment_of_one_view_or_none_known():
    assert resolve_cameras(BRIDGE, ["video"]) == ("video",)
    assert resolve_cameras(EMBODIMENTS["av"], ["video"]) == ("video",)


def test_known_name_is_found_among_several():
    assert resolve_cameras(BRIDGE, ["a", "observation.images.image_0"]) == ("observation.images.image_0",)


def test_several_cameras_without_known_names():
    with pytest.raises(DatasetError, match=r"No camera names are known .* has: a, b\."):
        resolve_cameras(EMBODIMENTS["av"], ["a", "b"])


def test_dataset_without_cameras():
    with pytest.raises(DatasetError, match="no camera at all"):
        resolve_cameras(BRIDGE, [])


@pytest.mark.parametrize(
    ("embodiment", "num_cameras", "wanted", "expected"),
    [
        (DROID, 3, "", "concat_view"),
        (DROID, 1, "", "third_person_view"),
        (DROID, 1, "wrist_view", "wrist_view"),
        (DROID, 1, "concat_view", "concat_view"),  # composed beforehand
        (LIBERO, 1, "", "third_person_view"),
        (BRIDGE, 1, "", "ego_view"),
        (BRIDGE, 3, "concat_view", "concat_view"),
        (EMBODIMENTS["robotwin"], 1, "ego_view", "ego_view"),
    ],
)
def test_view_point(embodiment, num_cameras, wanted, expected):
    assert resolve_view_point(embodiment, num_cameras, wanted) == expected


@pytest.mark.parametrize(
    ("embodiment", "num_cameras", "wanted", "message"),
    [
        (DROID, 2, "", "droid_lerobot with view_point 'concat_view' cannot show 2 cameras"),
        (DROID, 3, "wrist_view", "'wrist_view' cannot show 3 cameras"),
        (DROID, 0, "", "cannot show 0 cameras"),
        (LIBERO, 3, "", "cannot show 3 cameras"),  # its composite is another one
        (BRIDGE, 3, "", "'ego_view' cannot show 3 cameras"),
        (EMBODIMENTS["robotwin"], 1, "", "robotwin has no usual view point. Set view_point to one of: concat_view"),
        (DROID, 1, "wristview", "Unknown view_point 'wristview'. Did you mean 'wrist_view'?"),
    ],
)
def test_view_point_that_does_not_fit(embodiment, num_cameras, wanted, message):
    with pytest.raises(ConfigError) as caught:
        resolve_view_point(embodiment, num_cameras, wanted)
    assert message in str(caught.value)


def test_import_stays_light():
    """The config imports this module before anything heavy, so that a typo is answered at once."""
    heavy = "{'numpy', 'torch', 'scipy', 'pyarrow', 'ray'}"
    code = f"import sys, pipeline.embodiments; sys.exit(str({heavy} & set(sys.modules) or ''))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stderr.strip() == ""

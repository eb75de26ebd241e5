"""Which robots Cosmos3 knows: domain id, action layout, frame rate, cameras. Owns one table; imports nothing heavy.

Ids and widths are cosmos-framework's (data/generator/action/utils/domain_utils.py), the rest comes from the constructor
defaults of its dataset loaders (data/generator/action/datasets/). What that source does not state is left empty here
(`None`, `()` or `""`) and has to be given by the user: nothing is filled in by likeness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeline.errors import ConfigError, DatasetError, did_you_mean

NUM_CONCAT_VIEWS = 3

# Word for word from cosmos-framework, action/utils/viewpoint_utils.py: the model was trained on these strings.
# How a caption is written: the structured JSON of training, or the older plain sentences.
PROMPT_FORMATS = ("json", "plain")
# Every embodiment's action is zero-padded to this width.
MAX_ACTION_DIM = 64
VIEW_POINT_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "ego_view": "This video is captured from a first-person perspective looking at the scene.",
        "third_person_view": (
            "This video is captured from a third-person perspective looking towards the agent from the front."
        ),
        "wrist_view": "This video is captured from a wrist-mounted camera.",
        "concat_view": "This video contains concatenated views from multiple camera perspectives.",
        "top_down_2d_view": "This video is captured from a top-down view of a flat 2D scene.",
        "video_game_view": "This video is captured from an in-game camera perspective in a virtual environment.",
    }
)


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One row of the domain table. An empty field means: the reference does not say, so the user has to."""

    domain_name: str
    domain_id: int  # selects the rows of the model's action projections; aliases share one
    raw_action_dim: int | None  # None: the width depends on the dataset
    fps: float | None = None  # Hz, the rate that the model was trained at
    chunk_size: int = 16
    view_point: str = ""  # a key of VIEW_POINT_SENTENCES
    cameras: tuple[tuple[str, ...], ...] = ()  # per view, in composite order: the feature keys in published datasets
    view_description: str = ""  # follows the view point's sentence when the views are composed
    action_names: tuple[str, ...] = ()
    rot6d_starts: tuple[int, ...] = ()  # first column of each six-wide rotation block
    gripper_columns: tuple[int, ...] = ()
    # How recorded states become actions. Filled for DROID only; other loaders also move the tool centre point.
    frame_rotation: tuple[tuple[float, ...], ...] | None = None  # right-multiplied to the recorded rotation
    inverts_gripper: bool = False  # action = 1 - recorded
    pose_state_keys: tuple[str, ...] = ()  # feature keys of the observed pose [6]: xyz in m, extrinsic xyz Euler in rad
    gripper_command_keys: tuple[str, ...] = ()  # feature keys of the commanded gripper [1]

    def names_for(self, raw_action_dim: int) -> tuple[str, ...]:
        """`raw_action_dim` column names: the layout's own where the width is the layout's, else `action_0`, ..."""
        if len(self.action_names) == raw_action_dim:
            return self.action_names
        return tuple(f"action_{column}" for column in range(raw_action_dim))


_ROT6D_NAMES = ("r00", "r10", "r20", "r01", "r11", "r21")  # the first two columns, column by column


def _pose(prefix: str = "", unit: str = "_m") -> tuple[str, ...]:
    translation = tuple(f"d{axis}{unit}" for axis in "xyz")
    return tuple(prefix + name for name in translation + _ROT6D_NAMES)


def _arm(prefix: str = "", gripper: str = "gripper") -> tuple[str, ...]:
    return (*_pose(prefix), prefix + gripper)


def _joints(prefix: str, num_joints: int) -> tuple[str, ...]:
    return (*(f"{prefix}joint_{joint}" for joint in range(num_joints)), f"{prefix}gripper")


def _layout(*names: str) -> dict[str, Any]:
    """The fields of an Embodiment that follow from its columns' names."""
    return {
        "raw_action_dim": len(names),
        "action_names": names,
        "rot6d_starts": tuple(column for column, name in enumerate(names) if name.endswith("r00")),
        "gripper_columns": tuple(column for column, name in enumerate(names) if "gripper" in name),
    }


# The published examples of av and camera_pose come normalised, so their translations have no stated unit.
_FREE_POSE = _layout(*_pose(unit=""))
_ONE_ARM = _layout(*_arm())
_ONE_ARM_OPEN = _layout(*_arm(gripper="gripper_open"))
_TWO_ARMS = _layout(*_arm("arm_0_"), *_arm("arm_1_"))
_LEFT_RIGHT_OPEN = _layout(*_arm("left_", "gripper_open"), *_arm("right_", "gripper_open"))
_HEAD_RIGHT_LEFT = _layout(*_pose("head_"), *_arm("right_", "gripper_open"), *_arm("left_", "gripper_open"))

# Keys of lerobot/droid_100 and droid_1.0.1, of nvidia/Cosmos3-DROID, and of the older no_noops conversion.
_DROID_CAMERAS = (
    ("observation.images.wrist_left", "observation.image.wrist_image_left", "observation.images.wrist_image_left"),
    (
        "observation.images.exterior_1_left",
        "observation.image.exterior_image_1_left",
        "observation.images.exterior_image_1_left",
    ),
    (
        "observation.images.exterior_2_left",
        "observation.image.exterior_image_2_left",
        "observation.images.exterior_image_2_left",
    ),
)
_DROID_DESCRIPTION = (
    "The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated third-person "
    "perspective views of the scene from opposite sides, with the robot visible."
)
# +90 degrees about the local z axis: panda_link8 to OpenCV's axes (datasets/droid_lerobot_dataset.py).
_DROID_FRAME_ROTATION = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def _robomind_cameras(top: str) -> tuple[tuple[str, ...], ...]:
    return tuple((f"observation.images.camera_{side}",) for side in (top, "left", "right"))


def _robomind_description(arms: str, place: str) -> str:
    return (
        f"The top row shows a third-person perspective looking towards the {arms} Franka robot from {place}. "
        "The bottom-left view looks at the scene from the left side, and the bottom-right view looks at the scene from "
        "the right side."
    )


_AGIBOT_DESCRIPTION = (
    "The top row shows the head-mounted camera view looking down at the workspace. The bottom row contains two "
    "horizontally concatenated wrist-mounted camera views: the left hand camera on the left and the right hand camera "
    "on the right."
)

_TABLE = (
    Embodiment(domain_name="no_action", domain_id=0, raw_action_dim=None),
    Embodiment(domain_name="av", domain_id=1, **_FREE_POSE, fps=10.0, chunk_size=60, view_point="ego_view"),
    Embodiment(domain_name="camera_pose", domain_id=2, **_FREE_POSE, fps=30.0, chunk_size=60, view_point="ego_view"),
    Embodiment(
        domain_name="hand_pose",
        domain_id=3,
        raw_action_dim=None,
        fps=15.0,
        view_point="ego_view",
        cameras=(("observation.images.main",),),
    ),
    Embodiment(domain_name="pusht", domain_id=4, **_layout("x", "y")),
    # Its composite is two views side by side, which `views.compose` does not build: hence no cameras.
    Embodiment(domain_name="libero", domain_id=5, raw_action_dim=None, fps=20.0, view_point="concat_view"),
    Embodiment(
        domain_name="umi",
        domain_id=6,
        **_layout(*_arm(gripper="gripper_width_m")),
        fps=10.0,
        view_point="wrist_view",
        cameras=(("observation.image.right_main_camera_rgb",),),
    ),
    Embodiment(
        domain_name="bridge_orig_lerobot",
        domain_id=7,
        **_ONE_ARM_OPEN,
        fps=5.0,
        view_point="ego_view",
        cameras=(("observation.images.image_0",),),
    ),
    Embodiment(
        domain_name="droid_lerobot",
        domain_id=8,
        **_ONE_ARM_OPEN,
        fps=15.0,
        view_point="concat_view",
        cameras=_DROID_CAMERAS,
        view_description=_DROID_DESCRIPTION,
        frame_rotation=_DROID_FRAME_ROTATION,
        inverts_gripper=True,
        pose_state_keys=("observation.state.cartesian_position",),
        gripper_command_keys=("action.gripper_position",),
    ),
    Embodiment(
        domain_name="robomind-franka",
        domain_id=8,
        **_ONE_ARM_OPEN,
        fps=10.0,
        view_point="concat_view",
        cameras=_robomind_cameras("top"),
        view_description=_robomind_description("single-arm", "above"),
    ),
    Embodiment(domain_name="embodiment_b", domain_id=9, raw_action_dim=30),
    Embodiment(
        domain_name="robomind-franka-dual",
        domain_id=12,
        **_LEFT_RIGHT_OPEN,
        fps=10.0,
        view_point="concat_view",
        cameras=_robomind_cameras("front"),
        view_description=_robomind_description("dual-arm", "the front"),
    ),
    Embodiment(
        domain_name="robomind-ur",
        domain_id=13,
        **_ONE_ARM_OPEN,
        fps=10.0,
        view_point="third_person_view",
        cameras=(("observation.images.camera_top",),),
    ),
    Embodiment(
        domain_name="agibotworld",
        domain_id=15,
        **_HEAD_RIGHT_LEFT,
        fps=10.0,
        view_point="concat_view",
        cameras=tuple((f"observation.images.{name}",) for name in ("head", "hand_left", "hand_right")),
        view_description=_AGIBOT_DESCRIPTION,
    ),
    Embodiment(domain_name="embodiment_c_gripper", domain_id=15, **_HEAD_RIGHT_LEFT),
    Embodiment(domain_name="embodiment_c_gripper_ext", domain_id=15, **_HEAD_RIGHT_LEFT),
    Embodiment(domain_name="xdof_yam", domain_id=16, **_TWO_ARMS),
    Embodiment(domain_name="molmoact2_yam", domain_id=16, **_TWO_ARMS),
    Embodiment(domain_name="abc_yam", domain_id=16, **_TWO_ARMS),
    Embodiment(domain_name="robotwin", domain_id=17, **_layout(*_joints("left_", 6), *_joints("right_", 6))),
    Embodiment(
        domain_name="fractal",
        domain_id=20,
        **_ONE_ARM,
        fps=3.0,
        view_point="ego_view",
        cameras=(("observation.images.image",),),
    ),
    Embodiment(domain_name="drawanything", domain_id=21, raw_action_dim=3),
    Embodiment(domain_name="behavior1k_lerobot", domain_id=22, raw_action_dim=23, gripper_columns=(21, 22)),
    Embodiment(domain_name="maniparena", domain_id=23, **_TWO_ARMS),
)

EMBODIMENTS: Mapping[str, Embodiment] = MappingProxyType({row.domain_name: row for row in _TABLE})


def get_embodiment(domain_name: str) -> Embodiment:
    """The table's row for `domain_name`, upper case and outer spaces ignored as in cosmos-framework's lookup.

    Raises ConfigError for an unknown name.
    """
    embodiment = EMBODIMENTS.get(domain_name.lower().strip())
    if embodiment is None:
        raise ConfigError(
            f"Unknown domain_name {domain_name!r}.{did_you_mean(domain_name, EMBODIMENTS)} "
            f"Known: {', '.join(sorted(EMBODIMENTS))}."
        )
    return embodiment


def resolve_cameras(embodiment: Embodiment, available: Sequence[str], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The feature keys to read, in composite order.

    `wanted`, the user's choice, wins. Otherwise it is each view's first published key that the dataset has; a dataset
    with a single camera needs no known key where the embodiment takes one view. Raises DatasetError when a wanted
    camera is absent or named twice, or when a view has no camera.
    """
    if wanted:
        return _check_wanted(available, wanted)
    found = tuple(_first_present(alternatives, available) for alternatives in embodiment.cameras)
    if found and all(found):
        return found
    if len(available) == 1 and len(embodiment.cameras) <= 1:
        return tuple(available)
    raise DatasetError(_explain_missing(embodiment, available))


def resolve_view_point(embodiment: Embodiment, num_cameras: int, wanted: str = "") -> str:
    """The key of VIEW_POINT_SENTENCES that fits `num_cameras` cameras.

    `wanted` wins where the cameras allow it: three views are a `concat_view`, one view may be anything (also a
    `concat_view`, when the video was composed beforehand). Unless told otherwise, one camera of an embodiment that is
    usually composed is a `third_person_view`. Raises ConfigError when views and cameras do not fit, when `wanted` is
    unknown, or when neither the user nor the table names a view point.
    """
    _check_view_point_name(wanted)
    if num_cameras == 1:
        return wanted or _single_view_point(embodiment)
    composes = wanted == "concat_view" or (not wanted and _composes(embodiment))
    if num_cameras == NUM_CONCAT_VIEWS and composes:
        return "concat_view"
    raise ConfigError(
        f"{embodiment.domain_name} with view_point {wanted or embodiment.view_point or 'unset'!r} cannot show "
        f"{num_cameras} cameras: concat_view composes exactly {NUM_CONCAT_VIEWS}, every other view point takes 1. "
        "Choose them with --dataset.cameras, or set view_point."
    )


def _check_wanted(available: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    for key in wanted:
        if key not in available:
            raise DatasetError(
                f"The dataset has no camera {key!r}.{did_you_mean(key, available)} It has: {_listed(available)}. "
                "Name one of these in --dataset.cameras."
            )
    if len(set(wanted)) != len(wanted):
        raise DatasetError(f"--dataset.cameras names a camera twice: {_listed(wanted)}. Name each once.")
    return tuple(wanted)


def _first_present(alternatives: Sequence[str], available: Sequence[str]) -> str:
    return next((key for key in alternatives if key in available), "")


def _explain_missing(embodiment: Embodiment, available: Sequence[str]) -> str:
    missing = [" or ".join(keys) for keys in embodiment.cameras if not _first_present(keys, available)]
    looked_for = f"Looked for {'; '.join(missing)}." if missing else "No camera names are known for this embodiment."
    return (
        f"Cannot tell which cameras {embodiment.domain_name} should see. {looked_for} The dataset has: "
        f"{_listed(available)}. Name them in composite order with --dataset.cameras."
    )


def _check_view_point_name(wanted: str) -> None:
    if wanted and wanted not in VIEW_POINT_SENTENCES:
        raise ConfigError(
            f"Unknown view_point {wanted!r}.{did_you_mean(wanted, VIEW_POINT_SENTENCES)} "
            f"Known: {', '.join(sorted(VIEW_POINT_SENTENCES))}."
        )


def _single_view_point(embodiment: Embodiment) -> str:
    if not embodiment.view_point:
        raise ConfigError(
            f"{embodiment.domain_name} has no usual view point. Set view_point to one of: "
            f"{', '.join(sorted(VIEW_POINT_SENTENCES))}."
        )
    return "third_person_view" if embodiment.view_point == "concat_view" else embodiment.view_point


def _composes(embodiment: Embodiment) -> bool:
    return embodiment.view_point == "concat_view" and len(embodiment.cameras) == NUM_CONCAT_VIEWS


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "no camera at all"

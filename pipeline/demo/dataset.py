"""The demo's robot videos: a small LeRobot v3.0 dataset, rendered on the spot. Owns choreography and file.

An arm with two fingers reaches, grasps, pushes and places two objects on a table; three pinhole cameras watch. What
moves is known exactly, so the recorded actions are the truth. May import `actions`, `embodiments` and `outputs.quiet`;
lerobot only while writing, because importing it takes long.

World frame: the robot's base, x forward, y left, z up, metres. The hand's frame is DROID's (panda_link8): z is the
approach axis, the fingers open along y. Shapes: T frames of an episode, 44 one transform.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from pipeline.actions import recorded_actions
from pipeline.demo.tabletop import (
    CUBE_EDGE_M,
    DEMO_CAMERA_KEYS,
    DEMO_HEIGHT_PX,
    DEMO_WIDTH_PX,
    DISC_HEIGHT_M,
    DISC_RADIUS_M,
    MAX_OPENING_M,
    TIP_M,
    render_views,
    transform,
)
from pipeline.embodiments import get_embodiment
from pipeline.errors import DatasetError
from pipeline.outputs.quiet import quiet_lerobot

Array = NDArray[np.floating]

DEMO_FPS = 15
_DEMO_VERSION = 1  # part of demo.json: raise it when the same seed would give other frames

_FINGERS_DOWN_RAD = np.array([np.pi, 0.0, 0.0])

# ---------------------------------------------------------------------------------------------------- choreography


class Leg(NamedTuple):
    """One smooth motion of the fingertips to `anchor` + `offset_m`; a free leg ends a little aside and tilted."""

    num_frames: int
    anchor: Literal["cube", "disc"]  # where that object is when the episode begins
    offset_m: tuple[float, float, float]
    gripper_command: float  # 0 open, 1 closed
    carries: Literal["cube", "disc"] | None = None
    free: bool = False


class Script(NamedTuple):
    """One episode. The first leg is the first frame alone: where the motion starts."""

    task: str
    cube_from_disc_m: tuple[float, float, float]  # as if both were points on the table
    legs: tuple[Leg, ...]


_STACKED_Z_M = (DISC_HEIGHT_M + CUBE_EDGE_M) / 2
_CONTACT_Y_M = -DISC_RADIUS_M - 0.021

# Lengths on purpose: two windows of 16 actions and a rest, exactly two, three and one more, exactly one, less than one.
_SCRIPTS = (
    Script("Pick up the red cube.", (-0.03, -0.12, 0.0), (
        Leg(1, "cube", (-0.05, 0.06, 0.12), 0.0, free=True),
        Leg(14, "cube", (0, 0, 0.08), 0.0),
        Leg(9, "cube", (0, 0, 0), 0.0),
        Leg(5, "cube", (0, 0, 0), 1.0),
        Leg(12, "cube", (-0.03, 0.02, 0.10), 1.0, carries="cube", free=True),
    )),
    Script("Push the blue disc to the left.", (0.11, -0.03, 0.0), (
        Leg(1, "disc", (-0.03, _CONTACT_Y_M - 0.03, 0.07), 1.0, free=True),
        Leg(10, "disc", (0, _CONTACT_Y_M, 0.004), 1.0),
        Leg(14, "disc", (0.005, _CONTACT_Y_M + 0.11, 0.004), 1.0, carries="disc"),
        Leg(8, "disc", (-0.02, _CONTACT_Y_M + 0.09, 0.06), 1.0, free=True),
    )),
    Script("Put the red cube on the blue disc.", (-0.02, -0.11, 0.0), (
        Leg(1, "cube", (-0.03, 0.02, 0.09), 0.0, free=True),
        Leg(7, "cube", (0, 0, 0.06), 0.0),
        Leg(7, "cube", (0, 0, 0), 0.0),
        Leg(4, "cube", (0, 0, 0), 1.0),
        Leg(6, "cube", (0, 0, 0.05), 1.0, carries="cube"),
        Leg(11, "disc", (0, 0, _STACKED_Z_M + 0.035), 1.0, carries="cube"),
        Leg(5, "disc", (0, 0, _STACKED_Z_M), 1.0, carries="cube"),
        Leg(4, "disc", (0, 0, _STACKED_Z_M), 0.0),
        Leg(5, "disc", (-0.01, 0, _STACKED_Z_M + 0.04), 0.0, free=True),
    )),
    Script("Put the red cube down.", (0.02, -0.12, 0.05), (
        Leg(1, "cube", (0, 0, 0), 1.0),
        Leg(7, "cube", (0.01, -0.015, -0.05), 1.0, carries="cube"),
        Leg(4, "cube", (0.01, -0.015, -0.05), 0.0),
        Leg(5, "cube", (0.0, -0.01, -0.015), 0.0, free=True),
    )),
    Script("Move the gripper above the blue disc.", (0.06, -0.11, 0.0), (
        Leg(1, "disc", (-0.03, -0.03, 0.12), 0.0, free=True),
        Leg(8, "disc", (0, 0, 0.09), 0.0),
    )),
)  # fmt: skip


class Recording(NamedTuple):
    """What happened: `xyz_euler` [T, 6] (m; extrinsic xyz, rad), grippers [T] (0 open, 1 closed), poses [T, 4, 4]."""

    task: str
    xyz_euler: NDArray[np.float32]
    gripper_position: NDArray[np.float32]
    gripper_command: NDArray[np.float32]
    hand_poses: Array
    object_poses: dict[str, Array]


def _place_objects(script: Script, rng: np.random.Generator) -> tuple[dict[str, Array], float]:
    """Where cube and disc stand at first ({name: [4, 4]}), and the cube's yaw in rad."""
    disc_m = np.array([rng.uniform(0.42, 0.48), rng.uniform(0.03, 0.06), DISC_HEIGHT_M / 2])
    cube_m = disc_m + script.cube_from_disc_m + [0, 0, (CUBE_EDGE_M - DISC_HEIGHT_M) / 2]
    yaw_rad = np.deg2rad(rng.uniform(-14, 14))
    turned = Rotation.from_euler("z", yaw_rad)
    return {"disc": transform(disc_m, Rotation.identity()), "cube": transform(cube_m, turned)}, yaw_rad


def _move_hand(script: Script, objects: dict[str, Array], yaw_rad: float, rng: np.random.Generator) -> Array:
    """The hand's pose in every frame [T, 4, 4]: eased from leg to leg, at rest at each end."""
    tips_m, turns = [], []
    for leg in script.legs:
        tips_m.append(objects[leg.anchor][:3, 3] + leg.offset_m + leg.free * rng.uniform(-0.015, 0.015, 3))
        tilt_rad = leg.free * np.deg2rad(rng.uniform(-1, 1, 3) * [6, 6, 10])
        turns.append(Rotation.from_euler("xyz", [*tilt_rad[:2], yaw_rad + tilt_rad[2]]))
    turns_hand = Rotation.concatenate(turns) * Rotation.from_euler("xyz", _FINGERS_DOWN_RAD)
    slerp = Slerp(np.arange(len(turns)), turns_hand)
    poses = []
    for index, leg in enumerate(script.legs):
        start = max(index - 1, 0)
        for step in range(1, leg.num_frames + 1):
            eased = (step / leg.num_frames) ** 2 * (3 - 2 * step / leg.num_frames)
            rotation = slerp(start + eased * (index - start))
            tip_m = (1 - eased) * tips_m[start] + eased * tips_m[index]
            poses.append(transform(tip_m - rotation.apply([0, 0, TIP_M]), rotation))
    return np.stack(poses)


def _carry_objects(script: Script, objects: dict[str, Array], hand_T44: Array) -> dict[str, Array]:
    """Each object's pose in every frame [T, 4, 4]: fixed to the hand while carried, fixed to the table otherwise."""
    tracks = {name: np.repeat(pose[None], len(hand_T44), axis=0) for name, pose in objects.items()}
    first = 0
    for leg in script.legs:
        if leg.carries:
            held = np.linalg.inv(hand_T44[first - 1]) @ tracks[leg.carries][first - 1]
            tracks[leg.carries][first:] = hand_T44[first:] @ held
            tracks[leg.carries][first + leg.num_frames :] = tracks[leg.carries][first + leg.num_frames - 1]
        first += leg.num_frames
    return tracks


def _command_gripper(script: Script) -> tuple[Array, Array]:
    """Command and position [T] each. The fingers follow one frame late, and stop at the cube's sides."""
    commands = [leg.gripper_command for leg in script.legs]
    ramps = [
        np.linspace(before, leg.gripper_command, leg.num_frames + 1)[1:]
        for before, leg in zip(commands[:1] + commands[:-1], script.legs, strict=True)
    ]
    command = np.concatenate(ramps)
    closed_at = 1 - CUBE_EDGE_M / MAX_OPENING_M if any(leg.carries == "cube" for leg in script.legs) else 1.0
    return command, np.minimum(np.concatenate([command[:1], command[:-1]]), closed_at)


def _play(script: Script, rng: np.random.Generator) -> Recording:
    objects, yaw_rad = _place_objects(script, rng)
    hand_T44 = _move_hand(script, objects, yaw_rad, rng)
    euler = Rotation.from_matrix(hand_T44[:, :3, :3]).as_euler("xyz")
    command, position = _command_gripper(script)
    return Recording(
        task=script.task,
        xyz_euler=np.concatenate([hand_T44[:, :3, 3], euler], axis=1).astype(np.float32),
        gripper_position=position.astype(np.float32),
        gripper_command=command.astype(np.float32),
        hand_poses=hand_T44,
        object_poses=_carry_objects(script, objects, hand_T44),
    )


def play_episodes(seed: int) -> list[Recording]:
    """What happens in each of the demo's episodes, without rendering it."""
    return [_play(script, np.random.default_rng([seed, index])) for index, script in enumerate(_SCRIPTS)]


def render_frame(recording: Recording, frame_index: int) -> dict[str, NDArray[np.uint8]]:
    """Every camera's picture of one frame: {key: [96, 160, 3]}."""
    cube44, disc44 = (recording.object_poses[name][frame_index] for name in ("cube", "disc"))
    gripper_position = recording.gripper_position[frame_index]
    return render_views(recording.hand_poses[frame_index], cube44, disc44, gripper_position=gripper_position)


# --------------------------------------------------------------------------------------------------------- on disk


def write_demo_dataset(root: Path, *, seed: int = 0) -> Path:
    """Renders the demo's five episodes into `root`, a LeRobot v3.0 dataset, and returns it; at once if it is there.

    Three 96x160 cameras at 15 fps; `observation.state.cartesian_position` [6] (m; extrinsic xyz, rad) and
    `.gripper_position` [1] (0 open, 1 closed); `action` [10], DROID's, of which an episode's last row stands still; and
    `action.gripper_position` [1], the command. Everything follows from `seed`. Takes some 30 s, touches no network, and
    `root` appears only when it is complete. Raises DatasetError when `root` holds anything else.
    """
    root = Path(root).absolute()
    if _holds_demo(root, seed):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        unfinished = Path(folder) / root.name
        _write_episodes(unfinished, seed)
        (unfinished / "demo.json").write_text(json.dumps(_identity(seed)))
        try:
            unfinished.rename(root)
        except OSError:  # somebody else was quicker: theirs is as good, if it is this demo
            if not _holds_demo(root, seed):
                raise
    return root


def _identity(seed: int) -> dict[str, int]:
    return {"demo_version": _DEMO_VERSION, "seed": seed}


def _holds_demo(root: Path, seed: int) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "demo.json"
    found = marker.read_text() if marker.is_file() else "something else"
    if found != json.dumps(_identity(seed)):
        raise DatasetError(
            f"{root} should be free or hold the demo dataset {_identity(seed)}, but holds {found}. "
            "Remove that folder or name another one."
        )
    return True


def _features() -> dict[str, dict]:
    def numbers(*names: str) -> dict:
        return {"dtype": "float32", "shape": (len(names),), "names": list(names)}

    shape = (DEMO_HEIGHT_PX, DEMO_WIDTH_PX, 3)
    video = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
    return {
        **{key: dict(video) for key in DEMO_CAMERA_KEYS},
        "observation.state.cartesian_position": numbers("x", "y", "z", "roll", "pitch", "yaw"),
        "observation.state.gripper_position": numbers("gripper"),
        "action": numbers("dx", "dy", "dz", "r00", "r10", "r20", "r01", "r11", "r21", "gripper"),
        "action.gripper_position": numbers("gripper"),
    }


def true_actions(recording: Recording) -> NDArray[np.float32]:
    """DROID's actions [T, 10] of the recorded (float32) states; nothing moves after the last frame."""
    droid, command = get_embodiment("droid_lerobot"), recording.gripper_command
    still = np.concatenate([recording.xyz_euler, recording.xyz_euler[-1:]])
    actions = recorded_actions(
        still,
        np.append(command, command[-1]),
        frame_rotation=droid.frame_rotation,
        inverts_gripper=droid.inverts_gripper,
    )
    return actions.astype(np.float32)


def _write_episodes(root: Path, seed: int) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    recordings = play_episodes(seed)
    longest = max(len(recording.xyz_euler) for recording in recordings)
    with quiet_lerobot():
        dataset = LeRobotDataset.create(
            "demo/tabletop",
            fps=DEMO_FPS,
            features=_features(),
            root=root,
            robot_type="demo_arm",
            use_videos=True,
            video_backend="pyav",  # named, so that lerobot does not try, and report, the others
            streaming_encoding=True,
            # A full queue drops frames, so it holds an episode.
            encoder_queue_maxsize=longest + 1,
        )
        for recording in recordings:
            for index, action in enumerate(true_actions(recording)):
                state = {
                    "observation.state.cartesian_position": recording.xyz_euler[index],
                    "observation.state.gripper_position": recording.gripper_position[index : index + 1],
                    "action": action,
                    "action.gripper_position": recording.gripper_command[index : index + 1],
                }
                dataset.add_frame({**render_frame(recording, index), **state, "task": recording.task})
            dataset.save_episode()
        dataset.finalize()

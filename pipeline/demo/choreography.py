"""How an episode is played: a script's legs become every pose of the hand and the objects. Draws and writes nothing.

World frame and hand as in `tabletop`. Shapes: T frames of an episode, 44 one transform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import gaussian
from scipy.spatial.transform import Rotation, Slerp

from pipeline.actions import recorded_actions
from pipeline.demo.tabletop import MAX_OPENING_M, TIP_M, Look, Solid, transform
from pipeline.embodiments import get_embodiment

Array = NDArray[np.floating]

_FINGERS_DOWN_RAD = np.array([np.pi, 0.0, 0.0])
# m, rad; the standard deviation in the middle of a leg. Mostly a turn about the approach axis: from 96 x 160 pixels of
# a flat table a tilt of the hand and a step aside look nearly the same.
_SWAY = np.array([0.004, 0.004, 0.003, 0.01, 0.01, 0.4])
# Over neighbouring frames, like a hand's: what the next one does can be seen coming, four frames at a time.
_SMOOTHING = gaussian(31, std=5)
_LONG_LEG_FRAMES = 20  # a shorter one leaves less time for it


class Leg(NamedTuple):
    """One smooth motion of the fingertips to `anchor` + `offset_m`; a free leg ends a little aside and tilted."""

    num_frames: int
    anchor: str  # where that object is when the episode begins
    offset_m: tuple[float, float, float]
    gripper_command: float  # 0 open, 1 closed
    carries: str | None = None
    free: bool = False


@dataclass(frozen=True)
class Scene:
    """Who is on the table, where, and how it looks. `poses` [4, 4] when the episode begins."""

    solids: tuple[Solid, ...]
    poses: Mapping[str, Array]
    look: Look


class Script(NamedTuple):
    """One episode. The first leg is the first frame alone: where the motion starts."""

    task: str
    target: str  # the object that the task is about
    legs: tuple[Leg, ...]
    is_push: bool = False  # what is carried is not between the fingers


class Start(NamedTuple):
    """How the hand waits for a task: its fingertips, its turn (extrinsic xyz; none is straight down), its gripper."""

    tip_m: Array
    turn_rad: Array
    gripper_command: float


class Recording(NamedTuple):
    """What happened: `xyz_euler` [T, 6] (m; extrinsic xyz, rad), grippers [T] (0 open, 1 closed), poses [T, 4, 4]."""

    task: str
    target: str
    scene: Scene
    xyz_euler: NDArray[np.float32]
    gripper_position: NDArray[np.float32]
    gripper_command: NDArray[np.float32]
    hand_poses: Array
    object_poses: dict[str, Array]

    @property
    def num_frames(self) -> int:
        return len(self.hand_poses)


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


def play(
    script: Script, scene: Scene, yaw_rad: float, rng: np.random.Generator, start: Start | None = None
) -> Recording:
    """What happens. The hand turns by `yaw_rad` to meet its object; it waits as `start` says, or as the script does."""
    hand_T44 = _move_hand(script, scene.poses, yaw_rad, rng, start)
    euler = Rotation.from_matrix(hand_T44[:, :3, :3]).as_euler("xyz")
    command, position = _command_gripper(script, scene.solids)
    return Recording(
        task=script.task,
        target=script.target,
        scene=scene,
        xyz_euler=np.concatenate([hand_T44[:, :3, 3], euler], axis=1).astype(np.float32),
        gripper_position=position.astype(np.float32),
        gripper_command=command.astype(np.float32),
        hand_poses=hand_T44,
        object_poses=_carry_objects(script, scene.poses, hand_T44),
    )


def _move_hand(
    script: Script, poses: Mapping[str, Array], yaw_rad: float, rng: np.random.Generator, start: Start | None
) -> Array:
    """The hand's pose in every frame [T, 4, 4]: eased from leg to leg, at rest at each end, and led by a human hand."""
    tips_m, turns = [], []
    for leg in script.legs:
        tips_m.append(poses[leg.anchor][:3, 3] + leg.offset_m + leg.free * rng.uniform(-0.015, 0.015, 3))
        tilt_rad = leg.free * np.deg2rad(rng.uniform(-1, 1, 3) * [6, 6, 15])
        turn_rad = tilt_rad + np.array([0, 0, yaw_rad])
        turns.append(Rotation.from_euler("xyz", turn_rad if start is None or turns else start.turn_rad))
    turns_hand = Rotation.concatenate(turns) * Rotation.from_euler("xyz", _FINGERS_DOWN_RAD)
    slerp = Slerp(np.arange(len(turns)), turns_hand)
    hand = []
    for index, leg in enumerate(script.legs):
        before = max(index - 1, 0)
        aside_m, turned_rad = _sway(leg, rng)
        for step in range(1, leg.num_frames + 1):
            eased = (step / leg.num_frames) ** 2 * (3 - 2 * step / leg.num_frames)
            rotation = Rotation.from_rotvec(turned_rad[step - 1]) * slerp(before + eased * (index - before))
            tip_m = (1 - eased) * tips_m[before] + eased * tips_m[index] + aside_m[step - 1]
            hand.append(transform(tip_m - rotation.apply([0, 0, TIP_M]), rotation))
    return np.stack(hand)


def _sway(leg: Leg, rng: np.random.Generator) -> tuple[Array, Array]:
    """What a teleoperated arm adds to the straight way of a leg: [T, 3] in m and [T, 3] in rad, none at its ends.

    What is carried stays at its height, and level: it may stand on the table.
    """
    frames = leg.num_frames
    white = rng.normal(size=(frames + len(_SMOOTHING) - 1, 6))
    smooth = np.apply_along_axis(np.convolve, 0, white, _SMOOTHING / np.linalg.norm(_SMOOTHING), mode="valid")
    swing = np.sin(np.pi * np.arange(1, frames + 1) / frames)[:, None] ** 2 * smooth * _SWAY
    swing *= min(1.0, frames / _LONG_LEG_FRAMES) ** 2
    if leg.carries:
        swing[:, 2:5] = 0.0
    return swing[:, :3], swing[:, 3:]


def _carry_objects(script: Script, poses: Mapping[str, Array], hand_T44: Array) -> dict[str, Array]:
    """Each object's pose in every frame [T, 4, 4]: fixed to the hand while carried, fixed to the table otherwise."""
    tracks = {name: np.repeat(pose[None], len(hand_T44), axis=0) for name, pose in poses.items()}
    first = 0
    for leg in script.legs:
        if leg.carries:
            held = np.linalg.inv(hand_T44[first - 1]) @ tracks[leg.carries][first - 1]
            tracks[leg.carries][first:] = hand_T44[first:] @ held
            tracks[leg.carries][first + leg.num_frames :] = tracks[leg.carries][first + leg.num_frames - 1]
        first += leg.num_frames
    return tracks


def _command_gripper(script: Script, solids: Sequence[Solid]) -> tuple[Array, Array]:
    """Command and position [T] each. The fingers follow one frame late, and stop at what they close around."""
    commands = [leg.gripper_command for leg in script.legs]
    ramps = [
        np.linspace(before, leg.gripper_command, leg.num_frames + 1)[1:]
        for before, leg in zip(commands[:1] + commands[:-1], script.legs, strict=True)
    ]
    command = np.concatenate(ramps)
    position = np.concatenate([command[:1], command[:-1]])
    carrying = [index for index, leg in enumerate(script.legs) if leg.carries and not script.is_push]
    if carrying:
        [width_m] = [each.width_m for each in solids if each.name == script.legs[carrying[0]].carries]
        closing = sum(leg.num_frames for leg in script.legs[: carrying[0] - 1])
        position[closing:] = np.minimum(position[closing:], 1 - width_m / MAX_OPENING_M)
    return command, position

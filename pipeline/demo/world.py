"""Any number of episodes, drawn from a seed: other tables, other objects, other light, and tasks for them.

Where the hand begins tells nothing of what it is asked to do, and most scenes are played twice, with two objects named:
only the task tells which. An episode is either *held out*, and its task names a held-out object, or it shows none of
them, so a model can be asked about what it never saw.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.demo.choreography import Array, Leg, Recording, Scene, Script, Start, play
from pipeline.demo.objects import COLOURS, HELD_OUT, SHAPES, solid
from pipeline.demo.tabletop import MAX_OPENING_M, Look, Solid, transform

_FINGER_M = 0.018  # closed fingers, from their middle to where they touch what they push
_METRES_PER_FRAME = 0.0075  # on average over a leg; half as much again in its middle
_LEAST_DISTANCE_M = 0.12  # between two objects
_ASIDE_M = 0.03  # an object that has a place of its own is so far to the side of every other one
_TASKS_PER_SCENE = 2
_SHARE_HELD, _SHARE_CLOSED = 0.1, 0.25  # of the scenes: that begin with an object in the hand, and with a closed one


def play_world(seed: int, num_episodes: int, *, held_out: bool = False) -> list[Recording]:
    """That many episodes drawn from `seed`. Held-out ones name an object that no other episode shows."""
    recordings: list[Recording] = []
    for index in itertools.count():
        if len(recordings) >= num_episodes:
            return recordings[:num_episodes]
        recordings += _play_scene(np.random.default_rng([seed, index, held_out]), held_out)
    raise AssertionError("a count does not end")


def _play_scene(rng: np.random.Generator, held_out: bool) -> list[Recording]:
    """One scene: played once with what is held out, or held up, and for two of its objects otherwise."""
    solids = _draw_solids(rng, held_out)
    is_held = _fits(solids[0]) and rng.random() < _SHARE_HELD
    poses = _place(solids, rng, lifted_m=0.05 if is_held else 0.0)
    scene, start = Scene(solids, poses, _draw_look(rng)), _draw_start(rng)
    if is_held:
        return [play(_put_down(solids[0], scene, rng), scene, _yaw_rad(poses[solids[0].name]), rng)]
    targets = solids[:1] if held_out else tuple(rng.permutation(np.array(solids, dtype=object)))[:_TASKS_PER_SCENE]
    return [
        play(_draw_script(target, scene, start, rng), scene, _yaw_rad(poses[target.name]), rng, start)
        for target in targets
    ]


def _draw_solids(rng: np.random.Generator, held_out: bool) -> tuple[Solid, ...]:
    """Two or three; the first one is held out, or none is."""
    usual = sorted({f"{colour} {shape}" for colour in COLOURS for shape in SHAPES} - HELD_OUT)
    names = [str(name) for name in rng.permutation(usual)]
    if held_out:
        names.insert(0, str(rng.choice(sorted(HELD_OUT))))
    return tuple(solid(name) for name in names[: rng.integers(2, 4)])


def _draw_start(rng: np.random.Generator) -> Start:
    """Anywhere above the table, whatever is to be done."""
    return Start(
        tip_m=np.array([rng.uniform(0.36, 0.48), rng.uniform(-0.12, 0.12), rng.uniform(0.12, 0.18)]),
        turn_rad=np.deg2rad(rng.uniform(-1, 1, 3) * [6, 6, 40]),
        gripper_command=float(rng.random() < _SHARE_CLOSED),
    )


def _draw_script(target: Solid, scene: Scene, start: Start, rng: np.random.Generator) -> Script:
    flat = [other for other in scene.solids if other.name != target.name and other.name.endswith(("disc", "block"))]
    scripts = [_push, _approach]
    if _fits(target):
        scripts += [_pick, _stack] if flat else [_pick]
    script = scripts[rng.integers(len(scripts))]
    return script(target, flat, scene.poses, start, rng)


def _fits(target: Solid) -> bool:
    """Whether it goes between the fingers."""
    return target.width_m < MAX_OPENING_M


def _yaw_rad(pose44: Array) -> float:
    return float(np.arctan2(pose44[1, 0], pose44[0, 0]))


def _place(solids: Sequence[Solid], rng: np.random.Generator, *, lifted_m: float) -> dict[str, Array]:
    """Poses on the table, apart from each other; the first one may be held up."""
    places: list[Array] = []
    while len(places) < len(solids):
        place = np.array([rng.uniform(0.36, 0.54), rng.uniform(-0.16, 0.16)])
        if all(np.linalg.norm(place - other) > _LEAST_DISTANCE_M for other in places):
            places.append(place)
    poses = {}
    for index, (each, place) in enumerate(zip(solids, places, strict=True)):
        height_m = each.height_m / 2 + (lifted_m if index == 0 else 0.0)
        turned = Rotation.from_euler("z", rng.uniform(-25, 25), degrees=True)
        poses[each.name] = transform(np.array([*place, height_m]), turned)
    return poses


def _draw_look(rng: np.random.Generator) -> Look:
    def colour(hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]):
        drawn = colorsys.hsv_to_rgb(*(rng.uniform(*bounds) for bounds in (hue, saturation, value)))
        return tuple(int(255 * channel) for channel in drawn)

    to_light = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.6), 1.0])
    return Look(
        cloth=colour((0.0, 1.0), (0.0, 0.15), (0.55, 0.85)),
        wall=colour((0.0, 1.0), (0.0, 0.2), (0.6, 0.95)),
        floor=colour((0.0, 1.0), (0.0, 0.2), (0.3, 0.6)),
        to_light=tuple((to_light / np.linalg.norm(to_light)).tolist()),
    )


def _timed(legs: Sequence[tuple[str, tuple, float, str | None, bool, int]], poses: Mapping[str, Array], rng) -> tuple:
    """Legs whose number of frames follows from how far they go; the last number of each is the least."""
    timed: list[Leg] = []
    here = None
    for anchor, offset_m, command, carries, free, least in legs:
        there = poses[anchor][:3, 3] + offset_m
        far_m = 0.0 if here is None else np.linalg.norm(there - here)
        frames = 1 if here is None else max(least, round(far_m / _METRES_PER_FRAME * rng.uniform(0.85, 1.3)))
        timed.append(Leg(frames, anchor, offset_m, command, carries, free))
        here = there
    return tuple(timed)


Offset = tuple[float, float, float]


def _begin(target: Solid, poses: Mapping[str, Array], start: Start) -> tuple:
    """The first leg: where the hand waits, seen from the target."""
    return (target.name, tuple(start.tip_m - poses[target.name][:3, 3]), start.gripper_command, None, False, 1)


def _called(target: Solid, poses: Mapping[str, Array]) -> str:
    """What a task calls it: by its looks, and by its place among the others as the robot sees them, where it has one.

    Which of several objects has a look is among the last things that a small model learns, which has one place is not.
    """
    y_m = {name: pose[1, 3] for name, pose in poses.items()}  # +y is the robot's left
    if len(poses) == 1 or any(abs(y_m[name] - y_m[target.name]) < _ASIDE_M for name in poses if name != target.name):
        return target.name
    from_left = sorted(poses, key=lambda name: -y_m[name]).index(target.name)
    places = ["on the left", *["in the middle"] * (len(poses) - 2), "on the right"]
    return f"{target.name} {places[from_left]}"


def _grasp(target: Solid, poses: Mapping[str, Array], start: Start) -> list[tuple]:
    return [
        _begin(target, poses, start),
        (target.name, (0, 0, target.height_m / 2 + 0.045), 0.0, None, False, 5),
        (target.name, (0, 0, 0), 0.0, None, False, 5),
        (target.name, (0, 0, 0), 1.0, None, False, 4),
    ]


def _pick(target: Solid, flat: list[Solid], poses: Mapping[str, Array], start: Start, rng) -> Script:
    lift = (rng.uniform(-0.05, 0.03), rng.uniform(-0.05, 0.05), rng.uniform(0.07, 0.11))
    legs = [*_grasp(target, poses, start), (target.name, lift, 1.0, target.name, True, 6)]
    return Script(f"Pick up the {_called(target, poses)}.", target.name, _timed(legs, poses, rng))


def _push(target: Solid, flat: list[Solid], poses: Mapping[str, Array], start: Start, rng) -> Script:
    side = int(rng.choice([-1, 1]))  # +y is the robot's left
    contact_m = side * -(target.width_m / 2 + _FINGER_M)
    low_m, far_m = 0.004 if target.height_m < 0.02 else 0.0, side * rng.uniform(0.06, 0.11)
    away = (rng.uniform(-0.04, 0.0), contact_m + far_m - side * 0.03, rng.uniform(0.05, 0.08))
    legs = [
        _begin(target, poses, start),
        (target.name, (0, contact_m - side * 0.01, low_m + 0.05), 1.0, None, False, 6),
        (target.name, (0, contact_m, low_m), 1.0, None, False, 5),
        (target.name, (rng.uniform(-0.01, 0.01), contact_m + far_m, low_m), 1.0, target.name, False, 6),
        (target.name, away, 1.0, None, True, 5),
    ]
    where = "left" if side > 0 else "right"
    return Script(
        f"Push the {_called(target, poses)} to the {where}.", target.name, _timed(legs, poses, rng), is_push=True
    )


def _stack(target: Solid, flat: list[Solid], poses: Mapping[str, Array], start: Start, rng) -> Script:
    second = flat[rng.integers(len(flat))]
    on_top_m = (target.height_m + second.height_m) / 2
    legs = [
        *_grasp(target, poses, start),
        (target.name, (0, 0, 0.06), 1.0, target.name, False, 5),
        (second.name, (0, 0, on_top_m + 0.035), 1.0, target.name, False, 6),
        (second.name, (0, 0, on_top_m), 1.0, target.name, False, 4),
        (second.name, (0, 0, on_top_m), 0.0, None, False, 4),
        (second.name, (rng.uniform(-0.03, 0.0), 0, on_top_m + 0.05), 0.0, None, True, 5),
    ]
    return Script(f"Put the {_called(target, poses)} on the {second.name}.", target.name, _timed(legs, poses, rng))


def _approach(target: Solid, flat: list[Solid], poses: Mapping[str, Array], start: Start, rng) -> Script:
    legs = [
        _begin(target, poses, start),
        (target.name, (0, 0, target.height_m / 2 + 0.06), float(rng.integers(0, 2)), None, False, 8),
    ]
    return Script(f"Move the gripper above the {_called(target, poses)}.", target.name, _timed(legs, poses, rng))


def _put_down(target: Solid, scene: Scene, rng: np.random.Generator) -> Script:
    down = (rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), -0.05)
    legs = [
        (target.name, (0, 0, 0), 1.0, None, False, 1),
        (target.name, down, 1.0, target.name, False, 7),
        (target.name, down, 0.0, None, False, 4),
        (target.name, (down[0] - 0.02, down[1], 0.03), 0.0, None, True, 6),
    ]
    return Script(f"Put the {target.name} down.", target.name, _timed(legs, scene.poses, rng))

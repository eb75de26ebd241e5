"""The embedded demo's five episodes: what happens in each, written down leg by leg."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.demo.choreography import Leg, Recording, Scene, Script, play
from pipeline.demo.objects import solid
from pipeline.demo.tabletop import Look, transform

_CUBE, _DISC = solid("red cube"), solid("blue disc")
_STACKED_Z_M = (_DISC.height_m + _CUBE.height_m) / 2
_CONTACT_Y_M = -_DISC.width_m / 2 - 0.021

# Lengths on purpose: two windows of 16 actions and a rest, exactly two, three and one more, exactly one, less than one.
# Where the cube is, seen from the disc, as if both were points on the table; then the script.
_SCRIPTS: tuple[tuple[tuple[float, float, float], Script], ...] = (
    ((-0.03, -0.12, 0.0), Script("Pick up the red cube.", _CUBE.name, (
        Leg(1, _CUBE.name, (-0.05, 0.06, 0.12), 0.0, free=True),
        Leg(14, _CUBE.name, (0, 0, 0.08), 0.0),
        Leg(9, _CUBE.name, (0, 0, 0), 0.0),
        Leg(5, _CUBE.name, (0, 0, 0), 1.0),
        Leg(12, _CUBE.name, (-0.03, 0.02, 0.10), 1.0, carries=_CUBE.name, free=True),
    ))),
    ((0.11, -0.03, 0.0), Script("Push the blue disc to the left.", _DISC.name, (
        Leg(1, _DISC.name, (-0.03, _CONTACT_Y_M - 0.03, 0.07), 1.0, free=True),
        Leg(10, _DISC.name, (0, _CONTACT_Y_M, 0.004), 1.0),
        Leg(14, _DISC.name, (0.005, _CONTACT_Y_M + 0.11, 0.004), 1.0, carries=_DISC.name),
        Leg(8, _DISC.name, (-0.02, _CONTACT_Y_M + 0.09, 0.06), 1.0, free=True),
    ), is_push=True)),
    ((-0.02, -0.11, 0.0), Script("Put the red cube on the blue disc.", _CUBE.name, (
        Leg(1, _CUBE.name, (-0.03, 0.02, 0.09), 0.0, free=True),
        Leg(7, _CUBE.name, (0, 0, 0.06), 0.0),
        Leg(7, _CUBE.name, (0, 0, 0), 0.0),
        Leg(4, _CUBE.name, (0, 0, 0), 1.0),
        Leg(6, _CUBE.name, (0, 0, 0.05), 1.0, carries=_CUBE.name),
        Leg(11, _DISC.name, (0, 0, _STACKED_Z_M + 0.035), 1.0, carries=_CUBE.name),
        Leg(5, _DISC.name, (0, 0, _STACKED_Z_M), 1.0, carries=_CUBE.name),
        Leg(4, _DISC.name, (0, 0, _STACKED_Z_M), 0.0),
        Leg(5, _DISC.name, (-0.01, 0, _STACKED_Z_M + 0.04), 0.0, free=True),
    ))),
    ((0.02, -0.12, 0.05), Script("Put the red cube down.", _CUBE.name, (
        Leg(1, _CUBE.name, (0, 0, 0), 1.0),
        Leg(7, _CUBE.name, (0.01, -0.015, -0.05), 1.0, carries=_CUBE.name),
        Leg(4, _CUBE.name, (0.01, -0.015, -0.05), 0.0),
        Leg(5, _CUBE.name, (0.0, -0.01, -0.015), 0.0, free=True),
    ))),
    ((0.06, -0.11, 0.0), Script("Move the gripper above the blue disc.", _DISC.name, (
        Leg(1, _DISC.name, (-0.03, -0.03, 0.12), 0.0, free=True),
        Leg(8, _DISC.name, (0, 0, 0.09), 0.0),
    ))),
)  # fmt: skip


def play_demo(seed: int) -> list[Recording]:
    """What happens in each of the demo's five episodes, without rendering it."""
    recordings = []
    for index, (cube_from_disc_m, script) in enumerate(_SCRIPTS):
        rng = np.random.default_rng([seed, index])
        disc_m = np.array([rng.uniform(0.42, 0.48), rng.uniform(0.03, 0.06), _DISC.height_m / 2])
        cube_m = disc_m + cube_from_disc_m + [0, 0, (_CUBE.height_m - _DISC.height_m) / 2]
        yaw_rad = np.deg2rad(rng.uniform(-14, 14))
        turned = Rotation.from_euler("z", yaw_rad)
        poses = {_DISC.name: transform(disc_m, Rotation.identity()), _CUBE.name: transform(cube_m, turned)}
        scene = Scene((_DISC, _CUBE), poses, Look())
        recordings.append(play(script, scene, yaw_rad, rng))
    return recordings

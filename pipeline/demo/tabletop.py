"""The demo's renderer: an arm over a table as three pinhole cameras see it. May import `embodiments`; does no I/O.

World frame: the robot's base, x forward, y left, z up, metres. The hand's frame is DROID's (panda_link8): z is the
approach axis, the fingers open along y. Shapes: P points of a polygon, 44 one transform.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.spatial.transform import Rotation

from pipeline.embodiments import get_embodiment

Array = NDArray[np.floating]
Rgb = tuple[int, int, int]

DEMO_HEIGHT_PX, DEMO_WIDTH_PX = 96, 160
DEMO_CAMERA_KEYS = tuple(f"observation.images.{view}" for view in ("wrist_left", "exterior_1_left", "exterior_2_left"))

CUBE_EDGE_M, DISC_RADIUS_M, DISC_HEIGHT_M = 0.045, 0.045, 0.014
TIP_M = 0.145  # from the hand's origin to where the fingertips grasp, along z
MAX_OPENING_M = 0.085

_SUPERSAMPLING = 3
_CANVAS_PX = (DEMO_WIDTH_PX * _SUPERSAMPLING, DEMO_HEIGHT_PX * _SUPERSAMPLING)
_TO_LIGHT = np.array([0.25, -0.35, 0.9]) / np.linalg.norm([0.25, -0.35, 0.9])
_TABLE_X_M, _TABLE_Y_M = (-0.16, 0.84), (-0.5, 0.5)
_RED, _BLUE, _WHITE, _GREY, _BLACK = (208, 50, 42), (46, 100, 200), (234, 234, 230), (124, 130, 140), (54, 56, 62)
_WOOD, _WALL, _FLOOR = (186, 148, 106), (208, 216, 222), (118, 122, 128)


def transform(xyz_m: Array, rotation: Rotation) -> Array:
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation.as_matrix(), xyz_m
    return transform


# ---------------------------------------------------------------------------------------------------------- bodies


class Face(NamedTuple):
    """A flat polygon [P, 3] in the world, counter-clockwise seen from outside; its colour as the light leaves it."""

    points: Array
    normal: Array
    colour: Rgb


def _face(points_P3: Array, colour: Rgb) -> Face:
    (ax, ay, az), (bx, by, bz) = (points_P3[1] - points_P3[0]).tolist(), (points_P3[2] - points_P3[1]).tolist()
    normal = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])  # np.cross is slow on single vectors
    light = 0.62 + 0.38 * (normal @ _TO_LIGHT) / np.sqrt(normal @ normal)
    return Face(points_P3, normal, tuple(int(light * channel) for channel in colour))


def _prism(bottom_P3: Array, top_P3: Array, colour: Rgb) -> list[Face]:
    """The solid between two polygons with as many corners, the bottom one counter-clockwise seen from the top."""
    corners = range(len(top_P3))
    rings = [np.stack([bottom_P3[i - 1], bottom_P3[i], top_P3[i], top_P3[i - 1]]) for i in corners]
    return [_face(ring, colour) for ring in (*rings, bottom_P3[::-1], top_P3)]


def _box(pose44: Array, low_m: tuple[float, ...], high_m: tuple[float, ...], colour: Rgb) -> list[Face]:
    (x0, y0, z0), (x1, y1, z1) = low_m, high_m
    ring = np.array([[x0, y0, 0], [x1, y0, 0], [x1, y1, 0], [x0, y1, 0]])
    bottom, top = ((ring + np.array([0, 0, z])) @ pose44[:3, :3].T + pose44[:3, 3] for z in (z0, z1))
    return _prism(bottom, top, colour)


def _rod(start_m: Array, end_m: Array, radius_m: float, colour: Rgb, *, num_sides: int = 10) -> list[Face]:
    along = (end_m - start_m) / np.linalg.norm(end_m - start_m)
    aside = np.cross(along, [0.0, 1.0, 0.0] if abs(along[1]) < 0.9 else [0.0, 0.0, 1.0])
    aside /= np.linalg.norm(aside)
    angles = 2 * np.pi * np.arange(num_sides)[:, None] / num_sides
    ring = radius_m * (np.cos(angles) * aside + np.sin(angles) * np.cross(along, aside))
    return _prism(start_m + ring, end_m + ring, colour)


def _arm(hand44: Array) -> list[Face]:
    """Pedestal, upper arm and forearm, the elbow up: two links that meet the hand, whatever its pose."""
    approach, shoulder_m, upper_m, fore_m = hand44[:3, 2], np.array([0, 0, 0.28]), 0.29, 0.31
    wrist_m = hand44[:3, 3] - 0.09 * approach
    distance_m = np.linalg.norm(wrist_m - shoulder_m)
    towards = (wrist_m - shoulder_m) / distance_m
    side = np.cross([0.0, 0.0, 1.0], towards) / np.linalg.norm(np.cross([0.0, 0.0, 1.0], towards))
    along_m = (upper_m**2 - fore_m**2 + distance_m**2) / (2 * distance_m)
    elbow_m = shoulder_m + towards * along_m + np.cross(towards, side) * np.sqrt(upper_m**2 - along_m**2)
    return [
        *_rod(np.zeros(3), shoulder_m - [0, 0, 0.03], 0.07, _WHITE),
        *_rod(shoulder_m, elbow_m, 0.048, _WHITE),
        *_rod(elbow_m, wrist_m, 0.042, _WHITE),
        *_rod(shoulder_m - 0.07 * side, shoulder_m + 0.07 * side, 0.058, _GREY, num_sides=14),
        *_rod(elbow_m - 0.07 * side, elbow_m + 0.07 * side, 0.058, _GREY, num_sides=14),
        *_rod(wrist_m - 0.045 * side, wrist_m + 0.045 * side, 0.046, _GREY, num_sides=14),
        *_rod(wrist_m, hand44[:3, 3], 0.036, _GREY),
    ]


def _hand(hand44: Array, gripper_position: float) -> list[Face]:
    inner_m = (1 - gripper_position) * MAX_OPENING_M / 2
    outer_m, end_m = inner_m + 0.016, TIP_M + 0.008
    return [
        *_box(hand44, (-0.022, -0.06, 0.0), (0.022, 0.06, 0.06), _GREY),
        *_box(hand44, (-0.011, inner_m, 0.06), (0.011, outer_m, end_m), _BLACK),
        *_box(hand44, (-0.011, -outer_m, 0.06), (0.011, -inner_m, end_m), _BLACK),
    ]


def _objects(cube44: Array, disc44: Array) -> list[Face]:
    half_m, half_height_m = (CUBE_EDGE_M / 2,) * 3, np.array([0, 0, DISC_HEIGHT_M / 2])
    centre_m = disc44[:3, 3]
    disc = _rod(centre_m - half_height_m, centre_m + half_height_m, DISC_RADIUS_M, _BLUE, num_sides=24)
    return [*disc, *_box(cube44, tuple(-m for m in half_m), half_m, _RED)]


@functools.cache
def _table() -> list[Face]:
    """Tiles of slightly different wood: they show motion, and none is so large that it reaches behind a camera."""
    rng = np.random.default_rng(7)
    corners_m = [(x, y) for x in np.linspace(*_TABLE_X_M, 9)[:-1] for y in np.linspace(*_TABLE_Y_M, 17)[:-1]]
    square_m = np.array([[0, 0, 0], [0.125, 0, 0], [0.125, 0.0625, 0], [0, 0.0625, 0]])
    shades = rng.uniform(0.88, 1.08, len(corners_m))
    return [
        _face(square_m + np.array([x, y, 0]), tuple(int(channel * shade) for channel in _WOOD))
        for (x, y), shade in zip(corners_m, shades, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------- cameras


class Camera(NamedTuple):
    """A pinhole: its pose in the world [4, 4] (x right, y down, z forward) and its horizontal field of view."""

    pose44: Array
    field_of_view_deg: float


def _look_at(position_m: tuple[float, ...], target_m: tuple[float, ...], field_of_view_deg: float) -> Camera:
    forward = np.subtract(target_m, position_m) / np.linalg.norm(np.subtract(target_m, position_m))
    right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
    pose44 = np.eye(4)
    pose44[:3] = np.stack([right, np.cross(forward, right), forward, position_m], axis=1)
    return Camera(pose44, field_of_view_deg)


def _cameras(hand44: Array) -> dict[str, Camera]:
    """One camera beside the gripper that looks along it, and two that face each other across the table."""
    frame = hand44.copy()
    frame[:3, :3] = hand44[:3, :3] @ get_embodiment("droid_lerobot").frame_rotation
    mount = transform(np.array([0.0, -0.08, -0.01]), Rotation.from_euler("x", -15, degrees=True))
    return dict(zip(DEMO_CAMERA_KEYS, (
        Camera(frame @ mount, 84.0),
        _look_at((0.86, 0.66, 0.46), (0.30, 0.01, 0.18), 57.0),
        _look_at((0.86, -0.66, 0.46), (0.30, -0.01, 0.18), 57.0),
    ), strict=True))  # fmt: skip


def _project(camera: Camera, points_P3: Array) -> list[tuple[float, float]]:
    """A polygon's corners in pixels of the supersampled image; empty when it reaches behind the camera."""
    points = (points_P3 - camera.pose44[:3, 3]) @ camera.pose44[:3, :3]
    if points[:, 2].min() < 0.005:
        return []
    focal_px = _CANVAS_PX[0] / 2 / np.tan(np.deg2rad(camera.field_of_view_deg) / 2)
    pixels = focal_px * points[:, :2] / points[:, 2:] + np.divide(_CANVAS_PX, 2)
    return [tuple(pixel) for pixel in pixels.tolist()]


def _draw_faces(draw: ImageDraw.ImageDraw, camera: Camera, faces: list[Face]) -> None:
    """Draws what faces the camera, the farthest first."""
    eye_m = camera.pose44[:3, 3]
    seen = [face for face in faces if face.normal @ (eye_m - face.points[0]) > 0]
    for face in sorted(seen, key=lambda face: -np.linalg.norm(face.points.mean(0) - eye_m)):
        if outline := _project(camera, face.points):
            draw.polygon(outline, fill=face.colour)


def _draw_shadow(image: Image.Image, camera: Camera, faces: list[Face]) -> None:
    """Darkens the table where a face stands between it and the light."""
    mask = Image.new("L", image.size)
    low_m, high_m = zip(_TABLE_X_M, _TABLE_Y_M, (0, 0), strict=True)
    for face in (face for face in faces if face.normal @ _TO_LIGHT > 0):
        on_table = np.clip(face.points - face.points[:, 2:] / _TO_LIGHT[2] * _TO_LIGHT, low_m, high_m)
        if outline := _project(camera, on_table):
            ImageDraw.Draw(mask).polygon(outline, fill=90)
    image.paste(_BLACK, mask=mask)


def _render(camera: Camera, bodies: list[Face]) -> NDArray[np.uint8]:
    """One picture [96, 160, 3]. Table, shadow and bodies lie behind one another in this order, whatever the view."""
    image = Image.new("RGB", _CANVAS_PX, _FLOOR)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, _CANVAS_PX[0], _CANVAS_PX[1] * 0.22), fill=_WALL)
    for tile in _table():
        if outline := _project(camera, tile.points):
            draw.polygon(outline, fill=tile.colour)
    _draw_shadow(image, camera, bodies)
    _draw_faces(draw, camera, bodies)
    return np.asarray(image.reduce(_SUPERSAMPLING))


def render_views(
    hand44: Array, cube44: Array, disc44: Array, *, gripper_position: float
) -> dict[str, NDArray[np.uint8]]:
    """What each camera sees, {key: [96, 160, 3]}, of three poses in the world and a gripper (0 open, 1 closed)."""
    bodies = _objects(cube44, disc44) + _hand(hand44, gripper_position) + _arm(hand44)
    return {key: _render(camera, bodies) for key, camera in _cameras(hand44).items()}

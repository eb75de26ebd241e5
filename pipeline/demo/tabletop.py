"""The demo's renderer: an arm over a table as three pinhole cameras see it. May import `embodiments`; does no I/O.

World frame: the robot's base, x forward, y left, z up, metres. The hand's frame is DROID's (panda_link8): z is the
approach axis, the fingers open along y. Whatever is rigid is a *part*: its faces are built once, in its own frame, and
a picture is drawn from one pose per part. Shapes: N points, F faces, P points of one face, 44 one transform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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

TIP_M = 0.145  # from the hand's origin to where the fingertips grasp, along z
MAX_OPENING_M = 0.085

SUPERSAMPLING = 3  # pixels are drawn so many times as large, and then averaged
_CANVAS_PX = (DEMO_WIDTH_PX * SUPERSAMPLING, DEMO_HEIGHT_PX * SUPERSAMPLING)
_TABLE_X_M, _TABLE_Y_M = (-0.16, 0.84), (-0.5, 0.5)
_WAVE_M = 0.4  # of the cloth on the table
_WHITE, _GREY, _BLACK = (234, 234, 230), (124, 130, 140), (54, 56, 62)
_SHOULDER_M, _UPPER_M, _FORE_M, _WRIST_M = 0.28, 0.29, 0.31, 0.09
_NEAR_M = 0.005


def transform(xyz_m: Array, rotation: Rotation) -> Array:
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation.as_matrix(), xyz_m
    return transform


@dataclass(frozen=True)
class Look:
    """What differs from scene to scene: colours, and the light's direction (a unit vector towards it)."""

    cloth: Rgb = (190, 182, 170)
    wall: Rgb = (208, 216, 222)
    floor: Rgb = (118, 122, 128)
    to_light: tuple[float, float, float] = (0.2503, -0.3504, 0.9025)


@dataclass(frozen=True)
class Solid:
    """An object on the table: upright, its origin at its centre; a box, or a prism that is nearly round."""

    name: str  # as tasks call it: "red cube"
    colour: Rgb
    width_m: float  # across, along the fingers' way
    length_m: float
    height_m: float
    is_round: bool = False


# ----------------------------------------------------------------------------------------------------------- parts


class _Faces(NamedTuple):
    """Flat convex polygons, counter-clockwise seen from outside, each in the frame of its part."""

    points_N3: Array
    starts: NDArray[np.intp]  # [F + 1] where each face's points begin
    normals_F3: Array
    centres_F3: Array
    colours_F3: Array
    parts_F: NDArray[np.intp]


def _prism(bottom_P3: Array, top_P3: Array) -> list[Array]:
    """The solid between two polygons with as many corners, the bottom one counter-clockwise seen from the top."""
    rings = [np.stack([bottom_P3[i - 1], bottom_P3[i], top_P3[i], top_P3[i - 1]]) for i in range(len(top_P3))]
    return [*rings, bottom_P3[::-1], top_P3]


def _raised(points_P3: Array, z_m: float) -> Array:
    return points_P3 + np.array([0, 0, z_m])


def _box(low_m: Sequence[float], high_m: Sequence[float]) -> list[Array]:
    (x0, y0, z0), (x1, y1, z1) = low_m, high_m
    ring = np.array([[x0, y0, 0], [x1, y0, 0], [x1, y1, 0], [x0, y1, 0]])
    return _prism(_raised(ring, z0), _raised(ring, z1))


def _rod(length_m: float, radius_m: float, *, start_m: float = 0.0, num_sides: int = 10) -> list[Array]:
    """Along z from `start_m`."""
    angles = 2 * np.pi * np.arange(num_sides) / num_sides
    ring = radius_m * np.stack([np.cos(angles), np.sin(angles), np.zeros(num_sides)], axis=1)
    return _prism(_raised(ring, start_m), _raised(ring, start_m + length_m))


def _solid(solid: Solid) -> list[Array]:
    if solid.is_round:
        return _rod(solid.height_m, solid.width_m / 2, start_m=-solid.height_m / 2, num_sides=20)
    half = np.array([solid.length_m, solid.width_m, solid.height_m]) / 2
    return _box(-half, half)


_FINGER_M = (-0.011, 0.0, 0.06), (0.011, 0.016, TIP_M + 0.008)
_ROBOT: tuple[tuple[list[Array], Rgb], ...] = (
    (_rod(_SHOULDER_M - 0.03, 0.07), _WHITE),
    (_rod(_UPPER_M, 0.048), _WHITE),
    (_rod(_FORE_M, 0.042), _WHITE),
    (_rod(0.14, 0.058, start_m=-0.07, num_sides=14), _GREY),
    (_rod(0.14, 0.058, start_m=-0.07, num_sides=14), _GREY),
    (_rod(0.09, 0.046, start_m=-0.045, num_sides=14), _GREY),
    (_rod(_WRIST_M, 0.036, start_m=-_WRIST_M), _GREY),
    (_box((-0.022, -0.06, 0.0), (0.022, 0.06, 0.06)), _GREY),
    (_box(*_FINGER_M), _BLACK),
    (_box((_FINGER_M[0][0], -_FINGER_M[1][1], _FINGER_M[0][2]), (_FINGER_M[1][0], 0.0, _FINGER_M[1][2])), _BLACK),
)


def _robot_poses(hand44: Array, gripper_position: float) -> list[Array]:
    """One pose for each of `_ROBOT`: two links, the elbow up, that meet the hand whatever its pose."""
    approach, shoulder_m = hand44[:3, 2], np.array([0, 0, _SHOULDER_M])
    wrist_m = hand44[:3, 3] - _WRIST_M * approach
    distance_m = np.linalg.norm(wrist_m - shoulder_m)
    towards = (wrist_m - shoulder_m) / distance_m
    side = np.cross([0.0, 0.0, 1.0], towards)
    side /= np.linalg.norm(side)
    along_m = (_UPPER_M**2 - _FORE_M**2 + distance_m**2) / (2 * distance_m)
    across_m = np.sqrt(max(_UPPER_M**2 - along_m**2, 0.0))
    elbow_m = shoulder_m + towards * along_m + np.cross(towards, side) * across_m
    inner_m = (1 - gripper_position) * MAX_OPENING_M / 2
    return [
        np.eye(4),
        _along(shoulder_m, elbow_m - shoulder_m, side),
        _along(elbow_m, wrist_m - elbow_m, side),
        *(_along(joint_m, side, towards) for joint_m in (shoulder_m, elbow_m, wrist_m)),
        *(hand44, hand44),
        *(hand44 @ _shifted_y(shift_m) for shift_m in (inner_m, -inner_m)),
    ]


def _along(origin_m: Array, z: Array, aside: Array) -> Array:
    """A frame at `origin_m` with this z axis; `aside` is any other direction."""
    z = z / np.linalg.norm(z)
    x = aside - (aside @ z) * z
    x = x / np.linalg.norm(x)
    pose44 = np.eye(4)
    pose44[:3, 0], pose44[:3, 1], pose44[:3, 2], pose44[:3, 3] = x, np.cross(z, x), z, origin_m
    return pose44


def _shifted_y(shift_m: float) -> Array:
    pose44 = np.eye(4)
    pose44[1, 3] = shift_m
    return pose44


def _gather(parts: Sequence[tuple[list[Array], Rgb]]) -> _Faces:
    faces = [(points, colour, index) for index, (polygons, colour) in enumerate(parts) for points in polygons]
    normals = np.array([np.cross(points[1] - points[0], points[2] - points[1]) for points, _, _ in faces])
    return _Faces(
        points_N3=np.concatenate([points for points, _, _ in faces]),
        starts=np.cumsum([0, *(len(points) for points, _, _ in faces)]),
        normals_F3=normals / np.linalg.norm(normals, axis=1, keepdims=True),
        centres_F3=np.array([points.mean(0) for points, _, _ in faces]),
        colours_F3=np.array([colour for _, colour, _ in faces], dtype=float),
        parts_F=np.array([index for _, _, index in faces]),
    )


# --------------------------------------------------------------------------------------------------------- cameras


class Camera(NamedTuple):
    """A pinhole: its pose in the world [4, 4] (x right, y down, z forward) and its horizontal field of view."""

    pose44: Array
    field_of_view_deg: float

    def project(self, points_N3: Array) -> tuple[Array, Array]:
        """Pixels of the supersampled canvas [N, 2] and depth in metres [N]; pixels mean nothing behind the camera."""
        points = (points_N3 - self.pose44[:3, 3]) @ self.pose44[:3, :3]
        focal_px = _CANVAS_PX[0] / 2 / np.tan(np.deg2rad(self.field_of_view_deg) / 2)
        depth_m = points[:, 2:]
        return focal_px * points[:, :2] / np.maximum(depth_m, _NEAR_M) + np.divide(_CANVAS_PX, 2), depth_m[:, 0]

    def rays(self) -> Array:
        """[96, 160, 3] where each of the picture's pixels looks, in the world; one metre deep."""
        focal_px = DEMO_WIDTH_PX / 2 / np.tan(np.deg2rad(self.field_of_view_deg) / 2)
        columns = (np.arange(DEMO_WIDTH_PX) + 0.5 - DEMO_WIDTH_PX / 2) / focal_px
        rows = (np.arange(DEMO_HEIGHT_PX) + 0.5 - DEMO_HEIGHT_PX / 2) / focal_px
        right, down = np.meshgrid(columns, rows)
        return np.stack([right, down, np.ones_like(right)], axis=-1) @ self.pose44[:3, :3].T


def _look_at(position_m: tuple[float, ...], target_m: tuple[float, ...], field_of_view_deg: float) -> Camera:
    forward = np.subtract(target_m, position_m) / np.linalg.norm(np.subtract(target_m, position_m))
    right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
    pose44 = np.eye(4)
    pose44[:3] = np.stack([right, np.cross(forward, right), forward, position_m], axis=1)
    return Camera(pose44, field_of_view_deg)


_MOUNT = transform(np.array([0.0, -0.08, -0.01]), Rotation.from_euler("x", -15, degrees=True))
EXTERIOR_CAMERAS: Mapping[str, Camera] = MappingProxyType(
    {
        DEMO_CAMERA_KEYS[1]: _look_at((0.86, 0.66, 0.46), (0.30, 0.01, 0.18), 57.0),
        DEMO_CAMERA_KEYS[2]: _look_at((0.86, -0.66, 0.46), (0.30, -0.01, 0.18), 57.0),
    }
)


def _wrist_camera(hand44: Array) -> Camera:
    """Beside the gripper, looking along it."""
    frame = hand44.copy()
    frame[:3, :3] = hand44[:3, :3] @ get_embodiment("droid_lerobot").frame_rotation
    return Camera(frame @ _MOUNT, 84.0)


# --------------------------------------------------------------------------------------------------------- pictures


class Renderer:
    """Draws one scene: the robot, `solids` and the table, as `look` has them."""

    def __init__(self, solids: Sequence[Solid], look: Look) -> None:
        self._names = [solid.name for solid in solids]
        self._faces = _gather([*_ROBOT, *((_solid(solid), solid.colour) for solid in solids)])
        self._look, self._to_light = look, np.array(look.to_light)
        self._exterior_tables = [self._draw_table(camera) for camera in EXTERIOR_CAMERAS.values()]

    def views(self, hand44: Array, poses: Mapping[str, Array], gripper_position: float) -> dict[str, NDArray[np.uint8]]:
        """What each camera sees, {key: [96, 160, 3]}, of the hand's pose, each solid's, and a gripper (1: closed)."""
        pose_Q44 = np.stack([*_robot_poses(hand44, gripper_position), *(poses[name] for name in self._names)])
        of_point = np.repeat(self._faces.parts_F, np.diff(self._faces.starts))
        rotations, shifts = pose_Q44[:, :3, :3], pose_Q44[:, :3, 3]
        points = np.einsum("nij,nj->ni", rotations[of_point], self._faces.points_N3) + shifts[of_point]
        of_face = self._faces.parts_F
        centres = np.einsum("nij,nj->ni", rotations[of_face], self._faces.centres_F3) + shifts[of_face]
        normals = np.einsum("nij,nj->ni", rotations[of_face], self._faces.normals_F3)
        wrist = _wrist_camera(hand44)
        pictures = []
        for camera, table in zip((wrist, *EXTERIOR_CAMERAS.values()), (None, *self._exterior_tables), strict=True):
            image = self._draw_table(camera) if table is None else table.copy()
            self._draw_shadow(image, camera, points, normals)
            self._draw_faces(image, camera, points, centres, normals)
            pictures.append(np.asarray(image.reduce(SUPERSAMPLING)))
        return dict(zip(DEMO_CAMERA_KEYS, pictures, strict=True))

    def _draw_table(self, camera: Camera) -> Image.Image:
        """The table lies behind everything, whatever the view. What it looks like is smooth, so pixels are enough."""
        rays, eye_m = camera.rays(), camera.pose44[:3, 3]
        away = eye_m[2] / np.maximum(-rays[..., 2:], _NEAR_M)
        points = eye_m + away * rays
        low_m, high_m = np.stack([_TABLE_X_M, _TABLE_Y_M], axis=1)
        is_table = (rays[..., 2] < 0) & ((low_m < points[..., :2]) & (points[..., :2] < high_m)).all(-1)
        picture = np.empty((*is_table.shape, 3))
        picture[:] = self._look.floor
        picture[: round(DEMO_HEIGHT_PX * 0.22)] = self._look.wall
        picture[is_table] = _cloth(points[is_table], self._look)
        return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize(_CANVAS_PX, Image.Resampling.BILINEAR)

    def _draw_shadow(self, image: Image.Image, camera: Camera, points_N3: Array, normals_F3: Array) -> None:
        """Darkens the table where a face stands between it and the light."""
        low_m, high_m = zip(_TABLE_X_M, _TABLE_Y_M, (0, 0), strict=True)
        on_table = np.clip(points_N3 - points_N3[:, 2:] / self._to_light[2] * self._to_light, low_m, high_m)
        mask = Image.new("L", image.size)
        draw = ImageDraw.Draw(mask)
        for outline, _ in self._outlines(camera, on_table, np.flatnonzero(normals_F3 @ self._to_light > 0)):
            draw.polygon(outline, fill=70)
        image.paste(_BLACK, mask=mask)

    def _draw_faces(
        self, image: Image.Image, camera: Camera, points_N3: Array, centres_F3: Array, normals_F3: Array
    ) -> None:
        """Draws what faces the camera, the farthest first."""
        to_eye = camera.pose44[:3, 3] - centres_F3
        seen = np.flatnonzero((normals_F3 * to_eye).sum(1) > 0)
        farthest_first = seen[np.argsort(-np.linalg.norm(to_eye[seen], axis=1), kind="stable")]
        light = 0.62 + 0.38 * normals_F3 @ self._to_light
        colours = (light[:, None] * self._faces.colours_F3).clip(0, 255).astype(int).tolist()
        draw = ImageDraw.Draw(image)
        for outline, face in self._outlines(camera, points_N3, farthest_first):
            draw.polygon(outline, fill=tuple(colours[face]))

    def _outlines(self, camera: Camera, points_N3: Array, faces: NDArray[np.intp]) -> list[tuple[list[float], int]]:
        """Each face's corners in pixels, one after the other, and its number; none of a face behind the camera."""
        pixels, depth_m = camera.project(points_N3)
        nearest_m = np.minimum.reduceat(depth_m, self._faces.starts[:-1])
        flat, starts = pixels.ravel().tolist(), (2 * self._faces.starts).tolist()
        return [(flat[starts[face] : starts[face + 1]], face) for face in faces.tolist() if nearest_m[face] > _NEAR_M]


def _cloth(points_N3: Array, look: Look) -> Array:
    """[N, 3] colours: waves of light along x and y. Smooth, so that a few numbers tell where it went; and of one hue,
    so that what has a colour is an object.
    """
    waves = np.sin(2 * np.pi * points_N3[:, :2] / _WAVE_M).sum(1, keepdims=True)
    return (0.62 + 0.38 * look.to_light[2]) * (0.8 + 0.2 * waves) * look.cloth

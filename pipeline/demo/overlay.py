"""The demo's labels over its video: the way that they lead and the way that the hand went, as its cameras see them.

Only the demo knows its cameras, so this is no general viewer. May import the demo, `actions`, and readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.actions import geodesic_angle, integrate_actions, poses_from_xyz_euler, rot6d_to_matrix
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.demo.tabletop import DEMO_CAMERA_KEYS, EXTERIOR_CAMERAS, SUPERSAMPLING, TIP_M, Camera
from pipeline.embodiments import get_embodiment
from pipeline.errors import ResultError
from pipeline.outputs.merging import read_merged

_ZOOM = 3
_STATES = "observation.state.cartesian_position"
_ACTIONS = "action"
_TRUE, _LABELLED = (250, 250, 250), (255, 96, 32)
_INK, _PAPER, _GRID = (32, 34, 40), (252, 252, 250), (214, 216, 220)
_TEXT_PX, _GAP_PX, _PLOT_WIDTH_PX = 13, 8, 420
# What a curve shows, of actions [N, 10], and its unit.
_CURVES = {
    "distance per step, mm": lambda actions: 1e3 * np.linalg.norm(actions[:, :3], axis=1),
    "turn per step, degrees": lambda actions: np.rad2deg(geodesic_angle(rot6d_to_matrix(actions[:, 3:9]), np.eye(3))),
    "gripper, 1 = open": lambda actions: actions[:, 9],
}


def draw_labels(output_dir: Path, dataset_root: Path, path: Path, *, episodes: Sequence[int]) -> Path:
    """Writes one row per episode to `path` (PNG): two cameras with both ways drawn in, and curves over time.

    `output_dir` is a finished label run's, `dataset_root` the demo dataset that it labelled. The labelled way begins
    at the first recorded pose and follows the labels alone. Raises ResultError where an episode has no labels.
    """
    rows, dataset = read_merged(output_dir / "labels"), open_dataset(dataset_root)
    strips = [_draw_episode(rows, dataset, index) for index in episodes]
    width = max(strip.width for strip in strips)
    picture = Image.new("RGB", (width, sum(strip.height + _GAP_PX for strip in strips) + 24), _PAPER)
    _write_legend(picture)
    top = 24
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height + _GAP_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return path


def _draw_episode(rows: pa.Table, dataset: RobotVideoDataset, index: int) -> Image.Image:
    own = rows.filter(pc.and_(pc.equal(rows["episode_index"], index), rows["action_valid"])).sort_by("frame_index")
    if not own.num_rows:
        raise ResultError(f"Episode {index} has no labels. Run jobs/label_inverse.py again until it is complete.")
    labelled = np.array(own["action"].to_pylist(), dtype=np.float64)
    columns = dataset.read_columns(index, (_STATES, _ACTIONS))
    poses = poses_from_xyz_euler(columns[_STATES], get_embodiment("droid_lerobot").frame_rotation)
    true = columns[_ACTIONS][:-1]  # nothing follows the last frame
    ways = {_TRUE: poses, _LABELLED: integrate_actions(poses[0], labelled)}
    views = []
    for key in DEMO_CAMERA_KEYS[1:]:
        [frame] = dataset.read_frames(index, key, [len(labelled) // 2])
        views.append(_draw_ways(frame, EXTERIOR_CAMERAS[key], ways))
    plot = _draw_curves(true, labelled, views[0].height, dataset.episode(index).task)
    strip = Image.new("RGB", (sum(view.width + _GAP_PX for view in views) + plot.width, views[0].height), _PAPER)
    left = 0
    for part in (*views, plot):
        strip.paste(part, (left, 0))
        left += part.width + _GAP_PX
    return strip


def _draw_ways(
    frame: NDArray[np.uint8], camera: Camera, ways: dict[tuple[int, int, int], NDArray[np.floating]]
) -> Image.Image:
    """Lines of the fingertips over an enlarged picture, each with a ring at its end."""
    image = Image.fromarray(frame).resize((frame.shape[1] * _ZOOM, frame.shape[0] * _ZOOM), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for colour, poses in ways.items():
        pixels, _ = camera.project(poses[:, :3, 3] + TIP_M * poses[:, :3, 2])
        points = [tuple(point) for point in (pixels * _ZOOM / SUPERSAMPLING).tolist()]
        draw.line(points, fill=_INK, width=5, joint="curve")
        draw.line(points, fill=colour, width=3, joint="curve")
        x, y = points[-1]
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=colour, width=3)
    return image


def _draw_curves(true: NDArray, labelled: NDArray, height_px: int, task: str) -> Image.Image:
    image = Image.new("RGB", (_PLOT_WIDTH_PX, height_px), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_TEXT_PX)
    draw.text((4, 0), task, fill=_INK, font=font)
    room = (height_px - 20) // len(_CURVES)
    for number, (name, curve) in enumerate(_CURVES.items()):
        top = 20 + number * room
        box = (4, top + 16, _PLOT_WIDTH_PX - 8, top + room - 6)
        values = [curve(true), curve(labelled)]
        highest = max(1.0, *(float(part.max()) for part in values))
        draw.text((4, top), f"{name} (up to {highest:.0f})", fill=_INK, font=font)
        draw.rectangle(box, outline=_GRID)
        for part, colour in zip(values, (_INK, _LABELLED), strict=True):
            xs = np.linspace(box[0], box[2], len(part))
            ys = box[3] - (box[3] - box[1]) * part.clip(0, highest) / highest
            draw.line([tuple(point) for point in np.stack([xs, ys], axis=1).tolist()], fill=colour, width=2)
    return image


def _write_legend(picture: Image.Image) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT_PX)
    draw.text((4, 4), "recorded (white, black)", fill=_INK, font=font)
    draw.text((180, 4), "labelled from the video alone", fill=_LABELLED, font=font)

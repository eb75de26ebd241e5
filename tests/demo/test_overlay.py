"""The picture of the demo's labels: lines where the cameras see the ways, both of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo import overlay
from pipeline.demo.choreography import true_actions
from pipeline.demo.dataset import write_demo_dataset
from pipeline.demo.overlay import draw_labels
from pipeline.demo.scripted import play_demo
from pipeline.demo.tabletop import DEMO_CAMERA_KEYS, EXTERIOR_CAMERAS, SUPERSAMPLING, TIP_M
from pipeline.errors import ResultError

LABELLED = np.array(overlay._LABELLED)


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory) -> Path:
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "dataset")


def write_labels(folder: Path, actions: np.ndarray) -> Path:
    valid = len(actions)
    table = pa.table(
        {
            "episode_index": [0] * (valid + 1),
            "frame_index": list(range(valid + 1)),
            "action": [*actions.astype(np.float32).tolist(), None],
            "action_valid": [True] * valid + [False],
        }
    )
    (folder / "labels").mkdir(parents=True)
    pq.write_table(table, folder / "labels" / "part-00000.parquet")
    return folder


def labelled_pixels(picture: Path, camera: int) -> np.ndarray:
    """[N, 2] in the first row's picture of that camera, in its own pixels (160 x 96)."""
    image = np.asarray(Image.open(picture).convert("RGB"))[24 : 24 + 96 * 3]
    left = camera * (160 * 3 + 8)
    view = image[:, left : left + 160 * 3].astype(int)
    rows, columns = np.nonzero(np.abs(view - LABELLED).max(axis=2) < 8)
    return np.stack([columns, rows], axis=1) / 3


@pytest.mark.parametrize("camera", [0, 1])
def test_right_labels_lead_where_the_hand_went(dataset_root, tmp_path, camera):
    recording = play_demo(seed=0)[0]
    output = write_labels(tmp_path, true_actions(recording)[:-1])
    picture = draw_labels(output, dataset_root, tmp_path / "labels.png", episodes=[0])
    tips = recording.hand_poses[:, :3, 3] + TIP_M * recording.hand_poses[:, :3, 2]
    way, _ = EXTERIOR_CAMERAS[DEMO_CAMERA_KEYS[1 + camera]].project(tips)
    found = labelled_pixels(picture, camera)
    distances = np.linalg.norm(found[:, None] - way[None] / SUPERSAMPLING, axis=2)
    assert distances.min(axis=0).max() < 1.5, "some of the way is not drawn"
    assert distances.min(axis=1).max() < 5, "something is drawn elsewhere"


def test_wrong_labels_lead_elsewhere(dataset_root, tmp_path):
    actions = true_actions(play_demo(seed=0)[0])[:-1].copy()
    actions[:, :3] *= -1
    picture = draw_labels(write_labels(tmp_path, actions), dataset_root, tmp_path / "labels.png", episodes=[0])
    tips = play_demo(seed=0)[0].hand_poses
    end, _ = EXTERIOR_CAMERAS[DEMO_CAMERA_KEYS[1]].project(tips[-1:, :3, 3] + TIP_M * tips[-1:, :3, 2])
    distances = np.linalg.norm(labelled_pixels(picture, 0) - end / SUPERSAMPLING, axis=1)
    assert distances.min() > 4


def test_an_episode_without_labels_is_named(dataset_root, tmp_path):
    output = write_labels(tmp_path, true_actions(play_demo(seed=0)[0])[:-1])
    with pytest.raises(ResultError, match="Episode 3 has no labels"):
        draw_labels(output, dataset_root, tmp_path / "labels.png", episodes=[0, 3])

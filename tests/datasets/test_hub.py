"""A dataset read from the Hugging Face Hub's address, here a server on loopback that answers as the Hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import dataset_factory
from hub_server import HubServer

from pipeline.datasets import open_dataset

FRONT = "observation.images.front"

# The Hub's client reads its endpoint when it is imported, so the dataset is read in a process of its own.
PROGRAM = f"""
import json
from dataset_factory import read_ids
from pipeline.datasets import open_dataset
from pipeline.datasets.video import read_video_frames
from pipeline.errors import PipelineError

def error_of(call):
    try:
        call()
    except PipelineError as error:
        return f"{{type(error).__name__}}: {{error}}"

dataset = open_dataset("hf://datasets/org/name")
print(json.dumps({{
    "format": dataset.format,
    "cameras": dataset.cameras,
    "fingerprint": dataset.fingerprint(),
    "identity": dataset.episode_identity(3, dataset.cameras),
    "ids": read_ids(dataset.read_frames(3, {FRONT!r}, range(40))),
    "action": dataset.read_columns(2, ["action"])["action"].tolist(),
    "other dataset": error_of(lambda: open_dataset("hf://datasets/org/other")),
    "other folder": error_of(lambda: open_dataset("hf://datasets/org/name/data")),
    "file": error_of(lambda: read_video_frames(dataset.root / "videos/gone.mp4", [0.0], tolerance_s=0.01)),
}}))
"""


def test_it_is_the_dataset_on_the_disk(v3):
    server = HubServer(v3.root, "org/name")
    paths = os.pathsep.join([os.getcwd(), os.path.dirname(dataset_factory.__file__)])
    told = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "PYTHONPATH": paths}
    finished = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | told, capture_output=True, text=True)
    server.stop()
    assert finished.returncode == 0, finished.stderr
    found, local = json.loads(finished.stdout), open_dataset(v3.root)
    assert (found["format"], tuple(found["cameras"])) == ("lerobot_v3", local.cameras)
    assert found["fingerprint"] == local.fingerprint()
    assert found["identity"] == local.episode_identity(3, local.cameras)
    assert found["ids"] == v3.ids(3, FRONT, range(40))
    assert found["action"] == local.read_columns(2, ["action"])["action"].tolist()
    nothing = "DatasetError: hf://datasets/org/other: expected a dataset folder, found nothing"
    assert found["other dataset"].startswith(nothing)
    assert "or video files (.avi, .mkv, .mov, .mp4, .webm), found chunk-000;" in found["other folder"]
    assert found["file"].startswith(
        "VideoError: hf://datasets/org/name/videos/gone.mp4: expected a video file, found no"
    )

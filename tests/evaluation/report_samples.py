"""A made-up evaluation to report: three episodes of real little videos, and metrics that lack this and that."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from pipeline.evaluation.report import VIDEO_KINDS, GalleryItem, write_report

FPS, NUM_FRAMES, HEIGHT, WIDTH = 10, 40, 64, 96
HOSTILE = "</script><img src=x onerror=alert(1)><b>bold</b> & \u2028 'quotes'"
NAMES, UNITS = ["dx_m", "dy_m", "dz_m", "gripper_open"], ["m", "m", "m", ""]


def write_video(path: Path, num_frames: int = NUM_FRAMES) -> Path:
    """A white bar that stands at another place in every frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(num_frames):
            image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            image[:, 2 * index : 2 * index + 6] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_item(folder: Path, episode_index: int, task: str, psnr: float | None) -> GalleryItem:
    action = [[0.01 * np.sin(step / 5), 0.0, -0.002, 1.0] for step in range(NUM_FRAMES - 1)]
    return GalleryItem(
        episode_index=episode_index,
        task=task,
        fps=FPS,
        num_frames=NUM_FRAMES,
        videos={kind: write_video(folder / f"{episode_index}_{kind}.mp4") for kind in VIDEO_KINDS},
        frame_indexes=range(100, 100 + NUM_FRAMES),
        rollout_starts=[0, 16, 32],
        scores={"psnr": psnr, "ssim": 0.8, "lpips": None, "translation_error_m": 0.1 / episode_index},
        psnr=[None if frame % 16 == 0 else 30 - frame % 16 / 2 for frame in range(NUM_FRAMES)],
        action_names=NAMES,
        action_units=UNITS,
        actions_given=action,
        actions_recovered=[[None, *row[1:]] for row in action],
    )


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5, "std_over_samples": 0.25, "num_episodes": 3}


METRICS = {
    "verdict": "Better than a copy. It does as it is told.",
    "episodes": 3,
    "frames": 1120,
    "num_samples": 2,
    "lpips_status": "No weights on this machine.",
    "obedience": 4.75,
    "metrics": {
        "psnr": {variant: estimate(mean) for variant, mean in {"recorded": 24.25, "copy": 20.0}.items()},
        "moving_psnr": {"recorded": {"mean": np.float32(17.5), "low": None, "high": float("nan")}, "copy": None},
    },
    "drops": {"other_actions": {"psnr": estimate(4.5), "moving_psnr": estimate(4.75)}, "zero_motion": None},
    "gains": {"copy": {"psnr": estimate(3.5), "moving_psnr": estimate(4.25)}, "ceiling": None},
    "horizon": [
        {"step": step, "num_episodes": 3, "recorded": {"psnr": estimate(30 - step)}, "copy": {"psnr": None}}
        for step in range(1, 17)
    ],
    "agreement": None,
}


def make_gallery(folder: Path) -> list[GalleryItem]:
    """Three episodes; the second has a hostile task, and no PSNR."""
    tasks = {4: ("Push the disc.", 21.5), 2: (HOSTILE, None), 9: ("Stack the cubes.", 19.25)}
    return [make_item(folder, index, *entry) for index, entry in tasks.items()]


def write_sample(folder: Path, gallery: list[GalleryItem], metrics: dict = METRICS, **changed) -> Path:
    facts = {
        "settings": {"seed": 0, "engine": {"cfg": None}},
        "checkpoint": {"id": "tiny"},
        "dataset": {"root": "/a/b"},
    }
    return write_report(folder, metrics=metrics, gallery=gallery, **(facts | changed))

"""Generated episodes as a LeRobot v3.0 dataset. Owns its columns, its folder's life, and how it says it is synthetic.

lerobot itself writes, into a local folder; for an object store that is a temporary one, from which the dataset is
brought there. It is imported only while it writes, because that takes 17 s and brings torch along. May import the
video reader and writer and storage, neither torch nor Ray.

Frame t and action t go together: the action leads from this frame to the next. A video has one frame more than
actions; that last frame is left out, because it has no action and nothing is made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from pipeline.datasets.video import VideoInfo, probe_video
from pipeline.errors import ConfigError, DatasetError, ResultError
from pipeline.outputs.quiet import quiet_lerobot
from pipeline.outputs.videos import DEFAULT_CRF, local_video, read_clips
from pipeline.outputs.writing import BEING_REPLACED, replacing
from pipeline.storage import absolute, kind, list_files, open_path, read_bytes

if TYPE_CHECKING:
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

GENERATOR_PATH = "meta/generator.json"  # where this is, the dataset is complete

_CLIP_FRAMES = 32
_MIN_ACTIONS = 2  # lerobot takes no image statistics of a single frame, and then cannot write any
_KEYFRAME_INTERVAL = 2  # LeRobot's own: training reads single frames at random


@dataclass(frozen=True, kw_only=True)
class SyntheticEpisode:
    """One generated video and the actions that go with it."""

    task: str
    video: Path | UPath  # MP4 with T+1 frames: frame t and action t go together; the last frame has no action
    actions: np.ndarray  # float32 [T, D], physical units
    source_episode_index: int
    source_frame_indexes: np.ndarray  # int64 [T]: the dataset's frame at each moment, recorded or not
    sample: int  # tells apart several videos of the same start


def write_synthetic_dataset(
    root: str | Path | UPath,
    episodes: Iterable[SyntheticEpisode],
    *,
    fps: float,
    camera: str,
    action_names: Sequence[str],
    robot_type: str,
    generator: Mapping[str, Any],
) -> int:
    """Write a LeRobot v3.0 dataset and return its number of episodes; `root` appears at once and whole.

    On an object store: as `writing` says, and `generator.json` is there only as long as everything else is.

    Columns: `camera`, a feature name like "observation.images.front" (video, H.264), `action` float32 [D] named by
    `action_names`, `is_synthetic` bool (true), `source_episode_index`, `source_frame_index`, `sample` int64. Each
    episode has T frames: its video's last one is left out. `generator` (JSON-able) says what made the frames, and goes
    to meta/generator.json and README.md. Episodes are asked for one by one, and at most one is in memory. A dataset
    of this function at `root` is replaced; after an error it stays, and nothing else is left.

    Raises `ConfigError` for a fractional `fps`, `DatasetError` when `root` holds anything else or when lerobot lost
    frames, `ResultError` when there is no episode, or one whose video and actions do not go together, `VideoError`
    when a video cannot be read, `StorageError` when there is no room.
    """
    root = open_path(absolute(root))
    rate = whole_fps(fps)
    recorded_generator = json.dumps(dict(generator), indent=2, sort_keys=True, allow_nan=False)
    _refuse_anything_else(root)
    num_actions, episodes = len(action_names), iter(episodes)
    first = next(episodes, None)
    if first is None:
        raise ResultError(f"{root}: expected episodes to write, found none; the summary says why they failed")
    with local_video(first.video) as video:
        shape = _shape(_check_episode(first, video, rate, num_actions))
    with replacing(root, last=GENERATOR_PATH) as new, quiet_lerobot():
        dataset = _create(new.path, rate, robot_type, _features(camera, shape, action_names))
        num_episodes = _write_episodes(dataset, chain([first], episodes), camera, shape, num_actions)
        _require_all_frames(new.path, camera, dataset.meta.total_frames)
        (new.path / GENERATOR_PATH).write_text(recorded_generator + "\n", encoding="utf-8")
        (new.path / "README.md").write_text(_card(recorded_generator), encoding="utf-8")
    return num_episodes


def whole_fps(fps: float) -> int:
    """The rate as LeRobot takes it. Raises `ConfigError` for a fractional one."""
    if not float(fps).is_integer() or fps < 1:
        raise ConfigError(
            f"a LeRobot dataset's frame rate is a whole number, found {fps:g} frames per second; generate at a whole "
            "rate, or do without it (--lerobot_dataset false): the videos and their rows keep any rate"
        )
    return int(fps)


def read_generator(root: str | Path | UPath) -> dict[str, Any] | None:
    """What made the synthetic dataset at `root`; None where there is no complete one."""
    try:
        return json.loads(read_bytes(open_path(root) / GENERATOR_PATH))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_anything_else(root: Path | UPath) -> None:
    """Replacing is for what can be written again, never for what somebody recorded."""
    is_file = kind(root) == "file"
    names = [] if is_file else list(list_files(root))
    if is_file or (names and not {GENERATOR_PATH, BEING_REPLACED}.intersection(names)):
        raise DatasetError(
            f"{root}: expected nothing, or a synthetic dataset (with {GENERATOR_PATH}) to replace, found something "
            "else; remove it or name another folder"
        )


def _check_episode(episode: SyntheticEpisode, video: Path, fps: int, num_actions: int) -> VideoInfo:
    """`video` is the local copy."""
    actions, where = episode.actions, episode.video
    if actions.ndim != 2 or actions.shape[1] != num_actions or actions.dtype != np.float32:
        raise ResultError(
            f"{where}: expected float32 actions [T, {num_actions}], found {actions.dtype} {list(actions.shape)}; "
            f"action_names has {num_actions} names: give those of these actions"
        )
    if len(actions) < _MIN_ACTIONS:
        raise ResultError(
            f"{where}: expected {_MIN_ACTIONS} actions or more, found {len(actions)}; leave this episode out"
        )
    if not np.isfinite(actions).all():
        raise ResultError(f"{where}: expected finite actions, found NaN or infinity; leave this episode out")
    if episode.source_frame_indexes.shape != (len(actions),):
        raise ResultError(
            f"{where}: expected a source frame for each of {len(actions)} actions, found "
            f"{list(episode.source_frame_indexes.shape)}"
        )
    info = probe_video(video)
    if info.num_frames != len(actions) + 1:
        raise ResultError(
            f"{where}: expected {len(actions) + 1} frames, one more than actions, found {info.num_frames}; the two do "
            "not belong together: generate the video again"
        )
    if abs(info.fps - fps) > 1e-6 * fps:
        raise ResultError(f"{where}: expected {fps} frames per second, found {info.fps:g}; generate it again")
    return info


def _shape(info: VideoInfo) -> tuple[int, int, int]:
    return (info.height, info.width, 3)


def _features(camera: str, shape: tuple[int, int, int], action_names: Sequence[str]) -> dict[str, dict]:
    def one(dtype: str) -> dict:
        return {"dtype": dtype, "shape": (1,), "names": None}

    return {
        camera: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (len(action_names),), "names": list(action_names)},
        "is_synthetic": one("bool"),
        "source_episode_index": one("int64"),
        "source_frame_index": one("int64"),
        "sample": one("int64"),
    }


def _create(root: Path, fps: int, robot_type: str, features: dict[str, dict]) -> LeRobotDataset:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset.create(
        f"synthetic/{root.name}",
        fps=fps,
        features=features,
        root=root,
        robot_type=robot_type,
        use_videos=True,
        video_backend="pyav",  # named, so that lerobot does not try, and report, the others
        rgb_encoder=_encoder(),
        streaming_encoding=True,
        encoder_queue_maxsize=0,  # endless: a full queue drops frames; the queue is empty again after each episode
    )


def _encoder() -> RGBEncoderConfig:
    from lerobot.configs import RGBEncoderConfig

    # With the videos' own quality LeRobot hands back DROID-like frames within 43.5 dB of them; at crf 6 it is only 1 dB
    # more for half as many bytes again, because most of it is chroma, halved a second time.
    # lerobot converts with BT.601 and, left alone, does not say so. Without B-frames packets are stored in the order in
    # which they are shown, so that joining files, as lerobot does, cannot shift a frame.
    tags = {"colorspace": "smpte170m", "color_primaries": "bt709", "color_trc": "iec61966-2-1", "color_range": "tv"}
    return RGBEncoderConfig(
        vcodec="h264", crf=DEFAULT_CRF, g=_KEYFRAME_INTERVAL, preset="medium", extra_options={"bf": "0", **tags}
    )


def _write_episodes(
    dataset: LeRobotDataset,
    episodes: Iterable[SyntheticEpisode],
    camera: str,
    shape: tuple[int, int, int],
    num_actions: int,
) -> int:
    num_episodes = 0
    try:
        for episode in episodes:
            with local_video(episode.video) as video:
                _require_shape(episode, _check_episode(episode, video, dataset.fps, num_actions), shape)
                for row in _rows(episode, video, camera):
                    dataset.add_frame(row)
            dataset.save_episode()
            num_episodes += 1
        dataset.finalize()
    except BaseException:
        _abandon(dataset)
        raise
    return num_episodes


def _abandon(dataset: LeRobotDataset) -> None:
    """Ends the encoder's thread, and what lerobot would write, into a new folder, when it is garbage-collected."""
    with suppress(Exception):  # the error that led here is the one to report
        dataset.clear_episode_buffer()
    with suppress(Exception):
        dataset.finalize()


def _require_shape(episode: SyntheticEpisode, info: VideoInfo, shape: tuple[int, int, int]) -> None:
    if _shape(info) != shape:
        raise ResultError(
            f"{episode.video}: expected {shape[0]} × {shape[1]} like the first video, found {info.height} × "
            f"{info.width}; write one dataset per size"
        )


def _rows(episode: SyntheticEpisode, video: Path, camera: str) -> Iterator[dict[str, Any]]:
    frames = (frame for clip in read_clips(video, clip_frames=_CLIP_FRAMES) for frame in clip)
    # The actions end one frame before the video, so its last frame is never asked for.
    for action, source_frame_index, frame in zip(episode.actions, episode.source_frame_indexes, frames, strict=False):
        yield {
            camera: frame,
            "action": action,
            "is_synthetic": np.array([True]),
            "source_episode_index": np.array([episode.source_episode_index], np.int64),
            "source_frame_index": np.array([source_frame_index], np.int64),
            "sample": np.array([episode.sample], np.int64),
            "task": episode.task,
        }


def _require_all_frames(root: Path, camera: str, num_frames: int) -> None:
    """lerobot waits two minutes for its encoder and then, with a line in the log, takes what is there."""
    found = sum(probe_video(path).num_frames for path in sorted((root / "videos" / camera).rglob("*.mp4")))
    if found != num_frames:
        raise DatasetError(
            f"expected {num_frames} frames in LeRobot's videos, found {found}: its encoder was too slow, or stopped; "
            "free some cores and write the dataset again"
        )


def _card(generator: str) -> str:
    # The header is what the Hugging Face hub reads; lerobot writes the same when it pushes.
    return f"""---
tags:
- LeRobot
- synthetic
task_categories:
- robotics
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# Synthetic robot episodes

**No camera saw these frames.** A world model generated them, starting from recorded ones. Objects may appear, vanish or
move as they would not in the world.

A LeRobot v3.0 dataset. Frame t and `action` t go together, the action leading to the next frame; each generated
video's last frame has no action and is left out. `is_synthetic` is true everywhere, so that the rows can be told apart
after a merge with recorded ones. `source_episode_index` says which recorded episode an episode starts from,
`source_frame_index` which of its frames would be at the same moment (it may have ended before), and `sample` tells
apart several videos of the same start.

What generated them (`meta/generator.json`):

```json
{generator}
```
"""

"""A folder of plain videos: every file is an episode, in the order of their relative paths.

Optional `captions.jsonl` in the folder gives tasks: one `{"file_name": …, "text": …}` a line, the file name relative to
the folder. No actions, no state; the frame rate is the one in the files' headers, and must be the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from upath import UPath

from pipeline.datasets.base import Episode, RobotVideoDataset, VideoSpan
from pipeline.datasets.json_lines import read_json_lines
from pipeline.datasets.video import VideoInfo, probe_video
from pipeline.errors import DatasetError, VideoError
from pipeline.storage import file_sizes, inside, kind

VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
CAMERA = "video"

_CAPTIONS = "captions.jsonl"
_NUM_PROBING_THREADS = 16
_RATE_TOLERANCE = 1e-3  # relative: headers round 29.97 differently
_NUM_SHOWN = 3


def find_videos(root: Path | UPath) -> dict[str, int]:
    """Relative path → size in bytes of the video files below `root`, sorted. Hidden files and folders are left out."""
    sizes = file_sizes(root, recursive=True)
    return {path: sizes[path] for path in sorted(sizes) if _is_visible_video(PurePosixPath(path))}


def _is_visible_video(path: PurePosixPath) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


class VideoFolderDataset(RobotVideoDataset):
    """Plain videos and their captions. A file that cannot be opened stays an episode, with its `problem`."""

    format = "videos"
    cameras = (CAMERA,)

    def __init__(self, root: Path | UPath, sizes: dict[str, int]) -> None:
        """`sizes` as of `find_videos`. Raises DatasetError where a file is a link that leads out of `root`."""
        super().__init__(root)
        self.features = {}
        self._sizes = sizes
        self._paths = list(sizes)
        self._headers = _probe_all([(self._inside(path), size) for path, size in sizes.items()])
        self.fps = _shared_fps(root, dict(zip(self._paths, self._headers, strict=True)))
        self._captions = _read_captions(root)
        self.warnings = self._caption_warnings()

    def episode_indexes(self) -> Sequence[int]:
        return range(len(self._paths))

    def episode(self, episode_index: int) -> Episode:
        header, task = self._header(episode_index), self._captions.get(self._paths[episode_index], "")
        if isinstance(header, VideoInfo):
            return Episode(episode_index, header.num_frames, task)
        return Episode(episode_index, 0, task, problem=header)

    def video_span(self, episode_index: int, camera: str) -> VideoSpan:
        self._check_camera(camera)
        header = self._header(episode_index)
        return VideoSpan(self._paths[episode_index], header.fps if isinstance(header, VideoInfo) else self.fps)

    def timestamps(self, episode_index: int, frame_indexes: Sequence[int]) -> np.ndarray:
        self._header(episode_index)
        return np.asarray(frame_indexes, dtype=np.int64) / self.fps

    def read_columns(self, episode_index: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        self._header(episode_index)
        return {}

    def _metadata(self) -> Any:
        return list(self._sizes.items())

    def _header(self, episode_index: int) -> VideoInfo | str:
        if episode_index not in self.episode_indexes():
            raise self._unknown_episode(episode_index)
        return self._headers[episode_index]

    def _caption_warnings(self) -> tuple[str, ...]:
        orphans = sorted(set(self._captions) - set(self._paths))
        return tuple(f"{self.root / _CAPTIONS} has a caption for {name!r}, which is not there" for name in orphans)


def _probe_all(files: Sequence[tuple[Path | UPath, int]]) -> list[VideoInfo | str]:
    """For every file, given with its size, its header, or the message that says why there is none."""
    with ThreadPoolExecutor(_NUM_PROBING_THREADS) as pool:
        return list(pool.map(_probe, files))


def _probe(file: tuple[Path | UPath, int]) -> VideoInfo | str:
    path, size = file
    try:
        return probe_video(path, size=size)
    except VideoError as error:
        return str(error)


def _shared_fps(root: Path | UPath, headers: dict[str, VideoInfo | str]) -> float:
    rates = {path: header.fps for path, header in headers.items() if isinstance(header, VideoInfo)}
    if not rates:
        raise DatasetError(
            f"{root}: expected at least one readable video, found {len(headers)} that cannot be read; "
            f"{'; '.join(str(header) for header in list(headers.values())[:_NUM_SHOWN])}"
        )
    if max(rates.values()) - min(rates.values()) > _RATE_TOLERANCE * min(rates.values()):
        raise DatasetError(
            f"{root}: expected one frame rate in all videos, found {_describe_rates(rates)}; put each rate into "
            "its own folder, or re-encode the files to one rate"
        )
    return next(iter(rates.values()))


def _describe_rates(rates: dict[str, float]) -> str:
    by_rate: dict[float, list[str]] = {}
    for path, fps in rates.items():
        by_rate.setdefault(round(fps, 2), []).append(path)
    return ", ".join(
        f"{fps:g} fps in {len(paths)} ({', '.join(paths[:_NUM_SHOWN])}{', …' if len(paths) > _NUM_SHOWN else ''})"
        for fps, paths in sorted(by_rate.items())
    )


def _read_captions(root: Path | UPath) -> dict[str, str]:
    file = inside(root, _CAPTIONS, said_by=root)
    if kind(file) != "file":
        return {}
    captions: dict[str, str] = {}
    for where, line in read_json_lines(file):
        name = PurePosixPath(_text(where, line, "file_name")).as_posix()
        if name in captions:
            raise DatasetError(f"{where}: expected one caption per file, found another for {name!r}; remove one")
        captions[name] = _text(where, line, "text")
    return captions


def _text(where: str, line: dict[str, Any], field: str) -> str:
    value = line.get(field)
    if not isinstance(value, str):
        raise DatasetError(f"{where}: expected {field!r} to be a text, found {value!r}; mend the line")
    return value

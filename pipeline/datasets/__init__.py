"""What an episode is, wherever it comes from: LeRobot v3.0 and v2.x, or a folder of plain videos.

`open_dataset` is the way in; everything after it speaks through `RobotVideoDataset`. May import `pipeline.errors`,
`pipeline.fingerprint`, `pipeline.storage`, NumPy, PyArrow and PyAV; never torch, Ray, or lerobot (its import alone
takes 16 s).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from upath import UPath

from pipeline.datasets.base import Episode, RobotVideoDataset
from pipeline.datasets.lerobot_info import INFO_PATH, META, LeRobotInfo
from pipeline.datasets.lerobot_v2 import LeRobotV2Dataset
from pipeline.datasets.lerobot_v3 import LeRobotV3Dataset
from pipeline.datasets.timebase import Timebase, resolve_timebase
from pipeline.datasets.videos import VIDEO_SUFFIXES, VideoFolderDataset, find_videos
from pipeline.errors import DatasetError, did_you_mean
from pipeline.storage import folder_names, kind, open_path

__all__ = ["Episode", "RobotVideoDataset", "Timebase", "open_dataset", "resolve_timebase"]

_FORMATS = ("auto", "lerobot", "videos")
_LEROBOT_READERS: dict[str, Callable[[Path | UPath, LeRobotInfo], RobotVideoDataset]] = {
    "v2.0": LeRobotV2Dataset,
    "v2.1": LeRobotV2Dataset,
    "v3.0": LeRobotV3Dataset,
}


def open_dataset(root: str | Path | UPath, format: str = "auto") -> RobotVideoDataset:
    """Read a dataset's metadata and return it; of plain videos also the headers, but no picture is decoded.

    `root` is a local folder, `s3://bucket/prefix` or `hf://datasets/org/name`. `format` is "auto", "lerobot" or
    "videos"; "auto" takes a folder with `meta/` for LeRobot, any other for videos. Raises `DatasetError` when `root` is
    not a folder, is not of that format, or its metadata cannot be trusted; `StorageError` when an object store does not
    answer.
    """
    root = open_path(root)
    has_info = kind(root / INFO_PATH) == "file"  # asked first: of a LeRobot dataset it answers everything at once
    if not has_info:
        _require_folder(root)
    match format:
        case "auto":
            is_lerobot = has_info or kind(root / META) == "folder"
            return _open_lerobot(root, has_info) if is_lerobot else _open_videos(root, has_info)
        case "lerobot":
            return _open_lerobot(root, has_info)
        case "videos":
            return _open_videos(root, has_info)
    raise DatasetError(
        f"dataset format {format!r} is not known; expected one of {', '.join(_FORMATS)}."
        f"{did_you_mean(format, _FORMATS)}"
    )


def _require_folder(root: Path | UPath) -> None:
    found = kind(root)
    if found == "folder":
        return
    found = "a file" if found == "file" else "nothing"
    raise DatasetError(
        f"{root}: expected a dataset folder, found {found}; give the folder that holds meta/info.json, or the videos"
    )


def _open_lerobot(root: Path | UPath, has_info: bool) -> RobotVideoDataset:
    if not has_info:
        raise DatasetError(
            f"{root}: expected a LeRobot dataset with {INFO_PATH}, found {_contents(root)}; fetch its meta folder "
            "again, or use format 'videos' for a folder of plain videos"
        )
    info = LeRobotInfo.read(root)
    if info.codebase_version not in _LEROBOT_READERS:
        raise DatasetError(
            f"{root / INFO_PATH}: codebase_version {info.codebase_version!r} is not known; expected one of "
            f"{', '.join(_LEROBOT_READERS)}; convert the dataset with LeRobot's own conversion script"
        )
    return _LEROBOT_READERS[info.codebase_version](root, info)


def _open_videos(root: Path | UPath, has_info: bool) -> RobotVideoDataset:
    if has_info:
        # A v3.0 file holds many episodes; taken for plain videos they would be labelled as one, without an error.
        raise DatasetError(
            f"{root}: expected plain videos, found a LeRobot dataset ({INFO_PATH}); use format 'lerobot'"
        )
    videos = find_videos(root)
    if not videos:
        raise DatasetError(
            f"{root}: expected {INFO_PATH} (LeRobot) or video files ({', '.join(VIDEO_SUFFIXES)}), found "
            f"{_contents(root)}; check the path"
        )
    return VideoFolderDataset(root, videos)


def _contents(root: Path | UPath, limit: int = 5) -> str:
    names = folder_names(root)
    more = ", …" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "an empty folder"

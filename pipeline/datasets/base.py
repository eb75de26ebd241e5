"""The one interface to a robot video dataset. What formats have in common is here; what differs is in their files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.video import read_video_frames
from pipeline.errors import DatasetError, EpisodeError, VideoError, did_you_mean
from pipeline.fingerprint import digest, digest_file

# Less than half a frame, so that at most one frame fits; more than the millisecond to which Matroska rounds.
_TOLERANCE_FRAMES = 0.25


@dataclass(frozen=True)
class Episode:
    """One recorded demonstration, as its metadata describes it. Nothing of it has been read yet."""

    episode_index: int
    num_frames: int  # at the dataset's own fps; 0 when unknown because of `problem`
    task: str  # "" where none was recorded; the first where there are several
    problem: str | None = None  # why this episode cannot be read, where the metadata already tells


@dataclass(frozen=True)
class VideoSpan:
    """Where one camera's episode is: frame k is at `from_s + k / fps` seconds of the file `path`."""

    path: str  # relative to the dataset's root, with forward slashes
    fps: float
    from_s: float = 0.0
    to_s: float | None = None  # end of the episode where a file holds many; None: the file is the episode's own


class RobotVideoDataset(ABC):
    """Episodes, their frames and what was recorded with them. Instances can be pickled."""

    root: Path
    format: str  # "lerobot_v3", "lerobot_v2" or "videos"
    fps: float
    cameras: tuple[str, ...]  # sorted; those that have files
    warnings: tuple[str, ...]
    features: dict[str, int]  # recorded numeric feature → width; bookkeeping columns are left out

    def __init__(self, root: Path) -> None:
        self.root = root
        self._file_identities: dict[str, dict[str, Any]] = {}

    @property
    def num_episodes(self) -> int:
        """Number of episodes, those with a problem included."""
        return len(self.episode_indexes())

    @abstractmethod
    def episode_indexes(self) -> Sequence[int]:
        """The dataset's own episode numbers, increasing; they may have gaps."""

    @abstractmethod
    def episode(self, episode_index: int) -> Episode:
        """One episode's metadata. Raises `DatasetError` for a number the dataset does not have."""

    @abstractmethod
    def video_span(self, episode_index: int, camera: str) -> VideoSpan:
        """Where the episode's frames are.

        Raises `DatasetError` for an unknown camera, `VideoError` when the metadata names no file for this one.
        """

    @abstractmethod
    def timestamps(self, episode_index: int, frame_indexes: Sequence[int]) -> np.ndarray:
        """float64 [N]: seconds as recorded in the `timestamp` column, or index / fps where there is no such column.

        Recorded values are passed on as they are, also where a dataset's first is not 0.
        Raises `EpisodeError` when the recording is missing, damaged or shorter than its metadata says.
        """

    @abstractmethod
    def read_columns(self, episode_index: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Recorded numeric columns as float64 [num_frames, width]; keys that were not recorded are absent.

        Raises `EpisodeError` when the recording is missing, damaged or shorter than its metadata says.
        """

    def _data_path(self, episode_index: int) -> str | None:
        """Relative path of the file that holds the episode's recorded numbers; None where there is none."""
        return None

    def video_path(self, episode_index: int, camera: str) -> Path:
        """The file that holds these frames: always below `root`, not always there."""
        return self.root / self.video_span(episode_index, camera).path

    def read_frames(self, episode_index: int, camera: str, frame_indexes: Sequence[int]) -> np.ndarray:
        """uint8 [N, H, W, 3], RGB: exactly these frames of the episode, `frame_indexes` strictly increasing.

        Raises `VideoError`, naming the file, when not all of them are there.
        """
        episode = self.episode(episode_index)
        span = self.video_span(episode_index, camera)
        path = self.root / span.path
        indexes = np.asarray(frame_indexes, dtype=np.int64)
        where = f"episode {episode_index}, camera {camera!r}"
        _check_frame_indexes(f"{path}: {where}", indexes, episode)
        times_s = span.from_s + indexes / span.fps
        _check_inside_span(f"{path}: {where}", times_s, indexes, span)
        try:
            return read_video_frames(path, times_s, tolerance_s=_TOLERANCE_FRAMES / span.fps)
        except VideoError as error:
            raise VideoError(
                f"{where}, frames {indexes[0]}..{indexes[-1]} of {episode.num_frames} at {span.fps:g} fps: {error}"
            ) from error

    def episode_identity(self, episode_index: int, cameras: Sequence[str]) -> dict[str, Any]:
        """JSON-able identity made of content: equal for equal input, another one when any of it changes.

        Holds length, task, fps, each camera's file (path, size, digest and, where files hold many episodes, the
        span in seconds) and the file of recorded numbers. A missing file is `{"missing": True}` and no error.
        """
        episode = self.episode(episode_index)
        return {
            "format": self.format,
            "episode_index": int(episode_index),
            "num_frames": episode.num_frames,
            "task": episode.task,
            "fps": self.fps,
            "videos": {camera: self._video_identity(episode_index, camera) for camera in sorted(cameras)},
            "data": self._data_identity(episode_index),
        }

    def fingerprint(self) -> str:
        """Tells this recording from others by its metadata alone, wherever it lies: frame rate and episode lengths."""
        lengths = [[int(index), self.episode(int(index)).num_frames] for index in self.episode_indexes()]
        return digest([self.fps, lengths])

    def _video_identity(self, episode_index: int, camera: str) -> dict[str, Any]:
        try:
            span = self.video_span(episode_index, camera)
        except VideoError:
            return {"missing": True}
        identity = self._file_identity(span.path)
        return identity if span.to_s is None else identity | {"from_s": span.from_s, "to_s": span.to_s}

    def _data_identity(self, episode_index: int) -> dict[str, Any] | None:
        try:
            path = self._data_path(episode_index)
        except EpisodeError:
            return {"missing": True}
        return None if path is None else self._file_identity(path)

    def _file_identity(self, path: str) -> dict[str, Any]:
        if path not in self._file_identities:
            self._file_identities[path] = _identify(self.root, path)
        return dict(self._file_identities[path])

    def _check_camera(self, camera: str) -> None:
        if camera not in self.cameras:
            raise DatasetError(
                f"{self.root}: camera {camera!r} is not known; expected one of {', '.join(self.cameras)}."
                f"{did_you_mean(camera, self.cameras)}"
            )

    def _unknown_episode(self, episode_index: int) -> DatasetError:
        indexes = self.episode_indexes()
        return DatasetError(
            f"{self.root}: episode {episode_index} is not there; expected one of the {len(indexes)} episodes "
            f"{indexes[0]}..{indexes[-1]}"
        )


def _identify(root: Path, path: str) -> dict[str, Any]:
    file = root / path
    if not file.is_file():
        return {"path": path, "missing": True}
    return {"path": path, "size": file.stat().st_size, "digest": digest_file(file)}


def _check_frame_indexes(where: str, indexes: np.ndarray, episode: Episode) -> None:
    if episode.problem is not None:
        raise VideoError(f"{where} cannot be read: {episode.problem}")
    if indexes.size == 0 or np.any(np.diff(indexes) <= 0):
        raise VideoError(f"{where}: expected strictly increasing frame indexes, found {indexes.tolist()}")
    if indexes[0] < 0 or indexes[-1] >= episode.num_frames:
        raise VideoError(
            f"{where}: expected frames within 0..{episode.num_frames - 1}, found {indexes[0]}..{indexes[-1]}"
        )


def _check_inside_span(where: str, times_s: np.ndarray, indexes: np.ndarray, span: VideoSpan) -> None:
    # Without this, an episode whose length is overstated would silently go on into the next one's frames.
    if span.to_s is not None and times_s[-1] > span.to_s - _TOLERANCE_FRAMES / span.fps:
        raise VideoError(
            f"{where}: expected frame {indexes[-1]} at {times_s[-1]:.3f} s, found that the episode's part of the file "
            f"ends at {span.to_s:.3f} s; its length and to_timestamp contradict each other: mend meta/episodes"
        )

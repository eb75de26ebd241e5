"""The one interface to a robot video dataset. What formats have in common is here; what differs is in their files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from upath import UPath

from pipeline.datasets.video import MAX_EPISODE_FRAMES, read_video_frames
from pipeline.errors import DatasetError, EpisodeError, VideoError, did_you_mean
from pipeline.fingerprint import RECORDING_BLOCKS, digest, digest_file
from pipeline.storage import file_sizes, inside, is_local, stays_inside

# Less than half a frame, so that at most one frame fits; more than the millisecond to which Matroska rounds.
_TOLERANCE_FRAMES = 0.25
_NUM_READING_THREADS = 16  # they wait for a disk or a network, and hash without the interpreter's lock


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
    """Episodes, their frames and what was recorded with them, on a disk or in an object store.

    Instances can be pickled; what they only remember stays behind. Whatever is read may raise `StorageError` where an
    object store does not hand it out, and `DatasetError` where metadata or links lead out of `root`.
    """

    root: Path | UPath
    format: str  # "lerobot_v3", "lerobot_v2" or "videos"
    fps: float
    cameras: tuple[str, ...]  # sorted; those that have files
    warnings: tuple[str, ...]
    features: dict[str, int]  # recorded numeric feature → width; bookkeeping columns are left out

    def __init__(self, root: Path | UPath) -> None:
        self.root = root
        self._fingerprint: str | None = None
        self._forget()

    def _forget(self) -> None:
        """Empties what can be read again, and would only be dead weight in a process that gets a copy."""
        self._file_identities: dict[str, dict[str, Any]] = {}
        self._folders: dict[str, dict[str, int]] = {}
        self._checked: dict[str, Path] = {}

    def __getstate__(self) -> dict[str, Any]:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._forget()
        return copied.__dict__

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

    @abstractmethod
    def _metadata(self) -> Any:
        """JSON-able: what `fingerprint` is made of, the same wherever the dataset lies."""

    def _data_path(self, episode_index: int) -> str | None:
        """Relative path of the file that holds the episode's recorded numbers; None where there is none."""
        return None

    def video_path(self, episode_index: int, camera: str) -> Path | UPath:
        """The file that holds these frames: always below `root`, not always there."""
        return self._inside(self.video_span(episode_index, camera).path)

    def read_frames(self, episode_index: int, camera: str, frame_indexes: Sequence[int]) -> np.ndarray:
        """uint8 [N, H, W, 3], RGB: exactly these frames of the episode, `frame_indexes` strictly increasing.

        Raises `VideoError`, naming the file, when not all of them are there.
        """
        episode = self.episode(episode_index)
        span = self.video_span(episode_index, camera)
        path = self._inside(span.path)
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
        Of many episodes, `prepare_identities` first.
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

    def prepare_identities(self, episode_indexes: Iterable[int], cameras: Sequence[str]) -> None:
        """Reads now, many files at a time, what `episode_identity` would read one by one.

        That is a matter of minutes instead of hours where thousands of files lie in an object store.
        """
        paths = {path: None for index in episode_indexes for path in self._files_of(index, cameras)}
        unknown = [path for path in paths if path not in self._file_identities]
        with ThreadPoolExecutor(_NUM_READING_THREADS) as pool:
            if not is_local(self.root):
                folders = sorted({str(PurePosixPath(path).parent) for path in unknown} - set(self._folders))
                self._folders.update(zip(folders, pool.map(self._list, folders), strict=True))
            self._file_identities.update(zip(unknown, pool.map(self._identify, unknown), strict=True))

    def fingerprint(self) -> str:
        """Tells this recording from others by its metadata alone, wherever it lies.

        Of a LeRobot dataset: the content of the format's files in `meta/`, so also tasks and statistics, but nothing
        else that lies there. Of plain videos: their relative paths and sizes, but not their captions. Data and videos
        are not read: `episode_identity` does that.
        """
        if self._fingerprint is None:
            self._fingerprint = digest([self.format, self._metadata()])
        return self._fingerprint

    def _files_of(self, episode_index: int, cameras: Sequence[str]) -> list[str]:
        paths = []
        for camera in cameras:
            try:
                paths.append(self.video_span(episode_index, camera).path)
            except VideoError:
                continue  # no file, so nothing to read
        try:
            data = self._data_path(episode_index)
        except EpisodeError:
            data = None
        return paths if data is None else [*paths, data]

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
            self._file_identities[path] = self._identify(path)
        return dict(self._file_identities[path])

    def _identify(self, path: str) -> dict[str, Any]:
        size = self._size(path)
        try:
            file = self._inside(path)
            if size is not None:
                return {"path": path, "size": size, "digest": digest_file(file, num_blocks=RECORDING_BLOCKS, size=size)}
        except FileNotFoundError:
            pass  # gone since it was listed
        except OSError as error:
            raise DatasetError(
                f"{self.root / path}: expected a file that can be read, found {error}; mend its rights or the disk"
            ) from error
        return {"path": path, "missing": True}

    def _size(self, path: str) -> int | None:
        """Of a file in bytes; None where it is missing. One listing tells it for all files of a remote folder."""
        if is_local(self.root):
            file = self._inside(path)
            return file.stat().st_size if file.is_file() else None
        return self._files_in(str(PurePosixPath(path).parent)).get(PurePosixPath(path).name)

    def _files_in(self, folder: str) -> dict[str, int]:
        """Name → size of the files in a folder, given by its path relative to the root. Remembered of a remote one."""
        if is_local(self.root):
            return self._list(folder)
        if folder not in self._folders:
            self._folders[folder] = self._list(folder)
        return self._folders[folder]

    def _list(self, folder: str) -> dict[str, int]:
        return file_sizes(self.root if folder == "." else self._inside(folder), recursive=False)

    def _inside(self, path: str) -> Path | UPath:
        """`path` below the root, see `pipeline.storage.inside`. A folder's own links are followed once."""
        folder, _, name = path.rpartition("/")
        if folder and name and is_local(self.root) and stays_inside(path):
            if folder not in self._checked:
                self._checked[folder] = inside(self.root, folder, said_by=self._described_by())
            file = self._checked[folder] / name
            if not os.path.islink(file):
                return file
        return inside(self.root, path, said_by=self._described_by())

    def _described_by(self) -> Path | UPath:
        """Where paths of files come from, for messages."""
        return self.root

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


def length_problem(where: object, length: int | None) -> str | None:
    """What is wrong with an episode's length as its metadata gives it, for `Episode.problem`; None if it can be."""
    if length is not None and 0 < length <= MAX_EPISODE_FRAMES:
        return None
    return f"{where} says its length is {length}; expected at least one frame, and at most {MAX_EPISODE_FRAMES}"


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

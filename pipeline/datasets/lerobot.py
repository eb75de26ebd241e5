"""What LeRobot v2.x and v3.0 share: cameras that really have files, recorded columns, time stamps."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from upath import UPath

from pipeline.datasets.base import RobotVideoDataset
from pipeline.datasets.lerobot_info import META, LeRobotInfo
from pipeline.datasets.lerobot_rows import read_episode_rows
from pipeline.errors import DatasetError, EpisodeError, VideoError
from pipeline.fingerprint import digest_file
from pipeline.storage import file_sizes

# The format's own files in `meta/`, of all its versions. Others come and go there without another recording.
_OWN_METADATA = re.compile(r"(info|stats)\.json|(tasks|episodes|episodes_stats)\.(jsonl|parquet)|episodes/.+\.parquet")
_NUM_READING_THREADS = 16


class LeRobotDataset(RobotVideoDataset):
    """A LeRobot dataset of either generation. Subclasses read the episodes' metadata, then call `_find_cameras`."""

    def __init__(self, root: Path | UPath, info: LeRobotInfo) -> None:
        super().__init__(root)
        self.info = info
        self.fps = info.fps
        self.features = dict(info.features)

    @abstractmethod
    def _data_path(self, episode_index: int) -> str: ...

    def timestamps(self, episode_index: int, frame_indexes: Sequence[int]) -> np.ndarray:
        indexes = np.asarray(frame_indexes, dtype=np.int64)
        num_frames = self.episode(episode_index).num_frames
        if indexes.size and (indexes.min() < 0 or indexes.max() >= num_frames):
            raise EpisodeError(
                f"{self.root}: episode {episode_index} has {num_frames} frames; expected frames within "
                f"0..{num_frames - 1}, found {indexes.min()}..{indexes.max()}"
            )
        recorded_T1 = self._rows(episode_index, ["timestamp"]).get("timestamp")
        if recorded_T1 is None:
            return indexes / self.fps
        if recorded_T1.shape[1] != 1 or not np.isfinite(recorded_T1).all():
            raise EpisodeError(
                f"{self._file(episode_index)}: expected finite timestamps, one a frame, found NaN or shape "
                f"{recorded_T1.shape}; mend the file"
            )
        return recorded_T1[indexes, 0]

    def read_columns(self, episode_index: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        columns = self._rows(episode_index, keys)
        for key, values_TD in columns.items():
            declared = self.features.get(key, values_TD.shape[1])
            if values_TD.shape[1] != declared:
                raise EpisodeError(
                    f"{self._file(episode_index)}: expected {key!r} to be {declared} wide, as {self.info.file} "
                    f"declares, found {values_TD.shape[1]}; mend one of them"
                )
        return columns

    def _rows(self, episode_index: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        episode = self.episode(episode_index)
        return read_episode_rows(self._file(episode_index), episode_index, episode.num_frames, keys)

    def _file(self, episode_index: int) -> Path | UPath:
        return self._inside(self._data_path(episode_index))

    def _described_by(self) -> Path | UPath:
        return self.info.file

    def _metadata(self) -> Any:
        sizes = file_sizes(self._inside(META), recursive=True)
        own = sorted(name for name in sizes if _OWN_METADATA.fullmatch(name))

        def digest_of(name: str) -> str:
            return digest_file(self._inside(f"{META}/{name}"), size=sizes[name])

        with ThreadPoolExecutor(_NUM_READING_THREADS) as pool:
            return dict(zip(own, pool.map(digest_of, own), strict=True))

    def _find_cameras(self, declared: Sequence[str]) -> None:
        """Set `cameras` to those declared that have files, and `warnings` to what was left out."""
        self.cameras = tuple(declared)  # known to `video_span` while we look
        present = tuple(camera for camera in declared if self._has_files(camera))
        if not present:
            found = f"{len(declared)} declared ({', '.join(declared)})" if declared else "no feature of dtype 'video'"
            raise DatasetError(
                f"{self.root}: expected a camera with video files, found {found} and no files; fetch the videos folder"
            )
        self.cameras = present
        self.warnings = (*self._camera_warnings(), *self._total_warnings())

    def _has_files(self, camera: str) -> bool:
        # The first episode alone may be damaged; its folder, or the last episode's, then still holds others.
        indexes = self.episode_indexes()
        return any(self._file_or_neighbour_exists(episode, camera) for episode in (indexes[0], indexes[-1]))

    def _file_or_neighbour_exists(self, episode_index: int, camera: str) -> bool:
        try:
            path = self.video_span(episode_index, camera).path
        except VideoError:
            return False
        return bool(self._files_in(str(PurePosixPath(path).parent)))

    def _camera_warnings(self) -> list[str]:
        phantoms = [camera for camera in self.info.cameras if camera not in self.cameras]
        return [
            *(f"{self.info.file} declares camera {camera!r}, which has no files; left out" for camera in phantoms),
            *(
                f"{self.info.file} declares {name!r} as images inside Parquet, which are not read; left out"
                for name in self.info.image_features
            ),
        ]

    def _total_warnings(self) -> list[str]:
        if self.info.total_episodes in (None, self.num_episodes):
            return []
        return [
            f"{self.info.file} says total_episodes {self.info.total_episodes}, its episode list has "
            f"{self.num_episodes}; the list is believed"
        ]

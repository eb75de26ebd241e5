"""LeRobot v2.0 and v2.1: `meta/episodes.jsonl`, and one Parquet file and one video per episode and camera.

`info.json` gives the paths as templates of `episode_chunk` (`episode_index // chunks_size`), `episode_index` and
`video_key`. v2.1 differs in statistics only, which are not read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.datasets.base import Episode, VideoSpan, length_problem
from pipeline.datasets.json_lines import read_json_lines
from pipeline.datasets.lerobot import LeRobotDataset
from pipeline.datasets.lerobot_info import META, LeRobotInfo
from pipeline.errors import DatasetError


class LeRobotV2Dataset(LeRobotDataset):
    """A LeRobot dataset of codebase version v2.0 or v2.1. Frame k of a video is row k of its Parquet file."""

    format = "lerobot_v2"

    def __init__(self, root: Path | UPath, info: LeRobotInfo) -> None:
        super().__init__(root, info)
        self._chunks_size = info.require_chunks_size()
        self._episodes = _read_episodes(self._inside(f"{META}/episodes.jsonl"))
        self._find_cameras(info.cameras)

    def episode_indexes(self) -> Sequence[int]:
        return tuple(self._episodes)

    def episode(self, episode_index: int) -> Episode:
        if episode_index not in self._episodes:
            raise self._unknown_episode(episode_index)
        return self._episodes[episode_index]

    def video_span(self, episode_index: int, camera: str) -> VideoSpan:
        self._check_camera(camera)
        return VideoSpan(self._path("video_path", episode_index, camera), self.fps)

    def _data_path(self, episode_index: int) -> str:
        return self._path("data_path", episode_index, "")

    def _path(self, field: str, episode_index: int, video_key: str) -> str:
        index = self.episode(episode_index).episode_index
        return self.info.format_path(
            field, episode_chunk=index // self._chunks_size, episode_index=index, video_key=video_key
        )


def _read_episodes(path: Path | UPath) -> dict[int, Episode]:
    episodes: dict[int, Episode] = {}
    for where, line in read_json_lines(path):
        episode = _parse_episode(where, line)
        if episode.episode_index in episodes:
            raise DatasetError(
                f"{where}: expected each episode once, found {episode.episode_index} again; mend the line"
            )
        episodes[episode.episode_index] = episode
    if not episodes:
        raise DatasetError(f"{path}: expected at least one episode, found none; fetch it again")
    return dict(sorted(episodes.items()))


def _parse_episode(where: str, line: dict[str, Any]) -> Episode:
    index, length = _integer(where, line, "episode_index"), _integer(where, line, "length")
    problem = length_problem(where, length)
    return Episode(index, 0 if problem else length, _first_task(where, line), problem)


def _integer(where: str, line: dict[str, Any], field: str) -> int:
    value = line.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DatasetError(
            f"{where}: expected {field!r} to be an integer of at least 0, found {value!r}; mend the line"
        )
    return value


def _first_task(where: str, line: dict[str, Any]) -> str:
    tasks = line.get("tasks") or [""]
    if not isinstance(tasks, list) or not isinstance(tasks[0], str):
        raise DatasetError(f"{where}: expected 'tasks' to be a list of texts, found {tasks!r}; mend the line")
    return tasks[0]

"""A synthetic dataset is a real one: LeRobot opens it, and every row has its own frame. Frames carry their number."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import open_dataset
from pipeline.errors import ConfigError, DatasetError, ResultError, VideoError
from pipeline.outputs.lerobot_dataset import (
    SyntheticEpisode,
    _require_all_frames,
    read_generator,
    write_synthetic_dataset,
)
from pipeline.outputs.videos import read_clips, write_video
from pipeline.storage import open_path

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import draw, read_ids

CAMERA = "observation.images.composite"
NAMES = ("dx", "dy", "gripper")
FPS = 10
LENGTHS = (40, 2, 25)
GENERATOR = {"checkpoint": "tiny", "fingerprint": "0123abcd", "run_id": "run-7"}
SETTINGS: dict[str, Any] = {
    "fps": float(FPS),
    "camera": CAMERA,
    "action_names": NAMES,
    "robot_type": "droid",
    "generator": GENERATOR,
}


def first_id(index: int) -> int:
    return 1000 * (index + 1)


def episode(folder: Path, index: int, num_actions: int, *, fps: float = FPS) -> SyntheticEpisode:
    video = folder / f"episode_{index}.mp4"
    write_video(video, [np.stack([draw(first_id(index) + k) for k in range(num_actions + 1)])], fps=fps)
    return SyntheticEpisode(
        task=f"task {index % 2}",
        video=video,
        actions=np.random.default_rng(index).normal(size=(num_actions, len(NAMES))).astype(np.float32),
        source_episode_index=70 + index,
        source_frame_indexes=3 * np.arange(num_actions),
        sample=index % 2,
    )


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> list[SyntheticEpisode]:
    folder = tmp_path_factory.mktemp("videos")
    return [episode(folder, index, length) for index, length in enumerate(LENGTHS)]


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.slow
def test_lerobot_and_our_reader_find_every_row_with_its_frame(tmp_path, episodes, capfd):
    root = tmp_path / "out" / "dataset"
    assert write_synthetic_dataset(root, episodes, **SETTINGS) == len(LENGTHS)
    assert [*root.parent.iterdir()] == [root]
    assert capfd.readouterr() == ("", "")
    check_as_lerobot_sees_it(root, episodes)
    check_as_our_reader_sees_it(root, episodes)
    check_what_it_says_of_itself(root)
    with pytest.raises(DatasetError, match="expected 68 frames in LeRobot's videos, found 67"):
        _require_all_frames(root, CAMERA, 68)
    check_replacing(root, episodes)


def check_as_lerobot_sees_it(root: Path, episodes: list[SyntheticEpisode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("any/name", root=root, video_backend="pyav")
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (sum(LENGTHS), len(LENGTHS), FPS)
    assert dataset.meta.robot_type == "droid"
    assert dataset.meta.video_keys == [CAMERA]
    assert dataset.meta.features[CAMERA]["info"]["video.codec"] == "h264"
    assert dataset.meta.features["action"]["names"] == list(NAMES)
    rows = iter(range(len(dataset)))
    for index, given in enumerate(episodes):
        found = [dataset[next(rows)] for _ in given.actions]
        assert {row["task"] for row in found} == {given.task}
        assert {int(row["episode_index"]) for row in found} == {index}
        assert {int(row["source_episode_index"]) for row in found} == {given.source_episode_index}
        assert {int(row["sample"]) for row in found} == {given.sample}
        assert all(bool(row["is_synthetic"]) for row in found)
        assert [int(row["source_frame_index"]) for row in found] == given.source_frame_indexes.tolist()
        np.testing.assert_array_equal(np.stack([row["action"].numpy() for row in found]), given.actions)
        check_frames(np.stack([row[CAMERA].numpy() for row in found]), given, index)


def check_frames(found_NCHW: np.ndarray, given: SyntheticEpisode, index: int) -> None:
    found = np.rint(255 * found_NCHW).astype(np.uint8).transpose(0, 2, 3, 1)
    assert read_ids(found) == list(range(first_id(index), first_id(index) + len(given.actions)))
    assert psnr_db(found, np.concatenate(list(read_clips(given.video)))[:-1]) > 34


def check_as_our_reader_sees_it(root: Path, episodes: list[SyntheticEpisode]) -> None:
    dataset = open_dataset(root)
    assert (dataset.format, dataset.fps, dataset.cameras, dataset.warnings) == ("lerobot_v3", FPS, (CAMERA,), ())
    for index, given in enumerate(episodes):
        length = len(given.actions)
        found = dataset.episode(index)
        assert (found.num_frames, found.task, found.problem) == (length, given.task, None)
        np.testing.assert_array_equal(dataset.read_columns(index, ["action"])["action"], given.actions)
        frames = dataset.read_frames(index, CAMERA, range(length))
        assert read_ids(frames) == list(range(first_id(index), first_id(index) + length))


def check_what_it_says_of_itself(root: Path) -> None:
    assert json.loads((root / "meta" / "generator.json").read_text()) == GENERATOR
    card = (root / "README.md").read_text()
    assert "No camera saw these frames" in card
    assert "0123abcd" in card


def contents(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_replacing(root: Path, episodes: list[SyntheticEpisode]) -> None:
    before = contents(root)

    def failing() -> Iterator[SyntheticEpisode]:
        yield from episodes[:1]
        raise RuntimeError("no more episodes")

    with pytest.raises(RuntimeError, match="no more episodes"):
        write_synthetic_dataset(root, failing(), **SETTINGS)
    short = replace(episodes[0], actions=episodes[0].actions[:-1], source_frame_indexes=np.arange(LENGTHS[0] - 1))
    with pytest.raises(ResultError, match=r"episode_0\.mp4: expected 40 frames.*found 41"):
        write_synthetic_dataset(root, [episodes[2], short], **SETTINGS)
    assert contents(root) == before
    assert write_synthetic_dataset(root, episodes[1:2], **SETTINGS) == 1
    assert [*root.parent.iterdir()] == [root]
    assert open_dataset(root).num_episodes == 1


@pytest.mark.slow
def test_an_object_store_has_the_same_dataset(tmp_path, s3, episodes):
    """Videos are read from the store, too; of a dataset that was not put in place completely nothing is believed."""
    url, [given] = s3.url("datasets/out"), episodes[1:2]
    s3.put("datasets/out/videos/a.mp4", given.video.read_bytes())
    remote = replace(given, video=open_path(f"{url}/videos/a.mp4"))
    write_synthetic_dataset(tmp_path / "lerobot", [given], **SETTINGS)
    s3.put("datasets/out/lerobot/.being-replaced")
    s3.put("datasets/out/lerobot/data/old.parquet")
    assert read_generator(f"{url}/lerobot") is None
    for _ in range(2):
        assert write_synthetic_dataset(f"{url}/lerobot", [remote], **SETTINGS) == 1
    assert read_generator(f"{url}/lerobot") == read_generator(tmp_path / "lerobot") == SETTINGS["generator"]
    found = {Path(key.removeprefix("out/lerobot/")) for key in s3.keys("datasets/out/lerobot")}
    assert found == set(contents(tmp_path / "lerobot"))
    with pytest.raises(DatasetError, match="something else"):
        write_synthetic_dataset(f"{url}/videos", [remote], **SETTINGS)


def refused(tmp_path: Path, given: SyntheticEpisode, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        write_synthetic_dataset(tmp_path / "dataset", [given], **SETTINGS)
    assert not (tmp_path / "dataset").exists()


def test_videos_and_actions_that_do_not_go_together_are_refused(tmp_path, episodes):
    given, actions = episodes[1], episodes[1].actions
    longer = replace(given, actions=np.repeat(actions, 2, axis=0), source_frame_indexes=np.arange(4))
    refused(tmp_path, longer, ResultError, r"episode_1\.mp4: expected 5 frames.*found 3")
    refused(tmp_path, replace(given, actions=actions[:, :2]), ResultError, r"\[T, 3\].*float32 \[2, 2\]")
    refused(tmp_path, replace(given, actions=actions.astype(np.float64)), ResultError, "float64")
    refused(tmp_path, replace(given, actions=actions[0]), ResultError, r"float32 \[3\]")
    refused(tmp_path, replace(given, actions=np.full_like(actions, np.nan)), ResultError, "finite")
    refused(tmp_path, replace(given, source_frame_indexes=np.arange(3)), ResultError, "source frame")
    refused(tmp_path, replace(given, actions=actions[:1]), ResultError, "2 actions or more, found 1")
    refused(tmp_path, replace(given, video=tmp_path / "gone.mp4"), VideoError, r"gone\.mp4")
    refused(tmp_path, episode(tmp_path, 5, 4, fps=5), ResultError, "10 frames per second, found 5")


def test_a_fractional_frame_rate_is_refused_with_the_reason(tmp_path, episodes):
    with pytest.raises(ConfigError, match=r"whole number, found 7\.5"):
        write_synthetic_dataset(tmp_path / "dataset", episodes, **{**SETTINGS, "fps": 7.5})
    assert list(tmp_path.iterdir()) == []


def test_no_episode_is_no_dataset(tmp_path):
    with pytest.raises(ResultError, match="found none"):
        write_synthetic_dataset(tmp_path / "dataset", [], **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_not_written_here_is_never_replaced(tmp_path, episodes):
    (tmp_path / "dataset" / "meta").mkdir(parents=True)
    (tmp_path / "dataset" / "meta" / "info.json").write_text("recorded by hand")
    with pytest.raises(DatasetError, match="something else"):
        write_synthetic_dataset(tmp_path / "dataset", episodes, **SETTINGS)
    assert (tmp_path / "dataset" / "meta" / "info.json").read_text() == "recorded by hand"

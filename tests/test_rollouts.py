"""Rollouts and dreams of real DROID episodes, from flags to videos, rows and a LeRobot dataset."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shell_environment import SHELL_ENVIRONMENT
from stage_by_stage import drive_without_ray

from pipeline.command_line import parse_config
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.datasets import open_dataset
from pipeline.errors import ActionFileError, ConfigError, DatasetError
from pipeline.outputs.summary import Summary
from pipeline.outputs.videos import read_clips
from pipeline.rollouts import prepare_forward, prepare_policy, roll_out
from pipeline.run import Prepared

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_recorded_v3


def flags_for(root: Path, checkpoint: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        *("--dataset.root", str(root), "--engine.checkpoint", str(checkpoint), "--output_dir", str(output_dir)),
        *("--image_size", "256", "--engine.num_inference_steps", "1", "--dataset.timebase", "native", *more),
    ]


@pytest.fixture(scope="module")
def droid_flags(tiny_checkpoint, shared_data):
    statistics = ("--action_stats_path", str(shared_data / "stats" / "droid_lerobot_stats.json"))

    def flags(output_dir: Path, *more: str) -> list[str]:
        return flags_for(shared_data / "droid_real", tiny_checkpoint, output_dir, *statistics, *more)

    return flags


@dataclass(frozen=True)
class Done:
    prepared: Prepared
    summary: Summary
    rows: pa.Table

    @property
    def output_dir(self) -> Path:
        return self.prepared.output_dir


def finish(prepare, config) -> Done:
    """All segments in this process, then what a run does when nothing is left."""
    for status in drive_without_ray(prepare(config)):
        assert not status["error"], status["error"]
    prepared = prepare(config)
    assert not prepared.missing
    summary = roll_out(prepared)
    return Done(prepared, summary, pq.read_table(prepared.output_dir / "rollouts"))


@pytest.fixture(scope="module")
def droid_rollout(droid_flags, tmp_path_factory) -> Done:
    config = parse_config(
        RolloutConfig, droid_flags(tmp_path_factory.mktemp("rollout"), "--dataset.episodes", "[0, 6]")
    )
    return finish(prepare_forward, config)


def videos_of(done: Done) -> list[Path]:
    return [done.output_dir / path for path in dict.fromkeys(done.rows["video"].to_pylist())]


def test_every_video_is_as_long_as_its_episode_says_a_second_decoder(droid_rollout):
    import decord

    videos = videos_of(droid_rollout)
    assert len(videos) == 2
    for path, num_frames in zip(videos, (droid_rollout_length(droid_rollout, index) for index in (0, 6)), strict=True):
        reader = decord.VideoReader(str(path))
        height, width = reader[0].shape[:2]
        assert (len(reader), reader.get_avg_fps()) == (num_frames, 5.0)
        assert height % 16 == width % 16 == 0
        ours = np.concatenate(list(read_clips(path)))
        theirs = reader.get_batch(range(num_frames)).asnumpy()
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def droid_rollout_length(done: Done, episode_index: int) -> int:
    return done.prepared.dataset.episode(episode_index).num_frames


def test_every_frame_has_a_row_that_tells_where_it_comes_from(droid_rollout):
    rows = droid_rollout.rows
    for index in (0, 6):
        num_frames = droid_rollout_length(droid_rollout, index)
        own = rows.filter(pa.compute.field("episode_index") == index)
        assert own["video_frame"].to_pylist() == own["frame_index"].to_pylist() == list(range(num_frames))
        np.testing.assert_allclose(own["timestamp"].to_numpy(), np.arange(num_frames) / 5)
        positions = np.arange(num_frames)
        chunks = np.maximum(positions - 1, 0) // 16
        assert own["chunk"].to_pylist() == chunks.tolist()
        assert own["horizon_step"].to_pylist() == (positions - 16 * chunks).tolist()
        seeds = own["seed"].to_numpy()
        assert (seeds - seeds[0]).tolist() == chunks.tolist(), "seed + chunk index"
        assert own["action_valid"].to_pylist() == [True] * (num_frames - 1) + [False]
        assert all(own["is_synthetic"].to_pylist())
    manifest = json.loads(rows.schema.metadata[b"manifest"])
    assert manifest["recipe"]["chaining"] == "autoregressive"
    assert manifest["recipe"]["actions"]["source"] == "recorded"


def test_the_actions_are_the_recorded_ones_and_the_model_saw_them_clamped(droid_rollout, shared_data):
    dataset = open_dataset(shared_data / "droid_real")
    own = droid_rollout.rows.filter(pa.compute.field("episode_index") == 0)
    given = np.array(own.filter(own["action_valid"])["action"].to_pylist())
    gripper = dataset.read_columns(0, ("action.gripper_position",))["action.gripper_position"][:-1, 0]
    np.testing.assert_allclose(given[:, 9], 1 - gripper, atol=1e-6)
    seen = np.array(own.filter(own["action_valid"])["action_normalized"].to_pylist())
    normalizer = droid_rollout.prepared.recipe.normalizer
    # Stored as float32: a rotation's diagonal is magnified a thousand times by its narrow range.
    np.testing.assert_allclose(seen, normalizer.normalize(given), atol=1e-4)
    assert np.abs(seen).max() == 1.0
    share = droid_rollout.summary.results["share_clamped"]
    assert share > 0.1, "5 fps against statistics of 15 fps: motions are three times as long"


@pytest.mark.slow
def test_lerobot_opens_the_synthetic_dataset_and_shows_the_same_frame(droid_rollout):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = droid_rollout.output_dir / "lerobot"
    synthetic = LeRobotDataset("synthetic/rollouts", root=root, video_backend="pyav")
    lengths = [droid_rollout_length(droid_rollout, index) for index in (0, 6)]
    assert (synthetic.num_episodes, synthetic.fps) == (2, 5)
    assert len(synthetic) == sum(lengths) - 2, "the last frame of each has no action"
    sample = synthetic[lengths[0] - 1 + 7]  # frame 7 of the second episode
    assert sample["is_synthetic"].item() is True
    assert (sample["source_episode_index"].item(), sample["source_frame_index"].item()) == (6, 7)
    assert sample["task"] == droid_rollout.prepared.dataset.episode(6).task
    row = droid_rollout.rows.filter((pa.compute.field("episode_index") == 6) & (pa.compute.field("video_frame") == 7))
    np.testing.assert_allclose(sample["action"].numpy(), row["action"][0].as_py(), rtol=1e-6)
    ours = np.concatenate(list(read_clips(droid_rollout.output_dir / row["video"][0].as_py())))
    theirs = (sample["observation.images.concat_view"].numpy() * 255).transpose(1, 2, 0)
    errors = [np.abs(frame.astype(float) - theirs).mean() for frame in ours]
    assert int(np.argmin(errors)) == 7
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    roll_out(droid_rollout.prepared)
    assert {path: path.stat().st_mtime_ns for path in written} == written, "nothing new: it is not written again"


def test_more_samples_add_videos_and_leave_the_others(droid_flags, tmp_path):
    flags = ("--dataset.episodes", "[6]", "--lerobot_dataset", "false", "--chaining", "teacher_forced")
    flags += ("--dataset.cameras", "[observation.images.wrist_left]", "--view_point", "wrist_view")
    one = finish(prepare_forward, parse_config(RolloutConfig, droid_flags(tmp_path, *flags)))
    before = {path: path.stat().st_mtime_ns for path in videos_of(one)}
    two = finish(prepare_forward, parse_config(RolloutConfig, droid_flags(tmp_path, *flags, "--num_samples", "2")))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    first, second = (np.concatenate(list(read_clips(path))).astype(int) for path in videos_of(two))
    assert np.abs(first[1:] - second[1:]).mean() > 1, "another seed, another future"
    # Teacher-forced: the frame after each restart belongs to a recorded one, whatever was drawn before.
    assert set(two.rows["sample"].to_pylist()) == {0, 1}
    assert not (tmp_path / "lerobot").exists()


def test_actions_of_a_file_are_followed_from_every_first_frame(droid_flags, tmp_path):
    from pipeline.action_files import write_action_file

    given = np.tile(np.array([0.01, 0, 0, 1, 0, 0, 0, 1, 0, 1], dtype=np.float32), (20, 1))
    write_action_file(tmp_path / "push.json", given)
    flags = ("--dataset.episodes", "[6]", "--lerobot_dataset", "false", "--actions", str(tmp_path / "push.json"))
    done = finish(prepare_forward, parse_config(RolloutConfig, droid_flags(tmp_path / "out", *flags)))
    assert done.rows.num_rows == 21
    valid = done.rows.filter(done.rows["action_valid"])
    np.testing.assert_allclose(np.array(valid["action"].to_pylist()), given, rtol=1e-6)


def test_dreams_of_other_tasks_start_from_the_same_frames(droid_flags, tmp_path):
    (tmp_path / "tasks.txt").write_text("Open the drawer.\n\nClose the drawer.\n")
    flags = ("--dataset.episodes", "[0, 6]", "--tasks_path", str(tmp_path / "tasks.txt"), "--num_chunks", "2")
    flags += ("--action_chunk_size", "4", "--engine.guidance_scale", "3")
    done = finish(
        prepare_policy, parse_config(PolicyConfig, droid_flags(tmp_path / "out", *flags, "--lerobot_dataset", "false"))
    )
    videos = videos_of(done)
    assert len(videos) == 4
    assert done.rows.num_rows == 4 * 9
    assert set(done.rows["task"].to_pylist()) == {"Open the drawer.", "Close the drawer."}
    first, second = (np.concatenate(list(read_clips(path))).astype(int) for path in videos[:2])
    # The codec leaves a level or so of its own in pictures as noisy as those of random weights.
    assert np.abs(first[0] - second[0]).mean() < 3, "the same first frame"
    by_task = {
        task: done.rows.filter((pa.compute.field("task") == task) & (pa.compute.field("episode_index") == 6))
        for task in ("Open the drawer.", "Close the drawer.")
    }
    opening, closing = (rows["action"].to_pylist() for rows in by_task.values())
    assert opening != closing


_IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from stage_by_stage import drive_without_ray
from pipeline.command_line import parse_config
from pipeline.config import RolloutConfig
from pipeline.rollouts import prepare_forward
drive_without_ray(prepare_forward(parse_config(RolloutConfig, sys.argv[2:])))
"""


@pytest.mark.drill
def test_a_process_killed_amid_a_video_leaves_no_half_one_and_the_next_makes_none_twice(tiny_checkpoint, tmp_path):
    """SIGKILL while a later video is being written; Ray's own part in this is drilled with the label job."""
    root = make_recorded_v3(tmp_path / "dataset", (49,))
    flags = flags_for(root, tiny_checkpoint, tmp_path, "--dataset.cameras", "[observation.images.front]")
    flags += ["--action_normalization", "none", "--num_samples", "3", "--lerobot_dataset", "false"]
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS, str(Path(__file__).parent), *flags], env=SHELL_ENVIRONMENT
    )
    records, videos = tmp_path / "records", tmp_path / "videos"
    deadline = time.monotonic() + 200
    try:
        while not (list(records.glob("??/*.parquet")) and list(videos.glob("*/.*.partial"))):
            assert process.poll() is None, "it was to be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (*records.glob("??/*.parquet"), *videos.glob("*/*.mp4"))}
    assert len(list(videos.glob("*/.*.partial"))) == 1, "half a video"

    done = finish(prepare_forward, parse_config(RolloutConfig, flags))

    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished work was done again"
    assert not list(tmp_path.rglob("*.partial"))
    assert sorted(videos_of(done)) == sorted(videos.glob("*/*.mp4")), "one video per record, and no other"
    assert len(videos_of(done)) == 3
    for video in videos_of(done):
        assert sum(len(clip) for clip in read_clips(video)) == 49


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"data": [[0.0] * 7]}, "7"),
        ({"data": [[0.0] * 9 + [float("nan")]]}, "not finite|NaN"),
        ({"poses": [[0.0] * 10]}, "action_chunks"),
    ],
)
def test_an_action_file_that_cannot_be_used_is_told_before_a_model_is_looked_for(shared_data, tmp_path, content, told):
    path = tmp_path / "actions.json"
    path.write_text(json.dumps(content))
    config = parse_config(
        RolloutConfig,
        flags_for(
            shared_data / "droid_real", tmp_path / "no-checkpoint", tmp_path / "out",
            *("--action_normalization", "none", "--actions", str(path)),
        ),
    )  # fmt: skip
    with pytest.raises(ActionFileError, match=told):
        prepare_forward(config)


def test_a_dataset_without_actions_says_what_to_give(shared_data, tiny_checkpoint, tmp_path):
    flags = flags_for(shared_data / "droid_videos", tiny_checkpoint, tmp_path, "--dataset.cameras", "[video]")
    config = parse_config(RolloutConfig, [*flags, "--action_normalization", "none"])
    with pytest.raises(DatasetError, match="--actions labels:DIR"):
        prepare_forward(config)


def test_a_fractional_rate_is_told_before_a_week_of_work(shared_data, tiny_checkpoint, tmp_path):
    flags = flags_for(shared_data / "droid_videos", tiny_checkpoint, tmp_path, "--dataset.cameras", "[video]")
    flags += ["--action_normalization", "none", "--fps", "2.5", "--dataset.timebase", "model"]
    with pytest.raises(ConfigError, match="--lerobot_dataset false"):
        prepare_policy(parse_config(PolicyConfig, flags))
    prepare_policy(parse_config(PolicyConfig, [*flags, "--lerobot_dataset", "false"]))

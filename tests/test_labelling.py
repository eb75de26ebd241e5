"""Whole runs from flags to summary: on the one Ray of this session, or stage by stage without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from stage_by_stage import run_without_ray

from pipeline.command_line import parse_config
from pipeline.config import LabelConfig
from pipeline.labelling import label, prepare
from pipeline.outputs.records import RecordStore


def flags_for(root: Path, checkpoint: Path, output_dir: Path, *more: str) -> LabelConfig:
    return parse_config(
        LabelConfig,
        [
            *("--dataset.root", str(root), "--engine.checkpoint", str(checkpoint), "--output_dir", str(output_dir)),
            *("--image_size", "256", "--engine.num_inference_steps", "2", *more),
        ],
    )


def test_real_droid_episodes_are_labelled_whole_and_only_once(tiny_checkpoint, shared_data, tmp_path):
    config = flags_for(
        shared_data / "droid_real",
        tiny_checkpoint,
        tmp_path,
        *("--dataset.timebase", "native", "--max_segment_mib", "10", "--engine.num_inference_steps", "1"),
        *("--dataset.episodes", "[3, 6]"),
        *("--action_stats_path", str(shared_data / "stats" / "droid_lerobot_stats.json")),
    )
    prepared = prepare(config)
    assert len(prepared.missing) > 2, "small segments: episodes were cut"
    run_without_ray(prepared)
    summary = label(prepare(config))

    assert summary.is_complete
    assert summary.timebase == {"dataset_fps": 5.0, "model_fps": 5.0, "frame_stride": 1}
    assert summary.empty_tasks == 1
    assert any("empty task" in warning for warning in summary.warnings)
    labels = pq.read_table(tmp_path / "labels")
    assert (labels.num_rows, sum(labels["action_valid"].to_pylist())) == (80 + 39, 80 + 39 - 2)
    recorded = pq.read_table(
        shared_data / "droid_real" / "data/chunk-000/file-000.parquet", filters=[("episode_index", "in", [3, 6])]
    )
    for ours, theirs in (("episode_index", "episode_index"), ("frame_index", "frame_index")):
        assert labels[ours].to_pylist() == recorded[theirs].to_pylist()
    np.testing.assert_allclose(labels["timestamp"].to_numpy(), recorded["timestamp"].to_numpy(), atol=1e-6)
    assert json.loads(labels.schema.metadata[b"manifest"])["recipe"]["checkpoint_fingerprint"]
    for name in ("manifest.json", "summary.json"):
        assert json.loads((tmp_path / name).read_text())["run_id"] == summary.run_id

    assert summary.segments["recorded_earlier"] == len(prepared.missing), "nothing was left to do"


@pytest.mark.drill
def test_one_damaged_video_fails_alone_and_by_name(ray_of_this_session, tiny_checkpoint, shared_data, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(
        shared_data / "droid_videos", videos, ignore=shutil.ignore_patterns("episode_[1245].*", "captions*")
    )
    damaged = videos / "episode_3.exterior_1.mp4"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) * 6 // 10])
    _write_one_frame(videos / "single.mp4")
    config = flags_for(
        *(videos, tiny_checkpoint, tmp_path / "out"),
        *("--dataset.cameras", "[video]", "--dataset.timebase", "native", "--action_normalization", "none"),
    )
    summary = label(prepare(config))

    assert not summary.is_complete
    counts = summary.segments
    assert (counts["planned"], counts["recorded"], counts["failed"], counts["unfinished"]) == (4, 2, 2, 0)
    assert summary.exit_code == 1
    failures = {failure["error_type"]: failure["error"] for failure in summary.failures}
    assert damaged.name in failures.pop("VideoError")
    assert "at least 2" in failures.pop("EpisodeError")
    assert damaged.name in summary.render()
    labelled = set(pq.read_table(tmp_path / "out" / "labels")["episode_index"].to_pylist())
    assert len(labelled) == 2


def test_lerobot_v2_is_labelled_with_other_flags(tiny_checkpoint, shared_data, tmp_path):
    """GR1's 20 fps are taken at the embodiment's 10; its second task and its phantom camera do no harm."""
    config = flags_for(
        *(shared_data / "gr1_v2", tiny_checkpoint, tmp_path),
        *("--embodiment", "agibotworld", "--dataset.cameras", "[observation.images.ego_view]"),
        *("--view_point", "ego_view", "--dataset.episodes", "[4]"),
        *("--action_stats_path", str(shared_data / "stats" / "agibotworld_beta_lerobot_stats.json")),
    )
    prepared = prepare(config)
    statuses, labels = run_without_ray(prepared)

    assert [status["error"] for status in statuses] == [""] * len(statuses)
    assert labels.num_rows == 164, "every second of 328 frames"
    assert labels["frame_index"].to_pylist() == list(range(0, 328, 2))
    assert labels.schema.field("action").type.list_size == 29
    recorded = pq.read_table(shared_data / "gr1_v2/data/chunk-000/episode_000004.parquet")["timestamp"].to_numpy()
    np.testing.assert_allclose(labels["timestamp"].to_numpy(), recorded[::2])
    assert any("egoview" in warning for warning in prepared.dataset.warnings)


def test_plain_videos_are_labelled_with_other_flags(tiny_checkpoint, shared_data, tmp_path):
    """No actions, no state, one camera: the captions are the tasks."""
    config = flags_for(
        *(shared_data / "droid_videos", tiny_checkpoint, tmp_path),
        *("--dataset.format", "videos", "--dataset.cameras", "[video]", "--dataset.timebase", "native"),
        *("--dataset.episodes", "[0, 6]", "--action_normalization", "none"),
    )
    statuses, labels = run_without_ray(prepare(config))

    assert [status["error"] for status in statuses] == ["", ""]
    assert labels.num_rows == 56 + 39
    assert sum(labels["action_valid"].to_pylist()) == 56 + 39 - 2


def test_another_checkpoint_gives_other_records_beside_the_old(tiny_checkpoint, shared_data, tmp_path):
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    flags = (
        *("--dataset.format", "videos", "--dataset.cameras", "[video]", "--dataset.timebase", "native"),
        *("--dataset.episodes", "[6]", "--action_normalization", "none"),
    )
    videos = shared_data / "droid_videos"
    _, old = run_without_ray(prepare(flags_for(videos, tiny_checkpoint, tmp_path / "out", *flags)))
    other_checkpoint = write_tiny_checkpoint(tmp_path / "other", seed=1)
    prepared = prepare(flags_for(videos, other_checkpoint, tmp_path / "out", *flags))
    assert len(prepared.missing) == 1, "a record of another checkpoint does not count"
    _, new = run_without_ray(prepared)

    assert len(RecordStore(tmp_path / "out").keys()) == 2
    assert old["action"].to_pylist() != new["action"].to_pylist()


def _write_one_frame(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((192, 320, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())

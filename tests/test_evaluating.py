"""An evaluation from flags to metrics and report, on a small recorded dataset, and all that is refused before it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recorded_columns import droid_states, record
from stage_by_stage import drive_without_ray, finish_without_ray

from pipeline.config import DatasetConfig, EngineConfig, EvaluationConfig
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluating import Evaluation, evaluate, prepare
from pipeline.evaluation.metrics_schema import METRICS_SCHEMA, RUN_KEYS, SCHEMA
from pipeline.outputs.videos import read_clips

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_recorded_v3, make_v3

LENGTHS = (10, 6, 7)
CHUNK = 4


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory) -> Path:
    return make_recorded_v3(tmp_path_factory.mktemp("held_out") / "dataset", LENGTHS)


@pytest.fixture(scope="module")
def base(dataset_root, tiny_checkpoint) -> EvaluationConfig:
    return EvaluationConfig(
        dataset=DatasetConfig(root=str(dataset_root), cameras=("observation.images.front",)),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint), num_inference_steps=1, device="cpu"),
        action_normalization="none",
        action_chunk_size=CHUNK,
        image_size=256,
        lpips="none",
        num_samples=1,
    )


def finish(config: EvaluationConfig) -> Evaluation:
    return finish_without_ray(lambda: prepare(config), evaluate)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Evaluation:
    return finish(replace(base, num_samples=2, output_dir=str(tmp_path_factory.mktemp("evaluation"))))


def output_of(evaluation: Evaluation) -> Path:
    return evaluation.report.parents[1]


def test_metrics_are_of_every_held_out_frame(finished):
    metrics = json.loads((output_of(finished) / "metrics.json").read_text())
    assert metrics["schema"] == METRICS_SCHEMA
    assert (metrics["episodes"], metrics["frames"], metrics["num_samples"]) == (3, sum(LENGTHS) - 3, 2)
    assert [entry["episode_index"] for entry in metrics["per_episode"]] == [0, 1, 2]
    assert [step["step"] for step in metrics["horizon"]] == list(range(1, CHUNK + 1))
    for variant in ("recorded", "other_actions", "zero_motion", "copy", "ceiling"):
        assert metrics["metrics"]["psnr"][variant]["mean"] > 0
    assert metrics["metrics"]["psnr"]["recorded"]["std_over_samples"] > 0
    assert metrics["agreement"]["translation"]["unit"] == "m"
    assert metrics["settings"]["engine.num_inference_steps"] == 1
    assert metrics["checkpoint"]["fingerprint"] == metrics["recipe"]["checkpoint_fingerprint"]
    assert metrics["lpips_status"] == "LPIPS was switched off."
    documented = {key.split(".")[0].removesuffix("[]") for key in SCHEMA} | set(RUN_KEYS)
    assert set(metrics) == documented - {"comparison"}
    assert finished.is_complete
    assert metrics["verdict"] in finished.render()


def test_frames_are_in_parquet_with_the_manifest(finished):
    frames = pq.read_table(output_of(finished) / "frames")
    assert frames.num_rows == (sum(LENGTHS) - 3) * (2 + 4)
    assert json.loads(frames.schema.metadata[b"manifest"])["run_id"] == finished.metrics["run_id"]


def test_the_report_is_a_folder_of_its_own(finished):
    page = finished.report.read_text()
    assert finished.metrics["verdict"].split(" dB")[0] in page
    folder = finished.report.parent
    assert (folder / "plotly.min.js").is_file()
    videos = sorted(folder.glob("videos/*.mp4"))
    assert len(videos) == 3 * 3
    lengths = sorted(sum(len(clip) for clip in read_clips(path)) for path in videos)
    assert lengths == sorted(3 * list(LENGTHS))
    assert not re.search(r'(src|href)="https?:', page)


def test_small_segments_give_the_same_scores(base, finished, tmp_path):
    """Cut by memory: other records, the same figures."""
    small = finish(replace(base, num_samples=2, output_dir=str(tmp_path), max_segment_mib=1))
    assert small.summary.segments["planned"] > finished.summary.segments["planned"]
    for name in ("psnr", "ssim", "obedience"):
        assert small.metrics[name] == pytest.approx(finished.metrics[name], abs=2e-3)
    assert small.metrics["frames"] == finished.metrics["frames"]


def test_a_chain_has_as_many_steps_as_its_episode(base, tmp_path):
    config = replace(base, output_dir=str(tmp_path), chaining="autoregressive", gallery_episodes=0)
    evaluation = finish(config)
    assert [step["step"] for step in evaluation.metrics["horizon"]] == list(range(1, max(LENGTHS)))
    assert [step["num_episodes"] for step in evaluation.metrics["horizon"]] == [3] * 5 + [2] + [1] * 3
    assert not list(evaluation.report.parent.glob("videos/*")), "no gallery was asked for"


def test_two_checkpoints_are_compared_by_episode(base, finished, tmp_path):
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    baseline = output_of(finished) / "metrics.json"
    config = replace(
        base,
        engine=replace(base.engine, checkpoint=str(other)),
        output_dir=str(tmp_path / "out"),
        baseline=str(baseline),
        fail_below=("psnr=5", "ssim=0.99"),
    )
    evaluation = finish(config)
    comparison = evaluation.metrics["comparison"]
    assert comparison["num_common_episodes"] == 3
    expected = evaluation.metrics["psnr"] - finished.metrics["psnr"]
    assert comparison["psnr"]["mean"] == pytest.approx(expected)
    assert len(evaluation.failed_thresholds) == 1
    assert "ssim" in evaluation.failed_thresholds[0]
    assert "BELOW" in evaluation.render()


def test_an_empty_selection_is_refused(base):
    with pytest.raises(ConfigError, match="held-out selection is empty"):
        prepare(replace(base, held_out_fraction=0.1))


def test_a_baseline_that_cannot_be_compared_is_refused_first(base, finished, tmp_path, shared_data):
    without_model = replace(base, engine=replace(base.engine, checkpoint=str(tmp_path / "no-checkpoint")))
    stranger = tmp_path / "metrics.json"
    stranger.write_text(json.dumps({"schema": "somebody-elses/3"}))
    with pytest.raises(ConfigError, match=METRICS_SCHEMA):
        prepare(replace(without_model, baseline=str(stranger)))
    with pytest.raises(ConfigError, match=r"Unknown score 'psrn'.*psnr"):
        prepare(replace(without_model, fail_below=("psrn=20",)))
    on_droid = replace(
        without_model,
        dataset=DatasetConfig(root=str(shared_data / "droid_real"), timebase="native"),
        baseline=str(output_of(finished) / "metrics.json"),
    )
    with pytest.raises(ConfigError, match="another dataset"):
        prepare(on_droid)


def test_without_recorded_actions_there_is_nothing_to_hold_against(base, tmp_path):
    root = make_v3(tmp_path / "dataset", (9,), per_file=1, codec="libx264").root
    with pytest.raises(DatasetError, match="no recorded actions"):
        prepare(replace(base, dataset=replace(base.dataset, root=str(root))))


def test_an_episode_that_fails_is_left_out_and_named(base, dataset_root, tmp_path):
    import shutil

    damaged = tmp_path / "dataset"
    shutil.copytree(dataset_root, damaged)
    states = droid_states(sum(LENGTHS))
    states["observation.state.cartesian_position"][3] = np.nan
    record(damaged, states)
    config = replace(base, dataset=replace(base.dataset, root=str(damaged)), output_dir=str(tmp_path / "out"))
    statuses = drive_without_ray(prepare(config))
    failed = {status["episode_index"]: status["error"] for status in statuses if status["error"]}
    # Episode 0 itself, and episode 2, which was to be tried with episode 0's actions.
    assert sorted(failed) == [0, 2]
    assert all("not finite" in error for error in failed.values())

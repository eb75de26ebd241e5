"""Infer with a real tiny checkpoint: a segment's labels depend on the segment alone, and NaN is never a label."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import DatasetConfig, EngineConfig, LabelConfig
from pipeline.cosmos3.config import checkpoint_fingerprint
from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.datasets import open_dataset
from pipeline.errors import CheckpointError
from pipeline.plan import make_plan, window_seed
from pipeline.recipe import Recipe, make_recipe
from pipeline.stages.engine_stage import EngineSettings, fitting_batch_size
from pipeline.stages.infer import Infer
from pipeline.stages.load import Load

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video

CHUNK = 4
LENGTHS = (14, 9, 3)  # four windows of which the last was moved back, two, and one that is padded
ACTIONS = ("action", "action_normalized")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("infer")
    for number, length in enumerate(LENGTHS):
        write_video(folder / "videos" / f"{number}.mp4", range(100 * number, 100 * number + length))
    captions = [{"file_name": f"{number}.mp4", "text": f"Task {number}."} for number in range(2)]
    (folder / "videos" / "captions.jsonl").write_text("\n".join(json.dumps(caption) for caption in captions))
    (folder / "stats.json").write_text(json.dumps({"q01": [-2.0] * 10, "q99": [4.0] * 10}))
    return folder


@pytest.fixture(scope="module")
def recipe(folder, tiny_checkpoint) -> Recipe:
    config = LabelConfig(
        dataset=DatasetConfig(cameras=("video",)),
        engine=EngineConfig(num_inference_steps=2, dtype="float32"),
        action_stats_path=str(folder / "stats.json"),
        action_chunk_size=CHUNK,
        image_size=256,
    )
    return make_recipe(config, open_dataset(folder / "videos"), checkpoint_fingerprint(tiny_checkpoint))


@pytest.fixture(scope="module")
def rows(folder, recipe) -> list[dict]:
    root = folder / "videos"
    plan = make_plan(open_dataset(root), recipe, max_segment_bytes=64 * 1024**2)
    load = Load(str(root), "videos", recipe)
    return [load(segment.to_row()) for segment in plan.segments]


def make_infer(recipe: Recipe, checkpoint: Path, batch_size: int | None) -> Infer:
    settings = EngineSettings(
        checkpoint=str(checkpoint), device="cpu", batch_size=batch_size, text_cache_bytes=2**20, num_threads=1
    )
    return Infer(recipe, settings)


def spy_on_steps(infer: Infer, monkeypatch) -> list[int]:
    """The sizes of the batches that really reach the engine."""
    sizes, step = [], infer._batcher._step

    def counted(requests):
        sizes.append(len(requests))
        return step(requests)

    monkeypatch.setattr(infer._batcher, "_step", counted)
    return sizes


@pytest.fixture(scope="module")
def one_by_one(recipe, rows, tiny_checkpoint) -> list[dict]:
    """Every window in a forward of its own."""
    infer = make_infer(recipe, tiny_checkpoint, 1)
    return [infer(row) for row in rows]


def assert_same_labels(found: list[dict], expected: list[dict]) -> None:
    for row, other in zip(found, expected, strict=True):
        assert row["error"] == other["error"] == ""
        assert row["key"] == other["key"]
        for name in ACTIONS:
            np.testing.assert_allclose(row[name], other[name], rtol=1e-5, atol=1e-5)


def test_every_window_has_an_answer_in_units_of_the_statistics(rows, one_by_one):
    for before, after, num_windows in zip(rows, one_by_one, (4, 2, 1), strict=True):
        assert after["error"] == ""
        assert len(before["window_starts"]) == num_windows
        for name in ACTIONS:
            assert after[name].shape == (num_windows, CHUNK, 10)
            assert after[name].dtype == np.float32
            assert np.isfinite(after[name]).all()
        np.testing.assert_allclose(after["action"], 3 * after["action_normalized"] + 1, atol=1e-5)
        assert not {"frames", "canvas"} & set(after)
        assert set(before) - {"frames", "canvas"} <= set(after)


def test_every_window_is_what_the_engine_alone_says_about_its_frames(folder, recipe, rows, one_by_one, tiny_checkpoint):
    """Five frames from the window's start on, its own task and its own seed, by the engine's public names."""
    dataset = open_dataset(folder / "videos")
    engine = Engine.from_pretrained(tiny_checkpoint, device="cpu")
    processor = Cosmos3PolicyProcessor(
        tiny_checkpoint,
        mode="inverse_dynamics",
        domain_name="droid_lerobot",
        action_chunk_size=CHUNK,
        fps=15.0,
        image_size=256,
        view_point="third_person_view",
        action_normalization="quantile",
        action_stats_path=folder / "stats.json",
    )
    for before, after in zip(rows, one_by_one, strict=True):
        episode, length = before["episode_index"], before["num_positions"]
        for number, start in enumerate(before["window_starts"]):
            clip = dataset.read_frames(episode, "video", range(start, min(start + CHUNK + 1, length)))
            inputs = processor.preprocess({"images": clip, "task": f"Task {episode}." if episode < 2 else ""})
            seed = window_seed(0, before["input_digest"], start)
            [result] = engine.step([processor.to_request(inputs, seed=seed, num_inference_steps=2)])
            for name, expected in processor.postprocess(result).items():
                np.testing.assert_allclose(after[name][number], expected, rtol=1e-5, atol=1e-5)


def test_windows_of_different_content_have_different_answers(one_by_one):
    """Else the comparisons below would compare nothing."""
    windows = np.concatenate([row["action"] for row in one_by_one])
    for number, window in enumerate(windows):
        assert np.abs(np.delete(windows, number, axis=0) - window).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("batch_size", [3, None])
def test_labels_do_not_depend_on_the_batch_size(recipe, rows, one_by_one, tiny_checkpoint, monkeypatch, batch_size):
    infer = make_infer(recipe, tiny_checkpoint, batch_size)
    sizes = spy_on_steps(infer, monkeypatch)
    assert_same_labels([infer(row) for row in rows], one_by_one)
    assert sizes == ([3, 1, 2, 1] if batch_size == 3 else [4, 2, 1])


def test_labels_do_not_depend_on_how_many_segments_share_a_batch(
    recipe, rows, one_by_one, tiny_checkpoint, monkeypatch
):
    infer = make_infer(recipe, tiny_checkpoint, 5)
    sizes = spy_on_steps(infer, monkeypatch)
    with ThreadPoolExecutor(len(rows)) as pool:
        all_windows_wait = threading.Event()
        infer._batcher._engine_thread.submit(all_windows_wait.wait, 30)
        futures = [pool.submit(infer, row) for row in rows]
        deadline = time.monotonic() + 20
        while len(infer._batcher._waiting) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        all_windows_wait.set()
        found = [future.result(60) for future in futures]
    assert sizes == [5, 2]
    assert_same_labels(found, one_by_one)


def test_a_second_call_gives_the_same_labels_and_another_seed_others(recipe, rows, one_by_one, tiny_checkpoint):
    infer = make_infer(recipe, tiny_checkpoint, 1)
    assert_same_labels([infer(rows[2]), infer(rows[2])], [one_by_one[2]] * 2)
    other = make_infer(replace(recipe, seed=1), tiny_checkpoint, 1)(rows[2])
    assert np.abs(other["action"] - one_by_one[2]["action"]).max() > 1e-3


def test_the_automatic_batch_fills_the_device(recipe, rows, tiny_checkpoint):
    """Two latent frames of 6x8, in patches of 2x2, and four actions: 28 tokens a window."""
    infer = make_infer(recipe, tiny_checkpoint, None)
    request = infer._requests(rows[0])[0]
    assert request.video_shape == (2, 6, 8)
    assert fitting_batch_size(request, "cpu") == 1024 // 28
    assert fitting_batch_size(request, "cuda") == 4096 // 28
    infer(rows[2])
    assert infer._batcher.batch_size == 1024 // 28


def test_a_row_that_failed_before_is_not_computed(recipe, rows, tiny_checkpoint, monkeypatch):
    infer = make_infer(recipe, tiny_checkpoint, 1)
    sizes = spy_on_steps(infer, monkeypatch)
    out = infer(rows[0] | {"error": "gone.mp4 is missing", "error_type": "VideoError"})
    assert sizes == []
    assert (out["error_type"], out["action"].shape) == ("VideoError", (0, CHUNK, 10))


def test_other_weights_than_the_drivers_are_refused(recipe, tiny_checkpoint):
    """Their labels would stand under the wrong key."""
    with pytest.raises(CheckpointError, match="other weights"):
        make_infer(replace(recipe, checkpoint_fingerprint="of another checkpoint"), tiny_checkpoint, 1)


def test_nan_is_never_a_label(recipe, rows, tiny_checkpoint, tmp_path):
    """A checkpoint whose weights are NaN: the segment fails, with the reason, and carries no action."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "nan"))
    [weights] = (checkpoint / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    spoilt = {name: torch.full_like(value, torch.nan) for name, value in tensors.items() if "action_proj_out" in name}
    assert spoilt, "the model's action head has another name now"
    save_file(tensors | spoilt, weights, metadata={"format": "pt"})
    own = replace(recipe, checkpoint_fingerprint=checkpoint_fingerprint(checkpoint))
    out = make_infer(own, checkpoint, 4)(rows[1])
    assert out["error_type"] == "ResultError"
    assert "not finite" in out["error"]
    assert out["key"] == rows[1]["key"]
    assert [out[name].shape for name in ACTIONS] == [(0, CHUNK, 10)] * 2

"""The evaluation against models whose scores are known beforehand: one is right, one copies, one is deaf.

The doubles stand in for the engine's `step` alone; VAE, processor, metrics and scores are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.actions import load_normalizer, standing_still
from pipeline.cosmos3.config import checkpoint_fingerprint
from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult
from pipeline.datasets import Timebase
from pipeline.demo.checkpoint import write_tiny_checkpoint
from pipeline.embodiments import get_embodiment
from pipeline.evaluation.agreement import ActionLayout
from pipeline.evaluation.gallery import PANELS, gallery_path
from pipeline.evaluation.scores import score
from pipeline.outputs.videos import read_clips
from pipeline.plan import window_seed
from pipeline.recipe import EvaluationRecipe
from pipeline.stages.engine_stage import EngineSettings
from pipeline.stages.evaluate import Evaluate
from pipeline.views import choose_canvas, pad

CHUNK, NUM_FRAMES = 4, 11
HEIGHT, WIDTH, DRAWN_WIDTH = 64, 58, 48  # the VAE draws whole multiples of 16
CANVAS = choose_canvas(HEIGHT, WIDTH, 256)
EMBODIMENT = get_embodiment("droid_lerobot")
METRICS = ("psnr", "ssim", "moving_psnr", "moving_share")
Step = Callable[[Sequence[Cosmos3ActionRequest]], list[Cosmos3ActionResult]]


def recipe_for(chaining: str, num_samples: int = 1) -> EvaluationRecipe:
    return EvaluationRecipe(
        mode="forward_dynamics",
        embodiment=EMBODIMENT,
        raw_action_dim=10,
        action_chunk=CHUNK,
        cameras=("observation.images.front",),
        view_point="third_person_view",
        view_description="",
        image_size=256,
        prompt_format="json",
        timebase=Timebase(30.0, 15.0, 2),
        normalizer=load_normalizer("none", None, 10),
        checkpoint_fingerprint="weights",
        num_inference_steps=2,
        guidance_scale=1.0,
        flow_shift=10.0,
        use_karras_sigmas=False,
        dtype="float32",
        seed=3,
        chaining=chaining,
        actions={"source": "recorded"},
        num_samples=num_samples,
        lpips="",
        metrics_version=1,
    )


def moving_square() -> np.ndarray:
    """uint8 [F, H, W, 3]: a bright square that crosses a shaded ground."""
    ground = np.linspace(40, 160, WIDTH, dtype=np.uint8)[None, None, :, None]
    frames = np.repeat(np.broadcast_to(ground, (1, HEIGHT, WIDTH, 3)), NUM_FRAMES, axis=0).copy()
    for number, frame in enumerate(frames):
        frame[20:44, 2 + 2 * number : 18 + 2 * number] = (230, 60, 20)
    return frames


def make_row(chaining: str, *, in_gallery: bool = False) -> dict:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (NUM_FRAMES - 1, 10))
    return {
        "key": "0123456789abcdef0123",
        "input_digest": "content",
        "episode_index": 4,
        "task": "Push.",
        "num_positions": NUM_FRAMES,
        "window_starts": [0, 4, 8] if chaining == "autoregressive" else [0, 4, 6],
        "label_start": 0,
        "label_stop": NUM_FRAMES - 1,
        "problem": "",
        "error_type": "",
        "error": "",
        "failed_stage": "",
        "other_episode_index": 5,
        "in_gallery": in_gallery,
        "frames": moving_square(),
        "canvas": np.array(astuple(CANVAS)),
        "timestamps": np.arange(NUM_FRAMES) / 15,
        "actions": actions,
        "other_actions": rng.uniform(-1, 1, (NUM_FRAMES - 1, 10)),
        "still_actions": standing_still(actions, EMBODIMENT.rot6d_starts),
    }


class StageMaker:
    """Builds the stage once per recipe and swaps what answers its requests."""

    def __init__(self, checkpoint: Path, output_dir: Path) -> None:
        self._settings = EngineSettings(
            checkpoint=str(checkpoint), device="cpu", batch_size=8, text_cache_bytes=2**26, num_threads=2
        )
        self.output_dir = output_dir
        self._fingerprint = checkpoint_fingerprint(checkpoint)

    def __call__(self, recipe: EvaluationRecipe, make_step: Callable[[Evaluate], Step] | None = None) -> Evaluate:
        recipe = replace(recipe, checkpoint_fingerprint=self._fingerprint)
        stage = Evaluate(recipe, self._settings, str(self.output_dir), "none")
        if make_step is not None:
            stage._batcher._step = make_step(stage)
        return stage


@pytest.fixture(scope="module")
def make_stage(tmp_path_factory) -> StageMaker:
    """With a VAE that is wider than other tests': through theirs, this row's actions hardly show in the pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    return StageMaker(write_tiny_checkpoint(folder / "checkpoint"), folder / "output")


def measured(stage: Evaluate, row: dict) -> pa.Table:
    status = stage(row)
    assert not status["error"], status["error"]
    return pa.ipc.open_stream(status["measured"]).read_all()


def metrics_of(rows: pa.Table, variant: str, sample: int = 0) -> np.ndarray:
    chosen = rows.filter((pa.compute.field("variant") == variant) & (pa.compute.field("sample") == sample))
    chosen = chosen.sort_by("frame_index")
    return np.array([chosen[name].to_numpy(zero_copy_only=False) for name in METRICS])


def scored(rows: pa.Table) -> dict:
    layout = ActionLayout(EMBODIMENT.action_names, EMBODIMENT.rot6d_starts, EMBODIMENT.gripper_columns)
    return score(rows, layout, lpips_status="off")


def start_of(request: Cosmos3ActionRequest, row: dict) -> int:
    """The frame that a teacher-forced request starts from: its seed counts up with it."""
    return request.seed - window_seed(3, row["input_digest"], 0)


def first_frame_of(request: Cosmos3ActionRequest, row: dict) -> torch.Tensor:
    """What a model that only copies would draw."""
    frame = torch.from_numpy(row["frames"][start_of(request, row), :, :DRAWN_WIDTH]).permute(2, 0, 1) / 255
    return frame[:, None].expand(-1, CHUNK + 1, -1, -1)


def answering_forward(answer: Callable[[Cosmos3ActionRequest], torch.Tensor]) -> Callable[[Evaluate], Step]:
    """A step whose forward rollouts are `answer`'s pixels [3, T, H, W]; everything else is the engine's."""

    def make(stage: Evaluate) -> Step:
        def step(requests):
            results = stage._engine.step(requests)
            return [
                replace(result, pixels=answer(request)) if request.mode == "forward_dynamics" else result
                for request, result in zip(requests, results, strict=True)
            ]

        return step

    return make


def test_the_true_video_scores_at_the_ceiling(make_stage):
    row = make_row("teacher_forced")

    def make(stage: Evaluate) -> Step:
        def true_video(request: Cosmos3ActionRequest) -> torch.Tensor:
            start = start_of(request, row)
            clip = row["frames"][start : start + CHUNK + 1]
            inputs = stage._processor.window_inputs(clip, CANVAS, row["task"], mode="inverse_dynamics")
            passed = stage._processor.to_request(inputs, seed=0, decode_video=True, num_inference_steps=1)
            return stage._engine.step([passed])[0].pixels

        return answering_forward(true_video)(stage)

    rows = measured(make_stage(recipe_for("teacher_forced"), make), row)
    # The VAE passes clips alone or several at a time, which may turn a level of 255 here and there.
    np.testing.assert_allclose(metrics_of(rows, "recorded"), metrics_of(rows, "ceiling"), atol=1e-3)
    metrics = scored(rows)
    assert metrics["gains"]["ceiling"]["psnr"]["mean"] == pytest.approx(0, abs=1e-3)
    assert metrics["psnr"] == pytest.approx(metrics["metrics"]["psnr"]["ceiling"]["mean"], abs=1e-3)


def test_a_model_that_copies_the_first_frame_scores_exactly_the_copy(make_stage):
    row = make_row("teacher_forced")

    def copied(request: Cosmos3ActionRequest) -> torch.Tensor:
        return first_frame_of(request, row)

    rows = measured(make_stage(recipe_for("teacher_forced"), answering_forward(copied)), row)
    np.testing.assert_array_equal(metrics_of(rows, "recorded"), metrics_of(rows, "copy"))
    metrics = scored(rows)
    assert metrics["gains"]["copy"]["psnr"]["mean"] == metrics["gains"]["copy"]["ssim"]["mean"] == 0
    assert metrics["psnr"] < 30, "something moves, so that a copy is not right"


@pytest.mark.parametrize("chaining", ["teacher_forced", "autoregressive"])
def test_a_model_that_ignores_its_actions_shows_no_drop(make_stage, chaining):
    def deaf(stage: Evaluate) -> Step:
        def step(requests):
            return stage._engine.step(
                [
                    request if request.cond_action is None else replace(request, cond_action=0 * request.cond_action)
                    for request in requests
                ]
            )

        return step

    metrics = scored(measured(make_stage(recipe_for(chaining), deaf), make_row(chaining)))
    # Requests of one batch are equal to 1e-5, which rounding to 8 bits may turn into a level here and there.
    assert abs(metrics["obedience"]) < 1e-3
    assert abs(metrics["obedience_zero_motion"]) < 1e-3
    listening = scored(measured(make_stage(recipe_for(chaining)), make_row(chaining)))
    assert abs(listening["obedience"]) > 1e-3, "else this test sees nothing"


@pytest.mark.parametrize("chaining", ["teacher_forced", "autoregressive"])
def test_every_frame_is_scored_once_per_variant_and_sample(make_stage, chaining):
    row = make_row(chaining)
    rows = measured(make_stage(recipe_for(chaining, num_samples=2)), row)

    for variant, samples in {"recorded": 2, "other_actions": 1, "zero_motion": 1, "copy": 1, "ceiling": 1}.items():
        for sample in range(samples):
            chosen = rows.filter((pa.compute.field("variant") == variant) & (pa.compute.field("sample") == sample))
            assert chosen["frame_index"].to_pylist() == list(range(2, 2 * NUM_FRAMES, 2))
    recorded = rows.filter((pa.compute.field("variant") == "recorded") & (pa.compute.field("sample") == 0))
    steps = recorded["horizon_step"].to_pylist()
    if chaining == "autoregressive":
        assert steps == list(range(1, NUM_FRAMES))
        assert set(recorded["rollout_start"].to_pylist()) == {0}
    else:
        # The last window was moved back to end with the episode: it answers for its last two frames only.
        assert steps == [*range(1, 5), *range(1, 5), 3, 4]
        assert recorded["rollout_start"].to_pylist() == [0] * 4 + [8] * 4 + [12] * 2
    np.testing.assert_allclose(recorded["timestamp"].to_numpy(), np.arange(1, NUM_FRAMES) / 15)
    given = np.array(recorded["action_given"].to_pylist())
    np.testing.assert_allclose(given, row["actions"], rtol=1e-6)
    still = rows.filter(pa.compute.field("variant") == "zero_motion")
    np.testing.assert_allclose(
        np.array(still["action_given"].to_pylist())[:, :9], [[0, 0, 0, 1, 0, 0, 0, 1, 0]] * (NUM_FRAMES - 1)
    )
    for variant, is_recovered in {"recorded": True, "ceiling": True, "copy": False, "zero_motion": False}.items():
        chosen = rows.filter(pa.compute.field("variant") == variant)["action_recovered"]
        assert chosen.null_count == (0 if is_recovered else len(chosen))


def test_the_recording_is_compared_as_the_vae_could_draw_it(make_stage):
    """Cropped to whole latents, and never the raw frames: the ceiling is the VAE's own error and nothing else."""
    row = make_row("teacher_forced")
    stage = make_stage(recipe_for("teacher_forced"))
    rows = measured(stage, row)
    clip = torch.from_numpy(pad(row["frames"][: CHUNK + 1], CANVAS)).permute(3, 0, 1, 2)
    rows_px, columns_px = HEIGHT // 16, DRAWN_WIDTH // 16
    with torch.inference_mode():
        latents = stage._engine.vae.encode([clip])[0][:, :, :rows_px, :columns_px]
        drawn = (stage._engine.vae.decode(latents) * 255).round().permute(1, 2, 3, 0).numpy()[1:]
    error = ((drawn - row["frames"][1 : CHUNK + 1, :, :DRAWN_WIDTH].astype(float)) ** 2).mean(axis=(1, 2, 3))
    by_hand = 10 * np.log10(255**2 / error)
    np.testing.assert_allclose(metrics_of(rows, "ceiling")[0][:CHUNK], by_hand, atol=1e-3)


def test_the_gallery_shows_the_same_moments(make_stage):
    row = make_row("teacher_forced", in_gallery=True)

    def copied(request: Cosmos3ActionRequest) -> torch.Tensor:
        return first_frame_of(request, row)

    measured(make_stage(recipe_for("teacher_forced"), answering_forward(copied)), row)
    panels = {
        panel: np.concatenate(list(read_clips(make_stage.output_dir / gallery_path(row["key"], panel))))
        for panel in PANELS
    }
    assert {frames.shape for frames in panels.values()} == {(NUM_FRAMES, HEIGHT, DRAWN_WIDTH, 3)}
    assert np.abs(panels["recorded"].astype(int) - row["frames"][:, :, :DRAWN_WIDTH]).mean() < 4
    expected = np.minimum(2 * np.abs(panels["rollout"].astype(int) - panels["recorded"]), 255)
    assert np.abs(panels["difference"] - expected).mean() < 4
    assert np.abs(panels["rollout"][4].astype(int) - row["frames"][0, :, :DRAWN_WIDTH]).mean() < 4
    assert np.abs(panels["rollout"][5].astype(int) - row["frames"][4, :, :DRAWN_WIDTH]).mean() < 4, (
        "drawn anew from frame 4"
    )


def test_a_short_episode_is_scored_as_far_as_it_goes(make_stage):
    row = make_row("teacher_forced")
    for name in ("frames", "timestamps"):
        row[name] = row[name][:4]
    for name in ("actions", "other_actions", "still_actions"):
        row[name] = row[name][:3]
    row |= {"window_starts": [0], "num_positions": 4, "label_stop": 3}
    rows = measured(make_stage(recipe_for("teacher_forced")), row)
    assert rows.num_rows == 3 * 5
    assert sorted(set(rows["horizon_step"].to_pylist())) == [1, 2, 3]


def test_without_another_episode_that_variant_is_left_out(make_stage):
    row = make_row("teacher_forced")
    row["other_actions"] = row["other_actions"][:0]
    rows = measured(make_stage(recipe_for("teacher_forced")), row)
    assert set(rows["variant"].to_pylist()) == {"recorded", "zero_motion", "copy", "ceiling"}
    assert scored(rows)["obedience"] is None

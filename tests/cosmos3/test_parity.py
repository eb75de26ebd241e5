"""The engine against diffusers' own pipeline on the same folder, from the same noise, in fp32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peer import load_peer, peer_noise, run_peer
from request_factory import CHANNELS, relative_error

from pipeline.actions import load_normalizer
from pipeline.cosmos3.chaining import Start, roll_out
from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.cosmos3.prompt import Caption
from pipeline.demo import STATISTICS, TRAINED
from pipeline.demo.choreography import true_actions
from pipeline.demo.dataset import render_composed
from pipeline.demo.scripted import play_demo
from pipeline.views import choose_canvas

SEED, FPS = 3, 15.0
GRID = (11, 13)  # odd on both axes: the last row and column of patches are half padding
FRAMES = np.random.RandomState(0).randint(0, 256, (17, 16 * GRID[0], 16 * GRID[1], 3), dtype=np.uint8)
WIDTHS = {"droid_lerobot": 10, "agibotworld": 29}
TOLERANCE = 1e-4


class Pair(NamedTuple):
    """The two sides, under one schedule."""

    engine: Engine
    peer: Any


@pytest.fixture(scope="module", params=["native", "karras"])
def pair(request, tiny_checkpoint) -> Pair:
    return _load_pair(tiny_checkpoint, native=request.param == "native")


@pytest.fixture(scope="module")
def native_pair(tiny_checkpoint) -> Pair:
    return _load_pair(tiny_checkpoint, native=True)


def _load_pair(folder, *, native: bool) -> Pair:
    engine = Engine.from_pretrained(folder, device="cpu", use_karras_sigmas=not native, decode_video=True)
    return Pair(engine, load_peer(folder, native_schedule=native))


def _answers(
    pair: Pair,
    *,
    mode: str,
    domain_name: str = "droid_lerobot",
    chunk: int = 8,
    steps: int = 6,
    guidance: float = 1.0,
    output_type: str = "latent",
    frames: np.ndarray = FRAMES,
    task: str = "do a thing",
    given: torch.Tensor | None = None,
):
    """(ours, the peer's action or None, the peer's video) for one observation."""
    if mode == "forward_dynamics" and given is None:  # fewer rows than the chunk has
        given = torch.randn(chunk - 3, WIDTHS[domain_name], generator=torch.Generator().manual_seed(1))
    action, video = run_peer(
        pair.peer,
        prompt=task,
        frames=frames[: chunk + 1],
        seed=SEED,
        fps=FPS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type=output_type,
        mode=mode,
        chunk_size=chunk,
        domain_name=domain_name,
        resolution_tier=256,
        view_point="ego_view",
        raw_actions=given,
    )
    processor = Cosmos3PolicyProcessor(
        pair.engine.config.folder,
        mode=mode,
        domain_name=domain_name,
        action_chunk_size=chunk,
        fps=FPS,
        image_size=256,
        view_point="ego_view",
    )
    inputs = processor.preprocess({"images": frames[: chunk + 1], "task": task, "cond_action": given})
    channels, grid = pair.engine.config.transformer.latent_channel, (side // 16 for side in frames.shape[1:3])
    video_noise, action_noise = peer_noise(SEED, (channels, 1 + chunk // 4, *grid), chunk)
    request = processor.to_request(
        inputs,
        num_inference_steps=steps,
        guidance_scale=guidance,
        video_noise=video_noise,
        action_noise=action_noise,
        decode_video=output_type != "latent",
    )
    return pair.engine.step([request])[0], action, video


@pytest.mark.parametrize("domain_name", WIDTHS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["inverse_dynamics", "policy", "forward_dynamics"])
def test_actions_and_latents_are_the_peers(pair, mode, guidance, domain_name):
    """Both schedules, an odd grid, chunk 8, conditioning actions shorter than the chunk."""
    ours, action, video = _answers(pair, mode=mode, guidance=guidance, domain_name=domain_name)
    assert ours.action.shape == (8, WIDTHS[domain_name])
    assert relative_error(ours.video, video) < TOLERANCE
    assert (action is None) == (mode == "forward_dynamics")
    if action is not None:
        assert relative_error(ours.action, action) < TOLERANCE


@pytest.mark.parametrize("mode", ["inverse_dynamics", "policy"])
def test_thirty_steps_of_a_full_chunk_are_the_peers(native_pair, mode):
    ours, action, video = _answers(native_pair, mode=mode, chunk=16, steps=30)
    assert relative_error(ours.action, action) < TOLERANCE
    assert relative_error(ours.video, video) < TOLERANCE


def test_decoded_pixels_are_the_peers(native_pair):
    ours, _, frames = _answers(native_pair, mode="forward_dynamics", output_type="np")
    expected = torch.from_numpy(np.asarray(frames)).permute(3, 0, 1, 2)
    assert ours.pixels.shape == (3, 9, 16 * GRID[0], 16 * GRID[1])
    assert relative_error(ours.pixels, expected) < TOLERANCE


@pytest.fixture(scope="module")
def demo_pair() -> Pair:
    return _load_pair(TRAINED, native=True)


@pytest.mark.parametrize("mode", ["inverse_dynamics", "policy", "forward_dynamics"])
def test_the_demo_s_checkpoint_gives_the_peers_answers(demo_pair, mode):
    """Weights that learned something, asked about what they learned from: a whole chunk of the demo's first episode.

    The peer's prompts have no sentence for composed views, so both are told of a single one.
    """
    recording = play_demo(seed=0)[0]
    frames = render_composed(recording, range(17))
    normalizer = load_normalizer("quantile", STATISTICS, 10)
    actions = torch.from_numpy(normalizer.normalize(true_actions(recording)[:16]))
    given = actions if mode == "forward_dynamics" else None
    ours, action, video = _answers(
        demo_pair, mode=mode, chunk=16, steps=8, frames=frames, task=recording.task, given=given
    )
    assert relative_error(ours.video, video) < TOLERANCE
    if action is not None:
        assert relative_error(ours.action, action) < TOLERANCE


def test_the_schedules_answer_differently(tiny_checkpoint):
    """Otherwise agreement under both would say nothing about either."""
    native, karras = (_answers(_load_pair(tiny_checkpoint, native=flag), mode="policy")[0] for flag in (True, False))
    assert relative_error(native.action, karras.action) > 100 * TOLERANCE


@pytest.mark.parametrize("task", ["put the cup down", "Stop!", "Öffne die „Tür“"])
@pytest.mark.parametrize(
    ("view_point", "num_frames", "fps", "height_px", "width_px"),
    [
        ("ego_view", 17, 15.0, 544, 736),
        ("third_person_view", 33, 15.0, 480, 832),
        ("wrist_view", 61, 10.0, 320, 192),
        ("concat_view", 17, 5.0, 256, 256),
    ],
)
def test_prompt_ids_are_the_peers(native_pair, tokenizer, task, view_point, num_frames, fps, height_px, width_px):
    size = {"height": height_px, "width": width_px}
    text_ids, negative_ids = native_pair.peer.tokenize_prompt(
        task, num_frames=num_frames, fps=fps, action_mode="policy", action_view_point=view_point, **size
    )
    caption = Caption(
        task=task,
        view_point=view_point,
        view_description="",
        num_frames=num_frames,
        fps=fps,
        height_px=height_px,
        width_px=width_px,
    )
    assert list(tokenizer.encode(caption.render("json"))) == text_ids
    assert list(tokenizer.encode("")) == negative_ids


def test_each_chunk_of_a_rollout_is_what_the_peer_draws_from_the_same_frame(native_pair):
    """Two chunks chained by us; the peer gets each chunk's first frame as an image, and that chunk's actions."""
    chunk, given = 8, torch.randn(16, 10, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    processor = Cosmos3PolicyProcessor(
        native_pair.engine.config.folder, action_chunk_size=chunk, fps=FPS, image_size=256, view_point="ego_view"
    )
    video_noise, action_noise = peer_noise(SEED, (CHANNELS, 1 + chunk // 4, *GRID), chunk)
    latents = []

    def run(requests):
        noisy = [replace(request, video_noise=video_noise, action_noise=action_noise) for request in requests]
        results = native_pair.engine.step(noisy)
        latents.extend(result.video for result in results)
        return results

    start = Start(
        frame=FRAMES[0],
        canvas=choose_canvas(*FRAMES.shape[1:3], 256),
        task="do a thing",
        seed=SEED,
        num_chunks=2,
        actions=given.numpy(),
    )
    first, _ = (step[0] for step in roll_out(run, processor, [start], mode="forward_dynamics", num_inference_steps=6))
    for number, image in enumerate((FRAMES[0], first.frames[-1])):
        _, theirs = run_peer(
            native_pair.peer,
            prompt="do a thing",
            frames=image[None],
            seed=SEED,
            fps=FPS,
            num_inference_steps=6,
            guidance_scale=1.0,
            mode="forward_dynamics",
            chunk_size=chunk,
            domain_name="droid_lerobot",
            resolution_tier=256,
            view_point="ego_view",
            raw_actions=given[number * chunk : (number + 1) * chunk],
        )
        assert relative_error(latents[number], theirs) < TOLERANCE

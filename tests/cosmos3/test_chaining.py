"""Rollouts of several chunks: each starts where the one before it ended, alone or together with others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.action_files import write_action_file
from pipeline.cosmos3.chaining import Chunk, Start, roll_out, to_frames
from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.errors import ResultError
from pipeline.single import SingleRequest, answer, prepare, write
from pipeline.views import choose_canvas

STEPS = 3
CHUNK = 8
# Content 90 wide is cut to 80 by the latent grid, so the second chunk starts from a smaller picture than the first.
SIZES = ((96, 80), (96, 90))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu", decode_video=True)


@pytest.fixture(scope="module")
def processor(tiny_checkpoint) -> Cosmos3PolicyProcessor:
    return Cosmos3PolicyProcessor(
        tiny_checkpoint, action_chunk_size=CHUNK, image_size=256, view_point="third_person_view"
    )


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 7]).uniform(-1, 1, (count, 10))


def start_of(frame: np.ndarray, **changes) -> Start:
    fields = {"canvas": choose_canvas(*frame.shape[:2], 256), "task": "Push.", "seed": 5} | changes
    return Start(frame=frame, **fields)


def chain(engine: Engine, processor: Cosmos3PolicyProcessor, *starts: Start, mode: str) -> list[list[Chunk]]:
    return list(roll_out(engine.step, processor, starts, mode=mode, num_inference_steps=STEPS))


def test_a_chain_of_three_equals_three_single_requests(engine, processor, tiny_checkpoint, tmp_path):
    """By the files that a user would hand on: the last frame's PNG and a part of the actions."""
    frame, given = picture(96, 80), actions(3 * CHUNK)
    chunks = [
        chunk
        for (chunk,) in chain(engine, processor, start_of(frame, actions=given, num_chunks=3), mode="forward_dynamics")
    ]
    image = tmp_path / "first.png"
    Image.fromarray(frame).save(image)
    for number, chunk in enumerate(chunks):
        action_file = tmp_path / f"actions_{number}.json"
        write_action_file(action_file, given[number * CHUNK : (number + 1) * CHUNK].astype(np.float32))
        settings = SingleRequest(
            checkpoint=str(tiny_checkpoint),
            image=str(image),
            prompt="Push.",
            mode="forward_dynamics",
            action_file=str(action_file),
            action_chunk_size=CHUNK,
            image_size=256,
            num_inference_steps=STEPS,
            seed=5 + number,
            output_dir=str(tmp_path),
            out=f"chunk_{number}",
        )
        prepared = prepare(settings)
        single = answer(prepared, engine)
        assert np.array_equal(single.frames, chunk.frames), f"chunk {number}"
        image = write(prepared, single)["last_frame"]
    assert not np.array_equal(chunks[0].frames, chunks[1].frames)


@pytest.mark.parametrize("size", SIZES)
def test_the_latent_grid_stays_and_the_shared_frame_is_nearly_the_same(engine, processor, size):
    start = start_of(picture(*size), actions=actions(2 * CHUNK), num_chunks=2)
    (first,), (second,) = chain(engine, processor, start, mode="forward_dynamics")

    height, width = size[0] // 16 * 16, size[1] // 16 * 16
    assert first.frames.shape == second.frames.shape == (CHUNK + 1, height, width, 3)
    assert (first.seed, second.seed) == (5, 6)


def test_together_or_alone_a_rollout_is_the_same(engine, processor):
    """Unlike starts advance in one step; one of them ends earlier."""
    starts = [
        start_of(picture(96, 80), actions=actions(2 * CHUNK), num_chunks=2),
        start_of(picture(64, 96, seed=1), actions=actions(CHUNK, seed=1), num_chunks=1, seed=9),
        start_of(picture(96, 80), actions=actions(2 * CHUNK, seed=2), num_chunks=2),
    ]
    together = chain(engine, processor, *starts, mode="forward_dynamics")
    assert [len(step) for step in together] == [3, 2]
    by_start = [[together[0][0], together[1][0]], [together[0][1]], [together[0][2], together[1][1]]]
    for start, chunks in zip(starts, by_start, strict=True):
        alone = [step[0] for step in chain(engine, processor, start, mode="forward_dynamics")]
        for ours, theirs in zip(chunks, alone, strict=True):
            # A level of 255 is 4e-3; equal latents to 1e-5 may still round to neighbouring levels.
            assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1


def test_actions_are_cut_into_chunks_and_the_last_row_is_repeated(engine, processor):
    given = actions(CHUNK + 3)
    whole = chain(engine, processor, start_of(picture(96, 80), actions=given, num_chunks=2), mode="forward_dynamics")
    normalized = np.concatenate([chunk.action_normalized for (chunk,) in whole])
    np.testing.assert_allclose(normalized[: CHUNK + 3], given, atol=1e-6)
    np.testing.assert_allclose(normalized[CHUNK + 3 :], np.repeat(given[-1:], CHUNK - 3, axis=0), atol=1e-6)


def test_in_policy_mode_the_model_chooses(engine, processor):
    ((chunk,),) = chain(engine, processor, start_of(picture(96, 80)), mode="policy")
    ((other,),) = chain(engine, processor, start_of(picture(96, 80), seed=6), mode="policy")
    assert chunk.action.shape == (CHUNK, 10)
    assert np.abs(chunk.action - other.action).max() > 1e-3


def test_a_picture_that_is_not_finite_is_no_result():
    pixels = torch.zeros(3, 1, 16, 16)
    assert to_frames(pixels + 0.5)[0, 0, 0, 0] == 128
    pixels[0, 0, 3, 3] = torch.nan
    with pytest.raises(ResultError, match="1 values that are not finite"):
        to_frames(pixels)

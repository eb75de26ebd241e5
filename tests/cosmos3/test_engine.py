"""Batches of unlike requests answer as each alone; what an engine did before changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from request_factory import assert_same_answer, make_request, relative_error, unlike_requests

from pipeline.cosmos3.conditioning import draw_noise
from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.vae import VideoVae
from pipeline.errors import PipelineError


@pytest.fixture(scope="module")
def alone(engine):
    """Each of the eight unlike requests answered by itself."""
    return [engine.step([request])[0] for request in unlike_requests()]


def fresh_engine(folder, **settings) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", **({"decode_video": True} | settings))


class RecordingVae(VideoVae):
    """A real VAE that also notes the shape of every clip it encodes and of every latent it decodes."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.encoded: list[tuple[int, ...]] = []
        self.decoded: list[tuple[int, ...]] = []

    def encode(self, clips):
        self.encoded += [tuple(clip.shape) for clip in clips]
        return super().encode(clips)

    def decode(self, latents_CTHW):
        self.decoded.append(tuple(latents_CTHW.shape))
        return super().decode(latents_CTHW)


@pytest.fixture
def recording_engine(engine):
    """The shared weights behind a VAE that keeps notes."""
    folder, cpu = engine.config.folder / "vae", torch.device("cpu")
    vae = RecordingVae.from_pretrained(folder, engine.config.vae, device=cpu, dtype=torch.float32, decoder=True)
    return Engine(engine.config, engine.transformer, vae)


def test_eight_unlike_requests_answer_in_one_step_as_each_alone(engine, alone):
    requests = unlike_requests()
    for request, found, expected in zip(requests, engine.step(requests), alone, strict=True):
        assert found.action.shape == (request.action_chunk, request.raw_action_dim)
        assert found.video.shape == (48, *request.video_shape)
        assert (found.pixels is None) == (not request.decode_video)
        assert found.action.dtype == found.video.dtype == torch.float32
        assert_same_answer(found, expected)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 7, 1, 5, 4]])
def test_results_come_in_the_order_of_the_requests_whatever_it_is(engine, alone, order):
    requests = unlike_requests()
    for index, found in zip(order, engine.step([requests[index] for index in order]), strict=True):
        assert_same_answer(found, alone[index])


def test_a_request_may_be_in_a_batch_twice(engine, alone):
    requests = unlike_requests()
    first, _, second = engine.step([requests[3], requests[1], requests[3]])
    assert_same_answer(first, alone[3])
    assert_same_answer(second, alone[3])


def test_no_requests_have_no_results(engine):
    assert engine.step([]) == []


def test_two_runs_agree_bit_for_bit(engine, tiny_checkpoint):
    requests = unlike_requests()
    first, second = engine.step(requests), engine.step(requests)
    for one, other, elsewhere in zip(first, second, fresh_engine(tiny_checkpoint).step(requests), strict=True):
        assert_same_answer(other, one, tolerance=0)
        assert_same_answer(elsewhere, one, tolerance=0)


def test_what_ran_before_leaves_nothing_behind(engine, tiny_checkpoint):
    """Other step counts, modes, guidance and a Karras engine in the same process: the answer stays bit for bit."""
    request = make_request(1, num_inference_steps=4)
    before = fresh_engine(tiny_checkpoint).step([request])[0]
    engine.step(unlike_requests())
    fresh_engine(tiny_checkpoint, use_karras_sigmas=True).step([request])
    with pytest.raises(PipelineError):
        engine.step([dataclasses.replace(request, domain_id=99)])
    assert_same_answer(engine.step([request])[0], before, tolerance=0)


def test_requests_are_not_written_to(engine):
    requests, untouched = unlike_requests(), unlike_requests()
    noise = draw_noise(1, (48, *requests[0].video_shape))
    requests[0] = dataclasses.replace(requests[0], video_noise=noise)
    kept = noise.clone()
    engine.step(requests)
    assert torch.equal(noise, kept)
    for request, other in zip(requests, untouched, strict=True):
        for name in ("cond_video_pixels", "cond_video_latents", "cond_action"):
            value = getattr(request, name)
            assert value is None or torch.equal(value, getattr(other, name))


def test_both_noises_come_from_the_seed_alone_and_start_equal(engine):
    """Given outright, `RandomState(seed)`'s values for the video and again for the action give the same answer."""
    request = make_request(1, seed=77)
    given = dataclasses.replace(
        request, seed=0, video_noise=draw_noise(77, (48, 3, 4, 5)), action_noise=draw_noise(77, (8, 64))
    )
    from_seed = engine.step([request])[0]
    assert_same_answer(engine.step([given])[0], from_seed, tolerance=0)
    other = engine.step([dataclasses.replace(request, seed=78)])[0]
    assert relative_error(other.action, from_seed.action) > 1e-2


def test_settings_of_the_schedule_reach_the_answer(engine, tiny_checkpoint):
    """None reads the checkpoint's scheduler config, which says Karras."""
    request = make_request(1, num_inference_steps=6)
    flow = engine.step([request])[0]
    karras = fresh_engine(tiny_checkpoint, use_karras_sigmas=True).step([request])[0]
    read = fresh_engine(tiny_checkpoint, use_karras_sigmas=None).step([request])[0]
    shifted = fresh_engine(tiny_checkpoint, flow_shift=5.0).step([request])[0]
    assert_same_answer(read, karras, tolerance=0)
    assert relative_error(karras.action, flow.action) > 1e-3
    assert relative_error(shifted.action, flow.action) > 1e-3


def test_given_parts_come_back_as_they_were(engine):
    """Forward dynamics returns its actions, inverse dynamics its latents, bit for bit after many steps."""
    forward = make_request(1, mode="forward_dynamics", num_inference_steps=8)
    inverse = make_request(2, mode="inverse_dynamics", as_latents=True, num_inference_steps=8)
    policy = make_request(3, as_latents=True)
    answers = engine.step([forward, inverse, policy])
    assert torch.equal(answers[0].action, forward.cond_action[:, :10])
    assert torch.equal(answers[1].video, inverse.cond_video_latents)
    assert torch.equal(answers[2].video[:, 0], policy.cond_video_latents[:, 0])
    assert not torch.equal(answers[2].video[:, 1], policy.cond_video_latents[:, 1])


@pytest.mark.parametrize("mode", ["policy", "forward_dynamics"])
def test_only_the_clean_prefix_is_encoded(recording_engine, mode):
    """One pixel frame is all that these modes look at: the rest of the clip changes nothing, and is not encoded."""
    whole = make_request(1, mode=mode)
    first = dataclasses.replace(whole, cond_video_pixels=whole.cond_video_pixels[:, :1])
    noisy = dataclasses.replace(whole, cond_video_pixels=whole.cond_video_pixels.clone())
    noisy.cond_video_pixels[:, 1:] = 0
    answers = [recording_engine.step([request])[0] for request in (whole, first, noisy)]
    assert_same_answer(answers[1], answers[0], tolerance=0)
    assert_same_answer(answers[2], answers[0], tolerance=0)
    assert recording_engine.vae.encoded == [(3, 1, 64, 80)] * 3


def test_every_clip_is_encoded_once_and_as_far_as_it_is_clean(recording_engine):
    recording_engine.step(unlike_requests())
    assert recording_engine.vae.encoded == [
        (3, 1, 64, 80),
        (3, 17, 48, 112),
        (3, 9, 64, 80),
        (3, 5, 16, 16),
        (3, 9, 80, 48),
    ]


def test_only_requests_that_ask_are_decoded(recording_engine):
    requests = unlike_requests()
    results = recording_engine.step(requests)
    assert sorted(recording_engine.vae.decoded) == [(48, 3, 4, 5), (48, 3, 4, 5)]
    for request, result in zip(requests, results, strict=True):
        if request.decode_video:
            assert torch.equal(result.pixels, recording_engine.vae.decode(result.video))
            assert result.pixels.shape == (3, 9, 64, 80)


def test_decoding_without_a_decoder_is_refused_before_any_work(tiny_checkpoint):
    engine = fresh_engine(tiny_checkpoint, decode_video=False)
    vae = RecordingVae.from_pretrained(
        tiny_checkpoint / "vae", engine.config.vae, device=engine.device, dtype=torch.float32, decoder=False
    )
    engine.vae = vae
    with pytest.raises(PipelineError, match="decode_video needs an engine loaded with decode_video=True"):
        engine.step([make_request(1), make_request(2, decode_video=True)])
    assert vae.encoded == []
    assert engine.text_cache.num_misses == 0


def test_one_bad_request_is_refused_before_any_work(recording_engine):
    with pytest.raises(PipelineError, match="domain_id 99"):
        recording_engine.step([make_request(1), make_request(2, domain_id=99)])
    assert recording_engine.vae.encoded == []
    assert recording_engine.text_cache.num_misses == 0


def test_padding_of_the_canvas_is_cropped_from_the_latents(engine):
    """A canvas larger than its content gives the content's grid, so padding costs no token."""
    canvas = make_request(1, grid=(4, 5)).cond_video_pixels
    request = make_request(1, grid=(3, 4), mode="inverse_dynamics", cond_video_pixels=canvas)
    with torch.inference_mode():
        expected = engine.vae.encode([canvas])[0][:, :, :3, :4]
    assert torch.equal(engine.step([request])[0].video, expected)


def test_pixels_and_their_latents_are_the_same_request(engine):
    from_pixels = make_request(1, mode="inverse_dynamics")
    with torch.inference_mode():
        latents = engine.vae.encode([from_pixels.cond_video_pixels])[0]
    from_latents = dataclasses.replace(from_pixels, cond_video_pixels=None, cond_video_latents=latents)
    assert_same_answer(engine.step([from_latents])[0], engine.step([from_pixels])[0], tolerance=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": 30.0},
        {"domain_id": 7},
        {"text_ids": (5, 6, 7)},
        {"guidance_scale": 2.0},
        {"num_inference_steps": 4},
        {"cond_frame_indexes": (0, 1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_reaches_the_answer(engine, changes):
    """A setting that was ignored would pass every comparison of a batch with its parts."""
    request = make_request(1)
    plain, changed = (engine.step([r])[0] for r in (request, dataclasses.replace(request, **changes)))
    assert relative_error(changed.action, plain.action) > 1e-4


def test_columns_of_noise_beyond_the_raw_width_do_not_matter(engine):
    noise = draw_noise(1, (8, 64))
    narrow, wide = (engine.step([make_request(1, action_noise=rows)])[0] for rows in (noise[:, :10], noise))
    assert_same_answer(narrow, wide, tolerance=0)


class TestTextCache:
    """Text keys and values, kept over steps within a bound of bytes."""

    @staticmethod
    def engine_with(engine, num_bytes: int) -> Engine:
        return Engine(engine.config, engine.transformer, engine.vae, text_cache_bytes=num_bytes)

    @staticmethod
    def num_bytes_of(engine, num_tokens: int) -> int:
        return engine.transformer.encode_text(range(num_tokens)).num_bytes

    def test_a_prompt_is_computed_once_for_all_requests_and_steps(self, engine):
        cached = self.engine_with(engine, 2**20)
        cached.step([make_request(1), make_request(2, text_ids=make_request(1).text_ids)])
        assert (cached.text_cache.num_misses, cached.text_cache.num_hits) == (1, 1)
        cached.step([make_request(1, guidance_scale=2.0)])
        assert (cached.text_cache.num_misses, cached.text_cache.num_hits) == (2, 2)
        assert cached.text_cache.num_bytes == self.num_bytes_of(engine, 12) + self.num_bytes_of(engine, 6)

    def test_the_negative_prompt_costs_nothing_without_guidance(self, engine):
        cached = self.engine_with(engine, 2**20)
        cached.step([make_request(1)])
        assert cached.text_cache.num_misses == 1

    def test_bytes_stay_within_the_bound_and_the_least_recent_goes_first(self, engine):
        bound = 2 * self.num_bytes_of(engine, 10)
        cache = self.engine_with(engine, bound).text_cache
        a, b, c = ((first, *range(9)) for first in (100, 200, 300))
        for ids in (a, b, a, c):  # b is the least recent when c comes
            cache.get(ids)
            assert cache.num_bytes <= bound
        assert (cache.num_hits, cache.num_misses) == (1, 3)
        cache.get(a)
        cache.get(c)
        assert (cache.num_hits, cache.num_misses) == (3, 3)
        cache.get(b)
        assert (cache.num_hits, cache.num_misses) == (3, 4)

    @pytest.mark.parametrize("num_prompts_kept", [0, 1, 3])
    def test_eviction_changes_no_answer(self, engine, alone, num_prompts_kept):
        bounded = self.engine_with(engine, num_prompts_kept * self.num_bytes_of(engine, 12))
        for _ in range(2):
            for found, expected in zip(bounded.step(unlike_requests()), alone, strict=True):
                assert_same_answer(found, expected)
        assert bounded.text_cache.num_bytes <= num_prompts_kept * self.num_bytes_of(engine, 12)

    def test_a_prompt_larger_than_the_bound_is_answered_and_not_kept(self, engine):
        cached = self.engine_with(engine, 1)
        assert_same_answer(cached.step([make_request(1)])[0], engine.step([make_request(1)])[0], tolerance=0)
        assert cached.text_cache.num_bytes == 0

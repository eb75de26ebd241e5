"""Requests made of random pixels and ids, and the comparison that all of these tests share."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult

CHANNELS, ACTION_DIM, VOCABULARY = 48, 64, 1024


def make_request(
    content: int = 0, *, grid: tuple[int, int] = (4, 5), num_text_tokens: int = 12, as_latents: bool = False, **changes
) -> Cosmos3ActionRequest:
    """A policy request of chunk 8 unless `changes` say otherwise; `content` seeds its pixels, text and actions."""
    random = np.random.RandomState(content)
    chunk = changes.setdefault("action_chunk", 8)
    h, w = grid
    fields = {
        "mode": "policy",
        "text_ids": tuple(random.randint(0, VOCABULARY, num_text_tokens).tolist()),
        "neg_text_ids": tuple(random.randint(0, VOCABULARY, 6).tolist()),
        "video_shape": (1 + chunk // 4, h, w),
        "domain_id": 8,
        "raw_action_dim": 10,
        "num_inference_steps": 3,
        "seed": content,
    }
    if as_latents:
        fields["cond_video_latents"] = torch.from_numpy(
            random.standard_normal((CHANNELS, 1 + chunk // 4, h, w)).astype(np.float32)
        )
    else:
        fields["cond_video_pixels"] = torch.from_numpy(
            random.randint(0, 256, (3, chunk + 1, 16 * h, 16 * w), dtype=np.uint8)
        )
    if changes.get("mode") == "forward_dynamics":
        fields["cond_action"] = torch.from_numpy(random.uniform(-1, 1, (chunk, ACTION_DIM)).astype(np.float32))
    return Cosmos3ActionRequest(**(fields | changes))


def unlike_requests() -> list[Cosmos3ActionRequest]:
    """Eight requests that share no setting: modes, texts, grids, domains, rates, chunks, guidance, steps, inputs."""
    agibot, av = {"domain_id": 15, "raw_action_dim": 29}, {"domain_id": 1, "raw_action_dim": 9}
    forward, inverse = {"mode": "forward_dynamics"}, {"mode": "inverse_dynamics"}
    return [
        make_request(1, fps=15.0, decode_video=True),
        make_request(2, **inverse, **agibot, grid=(3, 7), action_chunk=16, num_text_tokens=90, fps=10.0),
        make_request(3, **forward, as_latents=True, action_chunk=4, guidance_scale=3.0, num_text_tokens=1),
        make_request(4, **inverse, guidance_scale=2.5, num_inference_steps=5, fps=5.0, num_text_tokens=33),
        make_request(5, **av, cond_frame_indexes=(0, 1), action_chunk=16, grid=(1, 1), num_inference_steps=5),
        make_request(6, **forward, **agibot, cond_frame_indexes=(0, 2), fps=30.0, grid=(5, 3)),
        make_request(7, **inverse, as_latents=True, cond_frame_indexes=(0,), num_text_tokens=200),
        make_request(8, **av, cond_video_pixels=None, cond_frame_indexes=(), guidance_scale=0.5, decode_video=True),
    ]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected magnitude."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def assert_same_answer(found: Cosmos3ActionResult, expected: Cosmos3ActionResult, *, tolerance: float = 1e-5) -> None:
    """Action, latents and pixels agree to `tolerance`; 0 means bit for bit."""
    assert (found.pixels is None) == (expected.pixels is None)
    for name in ("action", "video", "pixels"):
        one, other = getattr(found, name), getattr(expected, name)
        if one is not None:
            assert torch.isfinite(one).all()
            assert torch.equal(one, other) if tolerance == 0 else relative_error(one, other) <= tolerance, name

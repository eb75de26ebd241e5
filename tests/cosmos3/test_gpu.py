"""What only a GPU can show. Everything else about the engine is tested on the CPU."""

from __future__ import annotations

import pytest
import torch

from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.request import Cosmos3ActionRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def request(seed: int) -> Cosmos3ActionRequest:
    pixels = torch.randint(0, 256, (3, 9, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Cosmos3ActionRequest(
        text_ids=tuple(range(40)),
        video_shape=(3, 6, 8),
        mode="inverse_dynamics",
        domain_id=8,
        raw_action_dim=10,
        action_chunk=8,
        fps=15.0,
        cond_video_pixels=pixels,
        num_inference_steps=8,
        seed=seed,
    )


def test_fp32_on_the_gpu_gives_the_cpus_answer(tiny_checkpoint):
    requests = [request(seed) for seed in range(3)]
    on_cpu = Engine.from_pretrained(tiny_checkpoint, device="cpu").step(requests)
    on_gpu = Engine.from_pretrained(tiny_checkpoint, device="cuda", dtype=torch.float32).step(requests)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours.action, theirs.action, atol=1e-3, rtol=1e-3)


def test_bf16_is_the_default_and_near_fp32(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    assert (engine.device.type, engine.transformer.dtype) == ("cuda", torch.bfloat16)
    expected = Engine.from_pretrained(tiny_checkpoint, device="cpu").step([request(0)])[0].action
    difference = (engine.step([request(0)])[0].action - expected).abs().mean()
    assert difference < 0.1 * expected.abs().mean()

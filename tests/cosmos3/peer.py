"""diffusers' pipeline on the same folder, and the same start for both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import Cosmos3OmniPipeline, CosmosActionCondition
from PIL import Image


def load_peer(folder: Path, *, native_schedule: bool) -> Cosmos3OmniPipeline:
    pipeline = Cosmos3OmniPipeline.from_pretrained(
        folder, enable_safety_checker=False, use_native_flow_schedule=native_schedule, dtype=torch.float32
    )
    if native_schedule:
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, use_karras_sigmas=False, flow_shift=10.0
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def peer_noise(seed: int, video_shape: tuple[int, ...], action_chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The peer's own draws: video first and then action, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn((1, *video_shape), generator=generator)
    return video[0], torch.randn((action_chunk, 64), generator=generator)


def run_peer(
    pipeline: Cosmos3OmniPipeline,
    *,
    prompt: str,
    frames: np.ndarray,
    seed: int,
    fps: float,
    num_inference_steps: int,
    guidance_scale: float,
    output_type: str = "latent",
    **condition,
):
    """(action [chunk, D] or None, video latents [C, t, h, w] or decoded frames)."""
    result = pipeline(
        prompt,
        action=CosmosActionCondition(video=[Image.fromarray(frame) for frame in frames], **condition),
        fps=fps,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
    )
    video = result.video[0] if output_type == "latent" else result.video
    return (result.action[0] if result.action is not None else None), video

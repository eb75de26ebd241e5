"""What goes into the engine and what comes out. Knows nothing of devices, batches or rows of a dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.cosmos3.conditioning import MODES, Conditioning, conditioning_for
from pipeline.cosmos3.config import TransformerConfig
from pipeline.errors import PipelineError, did_you_mean
from pipeline.views import LATENT_STRIDE_FRAMES


@dataclass(frozen=True, kw_only=True)
class Cosmos3ActionRequest:
    """One sample: text, a video canvas, an action chunk, and which of them the model is to fill in.

    * `policy`: first latent frame given; action chunk and the rest of the video generated.
    * `forward_dynamics`: first latent frame and every row of `cond_action` given; the rest of the video generated.
    * `inverse_dynamics`: every latent frame given; the action chunk generated.

    Video comes as `cond_video_pixels` [3, T, H, W] (uint8, or float in [-1, 1]; H and W multiples of 16) or as
    `cond_video_latents` [C, t, h, w], normalised. `video_shape` is the latent grid (t, h, w) of the content, without
    the canvas' padding. Pixels may stop after the last frame that is conditioned on.
    """

    text_ids: tuple[int, ...]
    video_shape: tuple[int, int, int]
    mode: str
    domain_id: int
    raw_action_dim: int
    action_chunk: int = 16
    fps: float = 24.0
    cond_video_pixels: torch.Tensor | None = None
    cond_video_latents: torch.Tensor | None = None
    cond_action: torch.Tensor | None = None  # [action_chunk, >= raw_action_dim], model space
    cond_frame_indexes: Sequence[int] | None = None
    neg_text_ids: tuple[int, ...] | None = None  # needed when guidance_scale != 1
    num_inference_steps: int = 30
    guidance_scale: float = 1.0
    seed: int = 42
    decode_video: bool = False
    video_noise: torch.Tensor | None = None  # [C, t, h, w]; drawn from `seed` if not given
    action_noise: torch.Tensor | None = None  # [action_chunk, >= raw_action_dim]; likewise

    @property
    def conditioning(self) -> Conditioning:
        return conditioning_for(
            self.mode,
            num_latent_frames=self.video_shape[0],
            action_chunk=self.action_chunk,
            cond_frame_indexes=self.cond_frame_indexes,
        )

    @property
    def num_clean_pixel_frames(self) -> int:
        """Pixel frames that the clean latent frames depend on: the VAE is causal, so later ones need no encoding."""
        clean = self.conditioning.clean_frames
        return 1 + LATENT_STRIDE_FRAMES * max(clean) if clean else 0


@dataclass(frozen=True)
class Cosmos3ActionResult:
    """The answer to one request, in the model's own scale."""

    action: torch.Tensor  # [action_chunk, raw_action_dim] fp32 on the CPU; in forward_dynamics the given one
    video: torch.Tensor  # [C, t, h, w] normalised latents, fp32, on the engine's device
    pixels: torch.Tensor | None  # [3, T, 16h, 16w] in [0, 1], on the engine's device; only with decode_video


def check_request(request: Cosmos3ActionRequest, config: TransformerConfig) -> None:
    """Raises PipelineError for a request that this model cannot answer, saying what it should have been."""
    if request.mode not in MODES:
        raise PipelineError(
            f"Unknown mode {request.mode!r}; expected one of {', '.join(MODES)}.{did_you_mean(request.mode, MODES)}"
        )
    t, h, w = request.video_shape
    if request.action_chunk < LATENT_STRIDE_FRAMES or request.action_chunk % LATENT_STRIDE_FRAMES:
        raise PipelineError(
            f"action_chunk must be a positive multiple of 4 (VAE stride), found {request.action_chunk}."
        )
    if t != 1 + request.action_chunk // LATENT_STRIDE_FRAMES or h < 1 or w < 1:
        raise PipelineError(
            f"video_shape {request.video_shape} does not fit an action chunk of {request.action_chunk}: expected "
            f"{1 + request.action_chunk // LATENT_STRIDE_FRAMES} latent frames of at least 1x1."
        )
    if not 0 <= request.domain_id < config.num_embodiment_domains:
        raise PipelineError(f"domain_id {request.domain_id} is not in 0..{config.num_embodiment_domains - 1}.")
    if not 1 <= request.raw_action_dim <= config.action_dim:
        raise PipelineError(f"raw_action_dim {request.raw_action_dim} is not in 1..{config.action_dim}.")
    _check_sampling(request)
    _check_text("text_ids", request.text_ids, config)
    if request.guidance_scale != 1.0 and request.neg_text_ids is None:
        raise PipelineError("guidance_scale other than 1 needs neg_text_ids: the chat template around an empty prompt.")
    if request.neg_text_ids is not None:
        _check_text("neg_text_ids", request.neg_text_ids, config)
    if not request.conditioning.noisy_frames and not request.conditioning.noisy_rows:
        raise PipelineError(f"{request.mode} with every latent frame given leaves nothing to generate.")
    _check_video(request, config)
    _check_action(request)


def _check_sampling(request: Cosmos3ActionRequest) -> None:
    if not 0 < request.fps < math.inf:
        raise PipelineError(f"fps must be positive, found {request.fps}.")
    if request.num_inference_steps < 1:
        raise PipelineError(f"num_inference_steps must be at least 1, found {request.num_inference_steps}.")
    if not math.isfinite(request.guidance_scale):
        raise PipelineError(f"guidance_scale must be a number, found {request.guidance_scale}.")
    if not 0 <= request.seed < 2**32:
        raise PipelineError(f"seed must be in 0..2**32 - 1, found {request.seed}.")


def _check_text(name: str, ids: Sequence[int], config: TransformerConfig) -> None:
    if not ids or not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise PipelineError(f"{name} must be a non-empty sequence of ids below {config.vocab_size}.")


def _check_video(request: Cosmos3ActionRequest, config: TransformerConfig) -> None:
    pixels, latents = request.cond_video_pixels, request.cond_video_latents
    needed = request.num_clean_pixel_frames
    if needed and (pixels is None) == (latents is None):
        raise PipelineError(f"{request.mode} needs either cond_video_pixels or cond_video_latents, and not both.")
    if latents is not None:
        _expect_shape("cond_video_latents", latents, (config.latent_channel, *request.video_shape))
    if pixels is not None and needed:
        _, h, w = request.video_shape
        if pixels.ndim != 4 or pixels.shape[0] != 3 or pixels.shape[1] < needed:
            raise PipelineError(
                f"cond_video_pixels must be [3, T >= {needed}, H, W] for {request.mode}, found {list(pixels.shape)}."
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise PipelineError(f"cond_video_pixels must be uint8, or float in [-1, 1]; found {pixels.dtype}.")
        height_px, width_px = pixels.shape[2:]
        if height_px % 16 or width_px % 16 or height_px < 16 * h or width_px < 16 * w:
            raise PipelineError(
                f"cond_video_pixels of {height_px}x{width_px} must be multiples of 16 and cover {16 * h}x{16 * w}."
            )
    if request.video_noise is not None:
        _expect_shape("video_noise", request.video_noise, (config.latent_channel, *request.video_shape))
    for name in ("cond_video_pixels", "cond_video_latents", "video_noise"):
        _expect_finite(name, getattr(request, name))


def _check_action(request: Cosmos3ActionRequest) -> None:
    if request.mode == "forward_dynamics" and request.cond_action is None:
        raise PipelineError("forward_dynamics needs cond_action: the actions whose outcome is to be generated.")
    for name in ("cond_action", "action_noise"):
        rows = getattr(request, name)
        if rows is not None and (
            rows.ndim != 2 or rows.shape[0] != request.action_chunk or rows.shape[1] < request.raw_action_dim
        ):
            raise PipelineError(
                f"{name} must be [{request.action_chunk}, >= {request.raw_action_dim}], found {list(rows.shape)}."
            )
        _expect_finite(name, rows)


def _expect_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise PipelineError(f"{name} must be {list(shape)}, found {list(tensor.shape)}.")


def _expect_finite(name: str, tensor: torch.Tensor | None) -> None:
    if tensor is not None and tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise PipelineError(f"{name} has NaN or infinity. Leave those values out or repair them.")

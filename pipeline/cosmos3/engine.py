"""Load once, then `step(requests) -> results`. Knows neither rows nor cluster."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cosmos3.checkpoint import build_transformer, is_unused
from pipeline.cosmos3.conditioning import draw_noise
from pipeline.cosmos3.config import CheckpointConfig, read_checkpoint_config, resolve_checkpoint
from pipeline.cosmos3.loading import load_strictly
from pipeline.cosmos3.packing import PackedBatch, Sample
from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult, check_request
from pipeline.cosmos3.sampler import make_solver
from pipeline.cosmos3.transformer import Cosmos3Transformer, TextKeysValues
from pipeline.cosmos3.vae import VideoVae
from pipeline.errors import PipelineError

DEFAULT_TEXT_CACHE_BYTES = 2 * 1024**3


class Engine:
    """A loaded checkpoint that answers unlike requests together.

    Requests of one `step` may differ in everything; those with the same `num_inference_steps` share one forward per
    denoising step. Alone or in a batch a request gets the same answer (fp32: 1e-5).
    """

    def __init__(
        self,
        config: CheckpointConfig,
        transformer: Cosmos3Transformer,
        vae: VideoVae,
        *,
        flow_shift: float = 10.0,
        use_karras_sigmas: bool | None = False,
        text_cache_bytes: int = DEFAULT_TEXT_CACHE_BYTES,
    ) -> None:
        self.config = config
        self.transformer = transformer
        self.vae = vae
        self.flow_shift, self.use_karras_sigmas = flow_shift, use_karras_sigmas
        self.text_cache = TextCache(transformer, max_bytes=text_cache_bytes)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        decode_video: bool = False,
        **settings: Any,
    ) -> Engine:
        """Loads a checkpoint folder or hub id. Defaults: CUDA in bf16 where there is one, else the CPU in fp32.

        `decode_video` loads the VAE's decoder too; `settings` are those of the constructor. Raises CheckpointError for
        anything in the folder that is not as its config says.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        config = read_checkpoint_config(resolve_checkpoint(checkpoint))
        transformer = build_transformer(config)
        load_strictly(
            transformer,
            config.folder / "transformer",
            device=device,
            dtype=dtype,
            skip=is_unused,
            keep_fp32=lambda name: name.startswith("time_embedder."),
        )
        vae = VideoVae.from_pretrained(
            config.folder / "vae", config.vae, device=device, dtype=dtype, decoder=decode_video
        )
        return cls(config, transformer.eval(), vae, **settings)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @torch.inference_mode()
    def step(self, requests: Sequence[Cosmos3ActionRequest]) -> list[Cosmos3ActionResult]:
        """Answers `requests` in their order. Raises PipelineError, before any work, for one that cannot be answered."""
        for request in requests:
            check_request(request, self.config.transformer)
            if request.decode_video and not self.vae.has_decoder:
                raise PipelineError("decode_video needs an engine loaded with decode_video=True.")
        samples = self._prepare(requests)
        by_steps: dict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_steps[request.num_inference_steps].append(index)
        results: list[Cosmos3ActionResult | None] = [None] * len(requests)
        for num_inference_steps, indexes in by_steps.items():
            batch = PackedBatch(self.transformer, [samples[index] for index in indexes])
            answers = batch.unpack(self._denoise(batch, num_inference_steps))
            for index, (video, action) in zip(indexes, answers, strict=True):
                pixels = self.vae.decode(video) if requests[index].decode_video else None
                results[index] = Cosmos3ActionResult(action=action.cpu(), video=video, pixels=pixels)
        return results

    def _denoise(self, batch: PackedBatch, num_inference_steps: int) -> torch.Tensor:
        """The denoising loop: the solver walks the batch's flat fp32 state from noise to data."""
        solver = make_solver(
            self.config.scheduler,
            num_inference_steps=num_inference_steps,
            flow_shift=self.flow_shift,
            use_karras_sigmas=self.use_karras_sigmas,
        )
        state = batch.initial_state()
        for timestep in solver.timesteps:
            velocity = batch.velocity(state, timestep.to(self.device))
            # UniPC is elementwise, so one solver serves all samples; it wants a batch axis.
            state = solver.step(velocity[None], timestep, state[None], return_dict=False)[0][0]
        return state

    def _prepare(self, requests: Sequence[Cosmos3ActionRequest]) -> list[Sample]:
        """Clean parts encoded, noise drawn, texts looked up."""
        to_encode = [
            request.cond_video_pixels[:, : request.num_clean_pixel_frames]
            for request in requests
            if request.cond_video_pixels is not None and request.num_clean_pixel_frames
        ]
        encoded = iter(self.vae.encode(to_encode) if to_encode else ())
        samples = []
        for request in requests:
            latents = request.cond_video_latents
            if request.cond_video_pixels is not None and request.num_clean_pixel_frames:
                latents = next(encoded)
            samples.append(
                Sample(
                    request=request,
                    text=self.text_cache.get(request.text_ids),
                    negative_text=self.text_cache.get(request.neg_text_ids) if request.guidance_scale != 1.0 else None,
                    video_CTHW=self._initial_video(request, latents),
                    action_RA=self._initial_action(request),
                )
            )
        return samples

    def _initial_video(self, request: Cosmos3ActionRequest, latents: torch.Tensor | None) -> torch.Tensor:
        shape = (self.config.transformer.latent_channel, *request.video_shape)
        clean = list(request.conditioning.clean_frames)
        video = torch.zeros(shape)
        if request.conditioning.noisy_frames:
            video = draw_noise(request.seed, shape) if request.video_noise is None else request.video_noise.float()
        video = video.to(self.device, copy=True)
        if clean:
            # The padding of the canvas is cropped here, in latent space, as the trainer does.
            _, h, w = request.video_shape
            video[:, clean] = latents[:, clean, :h, :w].to(self.device, torch.float32)
        return video

    def _initial_action(self, request: Cosmos3ActionRequest) -> torch.Tensor:
        shape = (request.action_chunk, self.config.transformer.action_dim)
        width = request.raw_action_dim
        action = torch.zeros(shape)
        if request.conditioning.clean_rows:
            action[:, :width] = request.cond_action[:, :width].float().cpu()
        else:
            noise = draw_noise(request.seed, shape) if request.action_noise is None else request.action_noise
            action[:, :width] = noise[:, :width].float().cpu()
        return action.to(self.device)


class TextCache:
    """Text keys and values by token ids, least recently used first out, bounded by bytes.

    The key is the content itself, so a hit is exact; one prompt larger than the bound is simply not kept.
    """

    def __init__(self, transformer: Cosmos3Transformer, *, max_bytes: int) -> None:
        self._transformer, self._max_bytes = transformer, max_bytes
        self._entries: OrderedDict[tuple[int, ...], TextKeysValues] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, text_ids: Sequence[int]) -> TextKeysValues:
        key = tuple(text_ids)
        if key in self._entries:
            self.num_hits += 1
            self._entries.move_to_end(key)
            return self._entries[key]
        self.num_misses += 1
        entry = self._transformer.encode_text(key)
        self._entries[key] = entry
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self._max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self.num_bytes -= evicted.num_bytes
        return entry

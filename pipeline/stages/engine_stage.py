"""A stage around one engine: built once per actor, shared by the threads that bring it segments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.cosmos3.config import checkpoint_fingerprint, resolve_checkpoint
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.errors import CheckpointError
from pipeline.recipe import Recipe
from pipeline.stages.batcher import WindowBatcher
from pipeline.stages.stage import Pulse, Stage

# Tokens in one forward that fill the device: on a GPU the matrix products are compute-bound from a few hundred on and
# launches stop mattering at a few thousand; two CPU cores are full long before.
TOKENS_PER_FORWARD = {"cuda": 4096, "cpu": 1024}


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an actor builds its engine. What changes a label, such as the dtype, is in the recipe and not here."""

    checkpoint: str
    device: str
    batch_size: int | None
    text_cache_bytes: int
    num_threads: int | None = None  # on the CPU; Ray would leave an actor one


class EngineStage(Stage):
    """Loads the checkpoint and gathers requests of several segments into its steps. Subclasses say what is asked."""

    name = "infer"
    decodes_video = False
    segments_at_once = 4  # enough for windows of short episodes to fill a batch

    def __init__(self, recipe: Recipe, settings: EngineSettings) -> None:
        # The driver only hands this class to its actors, so diffusers is imported where an engine is built.
        from pipeline.cosmos3.engine import Engine

        folder = resolve_checkpoint(settings.checkpoint)
        _require_same_weights(folder, settings.checkpoint, recipe)
        self._recipe = recipe
        self._engine = Engine.from_pretrained(
            folder,
            device=settings.device,
            dtype=getattr(torch, recipe.dtype),
            decode_video=self.decodes_video,
            flow_shift=recipe.flow_shift,
            use_karras_sigmas=recipe.use_karras_sigmas,
            text_cache_bytes=settings.text_cache_bytes,
        )
        self._processor = make_processor(recipe, PromptTokenizer.from_pretrained(folder))
        self._batcher = WindowBatcher(
            self._engine.step, settings.batch_size or self._fitting_batch_size, num_threads=settings.num_threads
        )
        self._sampling: dict[str, Any] = {
            "num_inference_steps": recipe.num_inference_steps,
            "guidance_scale": recipe.guidance_scale,
        }

    def pulse(self) -> Pulse:
        return self._batcher.pulse

    def _fitting_batch_size(self, request: Cosmos3ActionRequest) -> int:
        return fitting_batch_size(request, self._engine.device.type)


def _require_same_weights(folder: Path, checkpoint: str, recipe: Recipe) -> None:
    """A hub's branch may have moved on since the driver looked, or a node may keep another copy under the same path."""
    if checkpoint_fingerprint(folder) != recipe.checkpoint_fingerprint:
        raise CheckpointError(
            f"{checkpoint}: this node has other weights ({folder}) than the driver found. Their labels would stand "
            "under the wrong key. Give all nodes the same folder, and start the run again."
        )


def make_processor(recipe: Recipe, tokenizer: PromptTokenizer) -> Cosmos3PolicyProcessor:
    """The processor that a recipe describes, with the normaliser that the recipe already holds."""
    return Cosmos3PolicyProcessor(
        tokenizer,
        mode=recipe.mode,
        domain_name=recipe.embodiment.domain_name,
        raw_action_dim=recipe.raw_action_dim,
        action_chunk_size=recipe.action_chunk,
        fps=recipe.timebase.model_fps,
        image_size=recipe.image_size,
        prompt_format=recipe.prompt_format,
        view_point=recipe.view_point,
        view_description=recipe.view_description,
        normalizer=recipe.normalizer,
    )


def fitting_batch_size(request: Cosmos3ActionRequest, device_type: str) -> int:
    """How many windows like this one fill a forward on this kind of device."""
    t, h, w = request.video_shape
    num_tokens = t * math.ceil(h / 2) * math.ceil(w / 2) + request.action_chunk
    return max(1, TOKENS_PER_FORWARD[device_type] // num_tokens)

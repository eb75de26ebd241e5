"""Infer: frames → action chunks. One engine per actor, loaded once; a thin adapter around `cosmos3`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cosmos3.config import resolve_checkpoint
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.plan import window_seed
from pipeline.recipe import Recipe
from pipeline.stages.batcher import WindowBatcher
from pipeline.stages.stage import Row, Stage
from pipeline.views import Canvas

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


class Infer(Stage):
    """Runs every window of a segment through the model.

    Ends `frames` and `canvas`; adds `action` (physical units) and `action_normalized`, float32 [W, chunk, D]. Calls
    may come from several threads: windows of different segments then share a batch.
    """

    name = "infer"
    consumes = ("frames", "canvas")

    def __init__(self, recipe: Recipe, settings: EngineSettings) -> None:
        # The driver only hands this class to its actors, so diffusers is imported where an engine is built.
        from pipeline.cosmos3.engine import Engine

        folder = resolve_checkpoint(settings.checkpoint)
        self._recipe = recipe
        self._engine = Engine.from_pretrained(
            folder,
            device=settings.device,
            dtype=getattr(torch, recipe.dtype),
            flow_shift=recipe.flow_shift,
            use_karras_sigmas=recipe.use_karras_sigmas,
            text_cache_bytes=settings.text_cache_bytes,
        )
        self._processor = make_processor(recipe, PromptTokenizer.from_pretrained(folder))
        self._batcher = WindowBatcher(
            self._engine.step, settings.batch_size or self._fitting_batch_size, num_threads=settings.num_threads
        )
        nothing = np.zeros((0, recipe.action_chunk, recipe.raw_action_dim), dtype=np.float32)
        self.empty = {"action": nothing, "action_normalized": nothing}

    def process(self, row: Row) -> Row:
        requests = self._requests(row)
        answers = [self._processor.postprocess(result) for result in self._batcher.run(requests)]
        return {name: np.stack([answer[name] for answer in answers]) for name in ("action", "action_normalized")}

    def _requests(self, row: Row) -> list[Cosmos3ActionRequest]:
        recipe, canvas = self._recipe, Canvas(*(int(size) for size in row["canvas"]))
        first = row["window_starts"][0]
        requests = []
        for start in row["window_starts"]:
            frames = row["frames"][start - first : start - first + recipe.action_chunk + 1]
            inputs = self._processor.window_inputs(frames, canvas, row["task"])
            requests.append(
                self._processor.to_request(
                    inputs,
                    seed=window_seed(recipe.seed, int(row["episode_index"]), int(start)),
                    num_inference_steps=recipe.num_inference_steps,
                    guidance_scale=recipe.guidance_scale,
                )
            )
        return requests

    def _fitting_batch_size(self, request: Cosmos3ActionRequest) -> int:
        return fitting_batch_size(request, self._engine.device.type)


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

"""Infer: frames → action chunks; a thin adapter around `cosmos3`."""

from __future__ import annotations

import numpy as np

from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.plan import window_seed
from pipeline.recipe import Recipe
from pipeline.stages.engine_stage import EngineSettings, EngineStage
from pipeline.stages.stage import Row
from pipeline.views import Canvas


class Infer(EngineStage):
    """Runs every window of a segment through the model.

    Ends `frames` and `canvas`; adds `action` (physical units) and `action_normalized`, float32 [W, chunk, D]. Calls
    may come from several threads: windows of different segments then share a batch.
    """

    consumes = ("frames", "canvas")

    def __init__(self, recipe: Recipe, settings: EngineSettings) -> None:
        super().__init__(recipe, settings)
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
                    seed=window_seed(recipe.seed, row["input_digest"], int(start)),
                    **self._sampling,
                )
            )
        return requests

"""Load: segment → composed observation frames. Runs on CPU cores, several at a time."""

from __future__ import annotations

from dataclasses import astuple
from types import MappingProxyType

import numpy as np

from pipeline.datasets import open_dataset
from pipeline.errors import EpisodeError, VideoError
from pipeline.recipe import Recipe
from pipeline.stages.stage import Row, Stage
from pipeline.views import choose_canvas, compose, fit


class Load(Stage):
    """Decodes a segment's frames, composes the cameras and fits them to the canvas; padding is left to the engine.

    Adds `frames` uint8 [F, h, w, 3] from the first window's start to the last window's end, `canvas` (four sizes in
    pixels) and `timestamps` [F] in seconds.
    """

    name = "load"
    empty = MappingProxyType(
        {
            "frames": np.zeros((0, 1, 1, 3), dtype=np.uint8),
            "canvas": np.zeros(4, dtype=np.int64),
            "timestamps": np.zeros(0, dtype=np.float64),
        }
    )

    def __init__(self, root: str, format: str, recipe: Recipe) -> None:
        self._dataset = open_dataset(root, format)
        self._recipe = recipe

    def process(self, row: Row) -> Row:
        if row["problem"]:
            raise VideoError(row["problem"])
        recipe, episode_index = self._recipe, int(row["episode_index"])
        if row["num_positions"] < 2:
            raise EpisodeError(
                f"Episode {episode_index} has {row['num_positions']} frame(s) at {recipe.timebase.model_fps:g} fps; an "
                "action lies between two frames, so at least 2 are needed. Leave it out with --dataset.episodes."
            )
        starts = row["window_starts"]
        stop = min(starts[-1] + recipe.action_chunk + 1, row["num_positions"])
        frame_indexes = np.arange(starts[0], stop) * recipe.timebase.stride
        views = [self._dataset.read_frames(episode_index, camera, frame_indexes) for camera in recipe.cameras]
        composed = compose(views, recipe.view_point)
        canvas = choose_canvas(*composed.shape[1:3], recipe.image_size)
        return {
            "frames": fit(composed, canvas),
            "canvas": np.array(astuple(canvas), dtype=np.int64),
            "timestamps": self._dataset.timestamps(episode_index, frame_indexes),
        }

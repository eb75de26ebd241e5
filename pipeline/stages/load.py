"""Load: segment → composed observation frames, and the actions to be followed. Runs on CPU cores, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from types import MappingProxyType

import numpy as np

from pipeline.action_sources import ActionSource
from pipeline.actions import standing_still
from pipeline.datasets import open_dataset
from pipeline.errors import EpisodeError, VideoError
from pipeline.recipe import Recipe, RolloutRecipe
from pipeline.stages.stage import Row, Stage
from pipeline.views import choose_canvas, compose, fit

_NO_FRAMES = np.zeros((0, 1, 1, 3), dtype=np.uint8)
_NO_CANVAS = np.zeros(4, dtype=np.int64)


class Observe(Stage):
    """What all loaders do: decode frames of an episode, compose the cameras, fit them to the canvas."""

    name = "load"

    def __init__(self, root: str, format: str, recipe: Recipe) -> None:
        self._dataset = open_dataset(root, format)
        self._recipe = recipe

    def observe(self, row: Row, positions: Sequence[int]) -> Row:
        """`frames` uint8 [F, h, w, 3] at increasing `positions`, and their `canvas` (four sizes in pixels).

        Padding is left to the engine. Raises VideoError where a frame is missing.
        """
        recipe, episode_index = self._recipe, int(row["episode_index"])
        indexes = np.asarray(positions) * recipe.timebase.stride
        views = [self._dataset.read_frames(episode_index, camera, indexes) for camera in recipe.cameras]
        composed = compose(views, recipe.view_point)
        canvas = choose_canvas(*composed.shape[1:3], recipe.image_size)
        return {"frames": fit(composed, canvas), "canvas": np.array(astuple(canvas), dtype=np.int64)}

    def check(self, row: Row) -> None:
        """Raises a typed error for an episode that the plan already knows to be impossible."""
        if row["problem"]:
            raise VideoError(row["problem"])
        if row["num_positions"] < 2:
            raise EpisodeError(
                f"Episode {row['episode_index']} has {row['num_positions']} frame(s) at "
                f"{self._recipe.timebase.model_fps:g} fps; an action lies between two frames, so at least 2 are "
                "needed. Leave it out with --dataset.episodes."
            )


class Load(Observe):
    """The frames of a segment's windows, from the first one's start to the last one's end.

    Adds `frames` and `canvas`, and `timestamps` [F] in seconds.
    """

    empty = MappingProxyType({"frames": _NO_FRAMES, "canvas": _NO_CANVAS, "timestamps": np.zeros(0, dtype=np.float64)})

    def process(self, row: Row) -> Row:
        self.check(row)
        starts, recipe = row["window_starts"], self._recipe
        positions = np.arange(starts[0], min(starts[-1] + recipe.action_chunk + 1, row["num_positions"]))
        indexes = positions * recipe.timebase.stride
        return {
            **self.observe(row, positions),
            "timestamps": self._dataset.timestamps(int(row["episode_index"]), indexes),
        }


class LoadStart(Observe):
    """The frames that a rollout starts from, and the actions that it follows.

    Adds `frames` and `canvas`: of a chain the episode's first frame alone, else one per window; and `actions`
    float64 [N, D], physical, empty where the model chooses them (`source` is None).
    """

    def __init__(self, root: str, format: str, recipe: RolloutRecipe, source: ActionSource | None) -> None:
        super().__init__(root, format, recipe)
        self._source = source
        self._no_actions = np.zeros((0, recipe.raw_action_dim), dtype=np.float64)
        self.empty = {"frames": _NO_FRAMES, "canvas": _NO_CANVAS, "actions": self._no_actions}

    def process(self, row: Row) -> Row:
        self.check(row)
        is_chain = self._recipe.chaining == "autoregressive"
        observed = self.observe(row, [0] if is_chain else row["window_starts"])
        if self._source is None:
            return {**observed, "actions": self._no_actions}
        actions = self._source.read(self._dataset, int(row["episode_index"]), self._recipe.timebase)
        return {**observed, "actions": actions[: row["num_positions"] - 1]}


class LoadEvaluation(Load):
    """The recorded frames of a segment, and the three courses of action that they are compared under.

    Adds to `Load`'s payload `actions`, `other_actions` and `still_actions`, float64 [F - 1, D] each, physical. Another
    episode's actions start over where they are too short; where there is no other episode they are empty.
    """

    def __init__(self, root: str, format: str, recipe: RolloutRecipe, source: ActionSource) -> None:
        super().__init__(root, format, recipe)
        self._source = source
        nothing = np.zeros((0, recipe.raw_action_dim), dtype=np.float64)
        self.empty = {**Load.empty, "actions": nothing, "other_actions": nothing, "still_actions": nothing}

    def process(self, row: Row) -> Row:
        loaded = super().process(row)
        start, count = row["window_starts"][0], len(loaded["frames"]) - 1
        actions = self._read(int(row["episode_index"]))[start : start + count]
        other = self.empty["other_actions"]
        if row["other_episode_index"] >= 0:
            theirs = self._read(int(row["other_episode_index"]))
            other = theirs[np.arange(start, start + count) % len(theirs)]
        return {
            **loaded,
            "actions": actions,
            "other_actions": other,
            "still_actions": standing_still(actions, self._recipe.rot6d_starts),
        }

    def _read(self, episode_index: int) -> np.ndarray:
        return self._source.read(self._dataset, episode_index, self._recipe.timebase)

"""What there is to learn from: episodes as pixels, then windows as latents, actions and prompts, each computed once.

Frames come through the loaders that labelling uses, actions from the source that rollouts follow, prompts and scales
from the processor: a model is trained on exactly what it will be asked with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pipeline.action_sources import open_action_source
from pipeline.config import RunConfig
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.cosmos3.vae import VideoVae
from pipeline.errors import DatasetError
from pipeline.plan import choose_episodes
from pipeline.recipe import Recipe, make_recipe
from pipeline.run import input_root, open_input
from pipeline.stages.engine_stage import make_processor
from pipeline.stages.load import Observe
from pipeline.storage import write_atomically
from pipeline.training.flow import Example
from pipeline.views import LATENT_STRIDE_FRAMES, Canvas

_OPENING_SHARE = 0.4  # of what is drawn begins an episode: there everything that the task says is still to be done


@dataclass(frozen=True)
class Recorded:
    """One episode: composed frames uint8 [T, h, w, 3] on their canvas, physical actions [T - 1, D], the task."""

    frames: np.ndarray
    canvas: Canvas
    actions: np.ndarray
    task: str


def read_episodes(config: RunConfig) -> tuple[Recipe, Iterator[Recorded]]:
    """The recipe, and all episodes of at least a latent frame's actions. Raises a typed error as a run would."""
    dataset = open_input(config)
    recipe = make_recipe(config, dataset)
    source = open_action_source("recorded", dataset, recipe)
    loader = Observe(input_root(config), config.dataset.format, recipe)

    def episodes() -> Iterator[Recorded]:
        for index in choose_episodes(dataset, config.dataset.episodes):
            actions = source.read(dataset, index, recipe.timebase)
            if len(actions) < LATENT_STRIDE_FRAMES:
                continue
            seen = loader.observe({"episode_index": index}, range(len(actions) + 1))
            canvas = Canvas(*(int(size) for size in seen["canvas"]))
            yield Recorded(seen["frames"], canvas, actions, dataset.episode(index).task)

    return recipe, episodes()


class WindowStore:
    """The windows of a training set: latents in half precision, normalised actions, and what they belong to."""

    def __init__(self, path: Path, recipe: Recipe, tokenizer: PromptTokenizer) -> None:
        """Reads what `write_windows` wrote. Raises DatasetError for a file that it did not write."""
        self._recipe = recipe
        self._processor = make_processor(recipe, tokenizer)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["windows"])
                self._latents, self._actions = file.get_tensor("latents"), file.get_tensor("actions")
            self._tasks, self._num_actions, self._opens = about["tasks"], about["num_actions"], about["opens"]
            self._canvas = Canvas(*about["canvas"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path}: expected a training's windows, found {error!r}. Remove it.") from error
        self._requests: dict[str, Cosmos3ActionRequest] = {}
        self._openings = [index for index, opens in enumerate(self._opens) if opens]
        # Episodes of one window each have no others.
        self._others = [index for index, opens in enumerate(self._opens) if not opens] or self._openings

    def __len__(self) -> int:
        return len(self._latents)

    def draw(self, count: int, generator: torch.Generator) -> list[Example]:
        """Any windows, those that begin an episode more often than they are there."""
        is_opening = torch.rand(count, generator=generator) < _OPENING_SHARE
        pools = [self._openings if opens else self._others for opens in is_opening.tolist()]
        return [self[pool[int(torch.randint(len(pool), (), generator=generator))]] for pool in pools]

    def __getitem__(self, index: int) -> Example:
        return Example(
            self._request(self._tasks[index]),
            self._latents[index].float(),
            self._actions[index],
            num_actions=self._num_actions[index],
            opens=self._opens[index],
        )

    def _request(self, task: str) -> Cosmos3ActionRequest:
        if task not in self._requests:
            blank = np.zeros((1, self._canvas.content_height_px, self._canvas.content_width_px, 3), dtype=np.uint8)
            inputs = self._processor.window_inputs(blank, self._canvas, task, fps=self._recipe.timebase.model_fps)
            self._requests[task] = self._processor.to_request(inputs | {"pixel_values": torch.zeros(3, 1, 1, 1)})
        return self._requests[task]


def write_windows(
    path: Path,
    episodes: Sequence[Recorded],
    recipe: Recipe,
    tokenizer: PromptTokenizer,
    vae: VideoVae,
    *,
    stride: int,
) -> None:
    """Encodes every window of `episodes` that begins at a multiple of `stride`, and each episode's last one.

    An episode that is shorter than a window is filled up as labelling does it. The file appears at once, complete.
    """
    processor, chunk = make_processor(recipe, tokenizer), recipe.action_chunk
    canvas = episodes[0].canvas
    _, rows, columns = canvas.latent_shape(chunk + 1)
    if any(episode.canvas != canvas for episode in episodes):
        raise DatasetError("Expected episodes of one picture size, found several. Train on one dataset at a time.")
    latents, actions = [], []
    about = {"tasks": [], "num_actions": [], "opens": [], "canvas": list(astuple(canvas))}
    for episode in tqdm(episodes, desc="latents", unit="episode"):
        last = max(len(episode.actions) - chunk, 0)
        for start in sorted({*range(0, last, stride), last}):
            pictures = episode.frames[start : start + chunk + 1]
            [latent] = vae.encode([processor.window_inputs(pictures, canvas, episode.task)["pixel_values"]])
            # The canvas' margins are cropped in latent space, as the engine does.
            latents.append(latent[:, :, :rows, :columns].half())
            own = episode.actions[start : start + chunk]
            actions.append(processor.cond_action(own))
            about["tasks"].append(episode.task)
            about["num_actions"].append(len(own))
            about["opens"].append(start == 0)
    tensors = {"latents": torch.stack(latents), "actions": torch.stack(actions)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(tensors, partial, {"windows": json.dumps(about)}))

"""The embedded demo: a tiny random checkpoint and a small rendered dataset, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import RunConfig
from pipeline.training.config import TrainConfig

if TYPE_CHECKING:
    from pipeline.demo.choreography import Recording

WARNING = "The demo's checkpoint has random weights: what it gives is well-formed and means nothing."
_IMAGE_SIZE = 256  # the smallest tier; the demo's pictures are smaller still
# The trained checkpoint's: small enough to ship, large enough to learn what it is shown.
_TRAINED_SIZE = {
    "hidden_size": 192,  # of which a patch of noise, 4 x 32 numbers, needs a part to itself
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "head_dim": 32,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vae_base_dim": 8,
    "latent_channels": 32,
    "vocab_size": 512,
    "num_embodiment_domains": 9,  # DROID's is number 8
}


def fill_in_demo[ConfigT: RunConfig](config: ConfigT, folder: Path) -> ConfigT:
    """The same config with the demo's dataset, checkpoint and statistics, which are written to `folder` if missing."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint
    from pipeline.demo.dataset import write_demo_dataset
    from pipeline.demo.scripted import play_demo

    root = write_demo_dataset(folder / "dataset")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    statistics = config.action_stats_path
    if statistics is None and config.action_normalization != "none":
        statistics = str(_write_statistics(folder / "action_stats.json", play_demo(seed=0)))
    return replace(
        config,
        dataset=replace(config.dataset, root=str(root)),
        engine=replace(config.engine, checkpoint=str(checkpoint)),
        action_stats_path=statistics,
        image_size=_IMAGE_SIZE,
    )


def fill_in_training(config: TrainConfig) -> TrainConfig:
    """The same config with what it leaves open: a rendered world and its statistics, and a checkpoint to begin with."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint
    from pipeline.demo.dataset import write_world_dataset
    from pipeline.demo.world import play_world

    if config.dataset.root is not None and config.checkpoint is not None:
        return config
    folder = Path(config.output_dir)
    played = play_world(config.seed, config.num_episodes)
    if config.dataset.root is None:
        root = write_world_dataset(folder / "dataset", seed=config.seed, num_episodes=config.num_episodes)
        statistics = config.action_stats_path or str(_write_statistics(folder / "action_stats.json", played))
        config = replace(config, dataset=replace(config.dataset, root=str(root)), action_stats_path=statistics)
    if config.checkpoint is None:
        tasks = sorted({recording.task for recording in played})
        fresh = write_tiny_checkpoint(folder / "fresh", seed=config.seed, corpus=tasks, learns=True, **_TRAINED_SIZE)
        config = replace(config, checkpoint=str(fresh))
    return config


def _write_statistics(path: Path, recordings: Sequence[Recording]) -> Path:
    """Statistics of known actions, with every field that a normalisation may ask for."""
    from pipeline.demo.choreography import true_actions

    actions = np.concatenate([true_actions(recording)[:-1] for recording in recordings])
    fields = {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "max": actions.max(0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }
    path.write_text(json.dumps({name: values.tolist() for name, values in fields.items()}))
    return path

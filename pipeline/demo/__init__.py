"""The embedded demo: a tiny checkpoint that was trained on a rendered world, and datasets of that world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import EvaluationConfig, LabelEvaluationConfig, RunConfig
from pipeline.training.config import STATISTICS_NAME, TrainConfig

if TYPE_CHECKING:
    from pipeline.demo.choreography import Recording

NOTE = "The demo's checkpoint is tiny, and knows this rendered world alone: pipeline/demo/trained/README.md."
# Trained by `jobs/train_demo.py`; its model card is in it.
TRAINED = Path(__file__).parent / "trained"
STATISTICS = TRAINED / STATISTICS_NAME
# What the demo is measured on: another seed than it was trained on, and objects that no training episode shows.
HELD_OUT_EPISODES, HELD_OUT_SEED = 64, 1
IMAGE_SIZE = 256  # the smallest tier; the demo's pictures are smaller still
# The trained checkpoint's: small enough to ship, large enough to learn what it is shown.
_TRAINED_SIZE = {
    "hidden_size": 192,  # of which a patch of noise, 4 x 16 numbers, needs a part to itself
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "head_dim": 32,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vae_base_dim": 8,
    "latent_channels": 16,
    "vocab_size": 560,
    "rope_theta": 50.0,  # a head is a quarter as wide as Nano's: these are the first quarter of Nano's frequencies
    "num_embodiment_domains": 9,  # DROID's is number 8
}


def fill_in_demo[ConfigT: RunConfig](config: ConfigT, folder: Path) -> ConfigT:
    """The same config with the demo's checkpoint and statistics, and a dataset that is written to `folder` if missing.

    What is measured is measured on held-out scenes; everything else runs on five short episodes.
    """
    from pipeline.demo.dataset import SCENES_NAME, write_demo_dataset, write_world_dataset

    if isinstance(config, (LabelEvaluationConfig, EvaluationConfig)):
        root = write_world_dataset(
            folder / "held_out", seed=HELD_OUT_SEED, num_episodes=HELD_OUT_EPISODES, held_out=True
        )
        if isinstance(config, EvaluationConfig):
            config = replace(config, scenes_path=config.scenes_path or str(root / SCENES_NAME))
    else:
        root = write_demo_dataset(folder / "dataset")
    statistics = config.action_stats_path
    if statistics is None and config.action_normalization != "none":
        statistics = str(STATISTICS)
    return replace(
        config,
        dataset=replace(config.dataset, root=str(root)),
        engine=replace(config.engine, checkpoint=str(TRAINED)),
        action_stats_path=statistics,
        image_size=IMAGE_SIZE,
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

"""The embedded demo: a tiny random checkpoint and a small rendered dataset, made on the spot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import RunConfig

WARNING = "The demo's checkpoint has random weights: what it gives is well-formed and means nothing."
_IMAGE_SIZE = 256  # the smallest tier; the demo's pictures are smaller still


def fill_in_demo[ConfigT: RunConfig](config: ConfigT, folder: Path) -> ConfigT:
    """The same config with the demo's dataset, checkpoint and statistics, which are written to `folder` if missing."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint
    from pipeline.demo.dataset import write_demo_dataset

    root = write_demo_dataset(folder / "dataset")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    statistics = config.action_stats_path
    if statistics is None and config.action_normalization != "none":
        statistics = str(_write_statistics(folder / "action_stats.json"))
    return replace(
        config,
        dataset=replace(config.dataset, root=str(root)),
        engine=replace(config.engine, checkpoint=str(checkpoint)),
        action_stats_path=statistics,
        image_size=_IMAGE_SIZE,
    )


def _write_statistics(path: Path) -> Path:
    """Statistics of the demo's own known actions, with every field that a normalisation may ask for."""
    from pipeline.demo.dataset import play_episodes, true_actions

    actions = np.concatenate([true_actions(recording)[:-1] for recording in play_episodes(seed=0)])
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

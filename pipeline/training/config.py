"""The settings of a training run: the same schema on the command line and in YAML as the other jobs'."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config import DatasetConfig

STATISTICS_NAME = "action_stats.json"  # in a trained checkpoint's folder


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training of VAE and transformer on recorded actions."""

    # Without a root, the demo's world is rendered.
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # A small checkpoint to begin with (folder or hub id); without one, one of the demo's size, from nothing.
    checkpoint: str | None = None
    embodiment: str = "droid_lerobot"
    action_normalization: str = "quantile"
    # Statistics (JSON) for it; of the rendered world they are written beside it.
    action_stats_path: str | None = None
    image_size: int = 256
    # Of the rendered world.
    num_episodes: int = 1200
    # The VAE first learns the principal components of what it sees, then to draw. 0 and 0 leave it as it is.
    vae_code_steps: int = 600
    vae_steps: int = 800
    vae_batch_size: int = 2
    vae_learning_rate: float = 2e-3
    transformer_steps: int = 8000
    batch_size: int = 16
    learning_rate: float = 2e-3
    # Between the beginnings of two windows of the training set.
    window_stride: int = 9
    flow_shift: float = 10.0
    # What the checkpoint's weights are stored as: float32 or bfloat16.
    dtype: str = "bfloat16"
    seed: int = 0
    output_dir: str = "outputs/train_demo"

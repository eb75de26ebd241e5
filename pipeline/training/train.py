"""Training from config to checkpoint: dataset → VAE → latents → transformer → a folder that every job here loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import EngineConfig, LabelConfig
from pipeline.cosmos3.config import CheckpointConfig, read_checkpoint_config, resolve_checkpoint
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.errors import DatasetError
from pipeline.recipe import Recipe
from pipeline.training.autoencoder import AutoencoderSettings, autoencoder_loss, draw_clips, latent_scale
from pipeline.training.checkpoints import load_vae, trainable_transformer, trainable_vae, write_checkpoint
from pipeline.training.config import TrainConfig
from pipeline.training.flow import FlowSettings, flow_loss
from pipeline.training.loop import LoopSettings, Training
from pipeline.training.pictures import draw_reconstructions
from pipeline.training.windows import Recorded, WindowStore, read_episodes, write_windows
from pipeline.views import LATENT_STRIDE_FRAMES

LOOP_SAVES_EVERY_S = 180.0
_CLIPS_FOR_SCALE = 64


@dataclass(frozen=True)
class Trained:
    checkpoint: Path
    seconds: dict[str, float]  # by part


def train(config: TrainConfig) -> Trained:
    """Goes on where an earlier call with the same `output_dir` stopped. Raises a typed error for what does not fit."""
    torch.manual_seed(config.seed)
    work = Path(config.output_dir)
    start = read_checkpoint_config(resolve_checkpoint(config.checkpoint))
    recipe, episodes = _read(config, start)
    seconds = {}
    if config.vae_steps:
        start, seconds["vae"] = _train_vae(config, work, start, episodes)
    tokenizer = PromptTokenizer.from_pretrained(start.folder)
    windows = work / "windows.safetensors"
    if not windows.is_file():
        write_windows(windows, episodes, recipe, tokenizer, load_vae(start), stride=config.window_stride)
    store = WindowStore(windows, recipe, tokenizer)
    model = trainable_transformer(start)
    flow = FlowSettings(flow_shift=config.flow_shift)
    training = Training(model, _loop(config, config.transformer_steps, config.learning_rate), work / "transformer")

    def loss(generator: torch.Generator):
        found = flow_loss(model, store.draw(config.batch_size, generator), flow, generator)
        return found.total, found.figures

    training.run(loss, doing="transformer")
    seconds["transformer"] = training.seconds
    checkpoint = write_checkpoint(
        work / "checkpoint", start, transformer=training.averaged(), dtype=getattr(torch, config.dtype)
    )
    return Trained(checkpoint, seconds)


def _read(config: TrainConfig, start: CheckpointConfig) -> tuple[Recipe, list[Recorded]]:
    """Every episode of the dataset, in memory."""
    labelling = LabelConfig(
        dataset=config.dataset,
        engine=EngineConfig(checkpoint=str(start.folder)),
        embodiment=config.embodiment,
        action_normalization=config.action_normalization,
        action_stats_path=config.action_stats_path,
        image_size=config.image_size,
    )
    recipe, episodes = read_episodes(labelling)
    found = list(episodes)
    if not found:
        raise DatasetError(
            f"{config.dataset.root}: expected episodes of at least {LATENT_STRIDE_FRAMES} actions, found none. That "
            "many are a latent frame."
        )
    return recipe, found


def _train_vae(
    config: TrainConfig, work: Path, start: CheckpointConfig, episodes: Sequence[Recorded]
) -> tuple[CheckpointConfig, float]:
    model = trainable_vae(start)
    settings = AutoencoderSettings()
    training = Training(model, _loop(config, config.vae_steps, config.vae_learning_rate), work / "vae")

    def loss(generator: torch.Generator):
        clips = draw_clips(episodes, config.vae_batch_size, settings, generator)
        return autoencoder_loss(model, clips, settings, generator)

    training.run(loss, doing="vae", look=lambda: draw_reconstructions(model, episodes, work / "vae" / "samples.png"))
    averaged = training.averaged()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(averaged[name])
    clips = draw_clips(episodes, _CLIPS_FOR_SCALE, settings, torch.Generator().manual_seed(config.seed))
    folder = write_checkpoint(
        work / "with_vae", start, vae=averaged, latent_scale=latent_scale(model.eval(), list(clips))
    )
    return read_checkpoint_config(folder), training.seconds


def _loop(config: TrainConfig, num_steps: int, learning_rate: float) -> LoopSettings:
    return LoopSettings(
        num_steps=num_steps, learning_rate=learning_rate, seed=config.seed, save_every_s=LOOP_SAVES_EVERY_S
    )

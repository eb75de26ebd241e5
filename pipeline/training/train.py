"""Training from config to checkpoint: dataset → VAE → latents → transformer → a folder that every job here loads."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.config import EngineConfig, LabelConfig
from pipeline.cosmos3.config import CheckpointConfig, read_checkpoint_config, resolve_checkpoint
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.errors import DatasetError
from pipeline.recipe import Recipe
from pipeline.training.autoencoder import AutoencoderSettings, autoencoder_loss, code_loss, draw_clips, latent_scale
from pipeline.training.checkpoints import load_vae, trainable_transformer, trainable_vae, write_checkpoint
from pipeline.training.components import Components
from pipeline.training.config import STATISTICS_NAME, TrainConfig
from pipeline.training.flow import FlowSettings, flow_loss
from pipeline.training.loop import LoopSettings, Training
from pipeline.training.pictures import draw_reconstructions
from pipeline.training.windows import Recorded, WindowStore, read_episodes, write_windows
from pipeline.views import LATENT_STRIDE_FRAMES

LOOP_SAVES_EVERY_S = 180.0
_CLIPS_FOR_SCALE, _CLIPS_FOR_COMPONENTS = 64, 256


@dataclass(frozen=True)
class Trained:
    checkpoint: Path
    seconds: dict[str, float]  # by part


def train(config: TrainConfig) -> Trained:
    """Goes on where an earlier call with the same `output_dir` stopped. Raises a typed error for what does not fit."""
    torch.manual_seed(config.seed)
    work = Path(config.output_dir)
    start = read_checkpoint_config(resolve_checkpoint(config.checkpoint))
    recipe, episodes = _open(config, start)
    seconds = {}
    if config.vae_code_steps or config.vae_steps:
        start, seconds["vae"] = _train_vae(config, work, start, episodes)
    tokenizer = PromptTokenizer.from_pretrained(start.folder)
    windows = work / "windows.safetensors"
    if not windows.is_file():
        write_windows(windows, episodes(), recipe, tokenizer, load_vae(start), stride=config.window_stride)
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
    if config.action_stats_path is not None:  # who loads it needs them, to give its answers their units
        shutil.copyfile(config.action_stats_path, checkpoint / STATISTICS_NAME)
    return Trained(checkpoint, seconds)


def _open(config: TrainConfig, start: CheckpointConfig) -> tuple[Recipe, Callable[[], list[Recorded]]]:
    """The recipe, and every episode of the dataset in memory: read when first asked for."""
    labelling = LabelConfig(
        dataset=config.dataset,
        engine=EngineConfig(checkpoint=str(start.folder)),
        embodiment=config.embodiment,
        action_normalization=config.action_normalization,
        action_stats_path=config.action_stats_path,
        image_size=config.image_size,
    )
    recipe, episodes = read_episodes(labelling)

    @functools.cache
    def read() -> list[Recorded]:
        found = list(tqdm(episodes, desc="reading", unit="episode"))
        if not found:
            raise DatasetError(
                f"{config.dataset.root}: expected episodes of at least {LATENT_STRIDE_FRAMES} actions, found none. "
                "That many are a latent frame."
            )
        return found

    return recipe, read


def _train_vae(
    config: TrainConfig, work: Path, start: CheckpointConfig, episodes: Callable[[], list[Recorded]]
) -> tuple[CheckpointConfig, float]:
    """The code first, if it is to be learned at all, then the pictures."""
    model, settings = trainable_vae(start), AutoencoderSettings()
    seconds = 0.0

    def draw(generator: torch.Generator) -> torch.Tensor:
        return draw_clips(episodes(), config.vae_batch_size, settings, generator)

    @functools.cache
    def components() -> Components:
        generator = torch.Generator().manual_seed(config.seed)
        clips = (draw_clips(episodes(), 1, settings, generator) for _ in range(_CLIPS_FOR_COMPONENTS))
        return Components.of(clips, model.config.z_dim)

    def run(name: str, num_steps: int, loss: Callable[[torch.Generator], tuple]) -> float:
        training = Training(model, _loop(config, num_steps, config.vae_learning_rate), work / name)
        picture = training.folder / "samples.png"
        training.run(loss, doing=name, look=lambda: draw_reconstructions(model, episodes(), picture))
        with torch.no_grad():
            for parameter_name, weights in training.averaged().items():
                model.get_parameter(parameter_name).copy_(weights)
        return training.seconds

    def of_code(generator: torch.Generator) -> tuple:
        return code_loss(model, draw(generator), components(), settings, generator)

    def of_pictures(generator: torch.Generator) -> tuple:
        code = components() if config.vae_code_steps else None
        return autoencoder_loss(model, draw(generator), code, settings, generator)

    if config.vae_code_steps:
        seconds += run("vae_code", config.vae_code_steps, of_code)
    if config.vae_steps:
        seconds += run("vae", config.vae_steps, of_pictures)
    folder = work / "with_vae"
    if not folder.is_dir():
        clips = draw_clips(episodes(), _CLIPS_FOR_SCALE, settings, torch.Generator().manual_seed(config.seed))
        scale = latent_scale(model.eval(), list(clips))
        write_checkpoint(folder, start, vae=dict(model.named_parameters()), latent_scale=scale)
    return read_checkpoint_config(folder), seconds


def _loop(config: TrainConfig, num_steps: int, learning_rate: float) -> LoopSettings:
    return LoopSettings(
        num_steps=num_steps, learning_rate=learning_rate, seed=config.seed, save_every_s=LOOP_SAVES_EVERY_S
    )

"""What can be said of a checkpoint before an engine is built from it; imports neither diffusers nor a weight."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.cosmos3.config import CheckpointConfig, read_checkpoint_config
from pipeline.cosmos3.loading import check_strictly, weight_files
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.cosmos3.transformer import Cosmos3Transformer

# Parts that an action sequence never reaches: no text is predicted (`norm` is the text tower's last), and there are
# no sound tokens.
_UNUSED_TENSORS = ("lm_head.", "norm.", "audio_proj_in.", "audio_proj_out.", "audio_modality_embed")


def check_checkpoint(folder: Path) -> None:
    """Raises CheckpointError for what would stop an engine from loading: configs, tokenizer, the transformer's tensors.

    Reads headers only. The VAE's tensors are held against its config when the engine builds it.
    """
    config = read_checkpoint_config(folder)
    check_strictly(build_transformer(config), folder / "transformer", skip=is_unused)
    weight_files(folder / "vae")
    PromptTokenizer.from_pretrained(folder)


def build_transformer(config: CheckpointConfig) -> Cosmos3Transformer:
    """The module without weights, on the meta device."""
    with torch.device("meta"):
        return Cosmos3Transformer(config.transformer)


def is_unused(name: str) -> bool:
    """Whether a tensor of a released transformer is one that the action path does without."""
    return name.startswith(_UNUSED_TENSORS)

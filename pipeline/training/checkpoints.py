"""A checkpoint that learns: its weights as modules that can be trained, and a folder in the public layout of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.cosmos3.checkpoint import build_transformer, is_unused
from pipeline.cosmos3.config import CheckpointConfig
from pipeline.cosmos3.loading import load_strictly, weight_files
from pipeline.cosmos3.transformer import Cosmos3Transformer
from pipeline.cosmos3.vae import VideoVae
from pipeline.errors import CheckpointError

_CPU = torch.device("cpu")


def trainable_transformer(config: CheckpointConfig) -> Cosmos3Transformer:
    """In fp32, with gradients, on the CPU."""
    model = build_transformer(config)
    load_strictly(model, config.folder / "transformer", device=_CPU, dtype=torch.float32, skip=is_unused)
    return _own(model)


def trainable_vae(config: CheckpointConfig) -> AutoencoderKLWan:
    return _own(load_vae(config).model)


def load_vae(config: CheckpointConfig) -> VideoVae:
    """Encoder and decoder in fp32."""
    return VideoVae.from_pretrained(config.folder / "vae", config.vae, device=_CPU, dtype=torch.float32, decoder=True)


def write_checkpoint(
    folder: Path,
    source: CheckpointConfig,
    *,
    transformer: Mapping[str, torch.Tensor] | None = None,
    vae: Mapping[str, torch.Tensor] | None = None,
    latent_scale: tuple[list[float], list[float]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Copies `source` to `folder` with these weights in place of its own; what is not given stays as it is.

    `latent_scale` are the VAE's `latents_mean` and `latents_std`. Everything is stored as `dtype`. The folder
    appears at once, and takes the place of one that is there.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # A model card is about the weights that it came with.
    others = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json", "README.md", "*.png")
    shutil.copytree(source.folder, partial, ignore=others)
    for name, weights in (("transformer", transformer), ("vae", vae)):
        _write_weights(source.folder / name, partial / name, weights or {}, dtype)
    if latent_scale is not None:
        _update_json(
            partial / "vae" / "config.json", dict(zip(("latents_mean", "latents_std"), latent_scale, strict=True))
        )
    shutil.rmtree(folder, ignore_errors=True)
    return partial.rename(folder)


def _write_weights(old: Path, new: Path, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    tensors = {}
    for path in weight_files(old):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    unknown = sorted(weights.keys() - tensors.keys())
    if unknown:
        raise CheckpointError(f"{old}: expected tensors {', '.join(unknown[:5])}, which these weights do not have.")
    tensors |= weights
    stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, new / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _update_json(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def _own[ModuleT: torch.nn.Module](module: ModuleT) -> ModuleT:
    """Loaded weights are views of a mapped file, and need no gradient; these are neither."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
    return module.train()

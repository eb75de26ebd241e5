"""Reads a checkpoint's own config files, and refuses what this engine does not implement, by name.

The public folder layout (diffusers' `Cosmos3OmniPipeline`): `transformer/`, `vae/`, `scheduler/` and
`text_tokenizer/`, each with its JSON. `sound_tokenizer/` and `vision_encoder/` may be there and are never opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.errors import CheckpointError
from pipeline.fingerprint import digest, digest_file
from pipeline.views import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX

WEIGHTS_NAME = "diffusion_pytorch_model"
_NEEDED_FILES = ("transformer/*", "vae/*", "scheduler/*", "text_tokenizer/*", "model_index.json")
_DEFAULT_ROPE_AXES_DIM = (24, 20, 20)  # configs of diffusers 0.39 do not name it


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The numbers of `transformer/config.json` that the action path needs; names are the checkpoint's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    attention_bias: bool
    rms_norm_eps: float
    rope_theta: float
    rope_axes_dim: tuple[int, int, int]
    latent_channel: int
    latent_patch_size: int
    action_dim: int
    num_embodiment_domains: int
    base_fps: float
    enable_fps_modulation: bool
    temporal_margin: int
    timestep_scale: float

    @property
    def patch_latent_dim(self) -> int:
        return self.latent_channel * self.latent_patch_size**2


@dataclass(frozen=True)
class CheckpointConfig:
    """Everything the engine reads before it touches a weight."""

    folder: Path
    transformer: TransformerConfig
    vae: dict[str, Any]
    scheduler: dict[str, Any]


def resolve_checkpoint(checkpoint: str | Path, *, with_weights: bool = True) -> Path:
    """A local checkpoint folder for a path or a hub id; of a hub repository only what inference needs is fetched.

    Without weights that is a few files of configuration. Raises CheckpointError when there is no such checkpoint.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(checkpoint).startswith((".", "/", "~")) or str(checkpoint).count("/") != 1:
        raise CheckpointError(
            f"Expected a checkpoint folder or a hub id such as 'nvidia/Cosmos3-Nano', found {str(checkpoint)!r}, which "
            "is neither. Give the folder that holds transformer/ and vae/."
        )
    try:
        ignored = None if with_weights else ["*.safetensors"]
        return Path(snapshot_download(str(checkpoint), allow_patterns=list(_NEEDED_FILES), ignore_patterns=ignored))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"Could not fetch {str(checkpoint)!r} from the hub ({type(error).__name__}: {error}). "
            "Check the id and your token, or download it once and give the folder."
        ) from error


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    """Reads and checks `transformer/config.json`, `vae/config.json` and `scheduler/scheduler_config.json`."""
    return CheckpointConfig(
        folder=folder,
        transformer=_transformer_config(folder / "transformer" / "config.json"),
        vae=_vae_config(folder / "vae" / "config.json"),
        scheduler=_read_json(folder / "scheduler" / "scheduler_config.json"),
    )


def checkpoint_fingerprint(folder: Path) -> str:
    """Identity of a checkpoint by content: its configs, its tokenizer and its weights (sampled, see `digest_file`)."""
    files = sorted(
        path
        for part in ("transformer", "vae", "scheduler", "text_tokenizer")
        for path in (folder / part).rglob("*")
        if path.is_file() and path.suffix in {".json", ".jinja", ".safetensors"}
    )
    return digest({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


def _transformer_config(path: Path) -> TransformerConfig:
    raw = _read_json(path)
    _refuse_unknown_variants(raw, path)
    rope_axes_dim = raw.get("rope_axes_dim") or (raw.get("rope_scaling") or {}).get("mrope_section")
    margin = raw.get("unified_3d_mrope_temporal_modality_margin")
    numbers = {
        name: raw.get(name)
        for name in TransformerConfig.__dataclass_fields__
        if name not in {"rope_axes_dim", "temporal_margin", "attention_bias"}
    }
    missing = sorted(name for name, value in {**numbers, "temporal margin": margin}.items() if value is None)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}. Expected a Cosmos3 transformer config.")
    config = TransformerConfig(
        **numbers,
        rope_axes_dim=tuple(rope_axes_dim or _DEFAULT_ROPE_AXES_DIM),
        temporal_margin=margin,
        attention_bias=bool(raw.get("attention_bias", False)),
    )
    if 2 * sum(config.rope_axes_dim) != config.head_dim:
        raise CheckpointError(
            f"{path}: rope_axes_dim {list(config.rope_axes_dim)} must add up to half of head_dim={config.head_dim}."
        )
    return config


def _refuse_unknown_variants(raw: dict[str, Any], path: Path) -> None:
    """Names the architecture this engine does not implement, instead of computing something close to it.

    `sound_gen` alone is no reason: an action sequence has no sound tokens, so the audio heads of an omni checkpoint
    (the released Nano has them) take no part and are not loaded.
    """
    refused = {
        "hidden_act": (raw.get("hidden_act", "silu") != "silu", "Edge's relu² MLP"),
        "qk_norm_for_text": (raw.get("qk_norm_for_text", True) is not True, "Edge's text attention without QK norm"),
        "use_und_k_norm_for_gen": (bool(raw.get("use_und_k_norm_for_gen", False)), "Edge's second norm of text keys"),
        "unified_3d_mrope_reset_spatial_ids": (
            raw.get("unified_3d_mrope_reset_spatial_ids", True) is not True,
            "spatial positions that continue the text's",
        ),
    }
    for name, (is_refused, variant) in refused.items():
        if is_refused:
            raise CheckpointError(
                f"{path}: {name}={raw.get(name)!r} is {variant}, which this engine does not implement. "
                "Use a Nano-style checkpoint, such as nvidia/Cosmos3-Nano."
            )
    if not raw.get("action_gen"):
        kind = "sound and video" if raw.get("sound_gen") else "video"
        raise CheckpointError(
            f"{path}: action_gen is not set, so this checkpoint generates {kind} and has no action heads. "
            "Use one that was trained with actions, such as nvidia/Cosmos3-Nano."
        )


def _vae_config(path: Path) -> dict[str, Any]:
    raw = _read_json(path)
    expected = {"scale_factor_temporal": LATENT_STRIDE_FRAMES, "scale_factor_spatial": LATENT_STRIDE_PX}
    for name, value in expected.items():
        if raw.get(name) != value:
            raise CheckpointError(f"{path}: expected {name}={value} (the Wan 2.2 VAE), found {raw.get(name)!r}.")
    for name in ("latents_mean", "latents_std"):
        if len(raw.get(name) or ()) != raw.get("z_dim"):
            raise CheckpointError(f"{path}: {name} must have z_dim={raw.get('z_dim')} values.")
    return raw


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. A Cosmos3 checkpoint has transformer/, vae/, scheduler/, text_tokenizer/."
        )
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Download the checkpoint again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value

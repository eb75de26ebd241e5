"""Reads a checkpoint's own config files, and refuses what this engine does not implement, by name.

The public folder layout (diffusers' `Cosmos3OmniPipeline`): `transformer/`, `vae/`, `scheduler/` and
`text_tokenizer/`, each with its JSON. `sound_tokenizer/` and `vision_encoder/` may be there and are never opened.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.errors import CheckpointError
from pipeline.fingerprint import digest, digest_file
from pipeline.staging import stage_folder
from pipeline.storage import open_path
from pipeline.views import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX

WEIGHTS_NAME = "diffusion_pytorch_model"
_NEEDED_FILES = ("transformer/*", "vae/*", "scheduler/*", "text_tokenizer/*", "model_index.json")
_SMALL_FILES = ("transformer/*.json", "vae/*.json", "scheduler/*", "text_tokenizer/*", "model_index.json")
_DEFAULT_ROPE_AXES_DIM = (24, 20, 20)  # configs of diffusers 0.39 do not name it
# Above what any model has; below what takes minutes to build, even without weights, or overflows a tensor's size.
_LARGEST = {"num_hidden_layers": 1024, "latent_patch_size": 64, "num_res_blocks": 64}
_LARGEST_OTHER = 2**18
_LONGEST_LIST = 4096
_MOST_VAE_LEVELS = 16


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
    """A local checkpoint folder for a path, a hub id or `s3://…`; of a remote one only what inference needs is fetched.

    Without weights that is a few files of configuration. Raises CheckpointError when there is no such checkpoint,
    StorageError when an object store does not give it.
    """
    if "://" in str(checkpoint):
        return stage_folder(open_path(str(checkpoint)), _NEEDED_FILES if with_weights else _SMALL_FILES)
    try:
        folder = Path(checkpoint).expanduser()
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{str(checkpoint)!r} is no path of a checkpoint folder: {error}.") from error
    if is_folder:
        return folder
    if is_there or str(checkpoint).startswith((".", "/", "~")) or str(checkpoint).count("/") != 1:
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
        scheduler=_read_modest(folder / "scheduler" / "scheduler_config.json"),
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
    scaling = raw.get("rope_scaling")
    fallback = scaling.get("mrope_section") if isinstance(scaling, dict) else None
    rope_axes_dim = raw.get("rope_axes_dim") or fallback or _DEFAULT_ROPE_AXES_DIM
    margin = raw.get("unified_3d_mrope_temporal_modality_margin")
    numbers = {
        name: raw.get(name)
        for name in TransformerConfig.__dataclass_fields__
        if name not in {"rope_axes_dim", "temporal_margin", "attention_bias"}
    }
    missing = sorted(name for name, value in {**numbers, "temporal margin": margin}.items() if value is None)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}. Expected a Cosmos3 transformer config.")
    _check_numbers(path, numbers, margin, rope_axes_dim)
    config = TransformerConfig(
        **numbers,
        rope_axes_dim=tuple(rope_axes_dim),
        temporal_margin=margin,
        attention_bias=bool(raw.get("attention_bias", False)),
    )
    if 2 * sum(config.rope_axes_dim) != config.head_dim:
        raise CheckpointError(
            f"{path}: rope_axes_dim {list(config.rope_axes_dim)} must add up to half of head_dim={config.head_dim}."
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads={config.num_attention_heads} must be a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}."
        )
    return config


def _check_numbers(path: Path, numbers: dict[str, Any], margin: Any, rope_axes_dim: Any) -> None:
    for name, value in numbers.items():
        match TransformerConfig.__annotations__[name]:
            case "int":
                _check_integer(path, name, value, least=1)
            case "float":
                _require(path, name, value, "a number above zero", _is_number(value) and value > 0)
            case "bool":
                _require(path, name, value, "true or false", isinstance(value, bool))
    _check_integer(path, "unified_3d_mrope_temporal_modality_margin", margin, least=0)
    is_three = isinstance(rope_axes_dim, list | tuple) and len(rope_axes_dim) == 3
    _require(path, "rope_axes_dim", rope_axes_dim, "three integers", is_three)
    for value in rope_axes_dim:
        _check_integer(path, "rope_axes_dim", value, least=1)


def _check_integer(path: Path, name: str, value: Any, *, least: int) -> None:
    largest = _LARGEST.get(name, _LARGEST_OTHER)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    _require(path, name, value, f"an integer of {least} to {largest}", is_integer and least <= value <= largest)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _require(path: Path, name: str, value: Any, expected: str, is_met: bool) -> None:
    if not is_met:
        raise CheckpointError(f"{path}: {name} must be {expected}, found {repr(value)[:80]}.")


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
    raw = _read_modest(path)
    expected = {"scale_factor_temporal": LATENT_STRIDE_FRAMES, "scale_factor_spatial": LATENT_STRIDE_PX}
    for name, value in expected.items():
        if raw.get(name) != value:
            raise CheckpointError(f"{path}: expected {name}={value} (the Wan 2.2 VAE), found {raw.get(name)!r}.")
    _check_integer(path, "z_dim", raw.get("z_dim"), least=1)
    for name in ("latents_mean", "latents_std"):
        values = raw.get(name)
        is_list = isinstance(values, list) and len(values) == raw["z_dim"]
        if not is_list or not all(map(_is_number, values)):
            raise CheckpointError(f"{path}: {name} must have z_dim={raw['z_dim']} values, all of them numbers.")
    _require(path, "latents_std", raw["latents_std"], "above zero", min(raw["latents_std"]) > 0)
    if "num_res_blocks" in raw:
        _check_integer(path, "num_res_blocks", raw["num_res_blocks"], least=1)
    levels = raw.get("dim_mult", [])
    is_few = isinstance(levels, list) and len(levels) <= _MOST_VAE_LEVELS
    _require(path, "dim_mult", levels, f"a list of at most {_MOST_VAE_LEVELS}", is_few)
    return raw


def _read_modest(path: Path) -> dict[str, Any]:
    """A config that diffusers' own classes interpret: what they would make of its numbers has to fit in memory."""
    raw = _read_json(path)
    waiting = list(raw.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict | list):
            _require(path, name, value, f"at most {_LONGEST_LIST} values", len(value) <= _LONGEST_LIST)
            waiting.extend((name, inner) for inner in (value.values() if isinstance(value, dict) else value))
        elif isinstance(value, int):
            is_modest = abs(value) <= _LARGEST_OTHER
            _require(path, name, value, f"an integer of at most {_LARGEST_OTHER}", is_modest)
    return raw


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. A Cosmos3 checkpoint has transformer/, vae/, scheduler/, text_tokenizer/."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Download the checkpoint again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value

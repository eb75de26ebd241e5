"""A small random checkpoint in the public on-disk layout, made on the spot. Its answers mean nothing.

It is saved by diffusers' own classes, so that whatever loads it also loads the released one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.embodiments import VIEW_POINT_SENTENCES, get_embodiment

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
# The chat format of the Qwen family, reduced to what a single user turn needs.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The grid that released checkpoints ship: Karras numbers in a flow schedule.
_SCHEDULER = {
    "use_karras_sigmas": True,
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "sigma_max": 200.0,
    "sigma_min": 0.147,
    "flow_shift": 1.0,
    "solver_order": 2,
    "solver_type": "bh2",
    "final_sigmas_type": "zero",
}

_TRANSFORMER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_embodiment_domains": 32,
}


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    vae_base_dim: int = 8,
    latent_channels: int = 48,
    vocab_size: int = 1024,
    corpus: Sequence[str] = (),
    learns: bool = False,
    max_shard_size: str = "10GB",
    **transformer: float,
) -> Path:
    """Writes the checkpoint to `folder` and returns it; every parameter is random, norms and biases too.

    `transformer` overrides what the transformer's config says of its size. The tokenizer's vocabulary comes from the
    captions' own words and from `corpus`. One that `learns` has a VAE as torch initialises it, for a random one that
    keeps its scale does not learn to draw, and a transformer whose layers add little at first.
    The folder appears at once, complete; one that is already there is left alone.
    """
    if (folder / "model_index.json").is_file():
        return folder
    # A demo that is there already does not wait for this import.
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    sizes = _TRANSFORMER | transformer | {"latent_channel": latent_channels, "vocab_size": vocab_size}
    model = _randomise(_build_transformer(sizes), generator)
    if learns:
        _calm(model, sizes["num_hidden_layers"])
    model.save_pretrained(partial / "transformer", max_shard_size=max_shard_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(**_vae_settings(vae_base_dim, latent_channels))
    (vae if learns else _randomise(vae, generator)).save_pretrained(partial / "vae")
    UniPCMultistepScheduler(**_SCHEDULER).save_pretrained(partial / "scheduler")
    _write_tokenizer(partial / "text_tokenizer", vocab_size, [*_corpus(), *corpus])
    _write_json(partial / "model_index.json", _model_index())
    shutil.rmtree(folder, ignore_errors=True)
    return partial.rename(folder)


def _build_transformer(sizes: Mapping[str, int]) -> torch.nn.Module:
    from diffusers import Cosmos3OmniTransformer

    half = sizes["head_dim"] // 2
    rows = columns = half // 4
    return Cosmos3OmniTransformer(
        **sizes,
        rope_axes_dim=[half - rows - columns, rows, columns],
        patch_latent_dim=4 * sizes["latent_channel"],
        action_gen=True,
        action_dim=64,
    )


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Weights keep activations at unit scale; norms scatter around one and biases around zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith(("weight", "gamma")):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.ndim >= 2 and not name.endswith("bias.weight"):
                fan_in = parameter[0].numel()
                if name.endswith("fc.weight"):  # a table of [in, out] matrices, one per domain
                    fan_in = model.config.action_dim if "proj_in" in name else model.config.hidden_size
                parameter.copy_(noise if "embed_tokens" in name else noise * fan_in**-0.5)
            else:
                parameter.copy_(0.1 * noise)
    return model.eval()


def _calm(transformer: torch.nn.Module, num_layers: int) -> None:
    """Neutral norms and biases, and residual branches that together have the scale of one (GPT-2's rule)."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif parameter.ndim < 2 or name.endswith("bias.weight"):
                parameter.zero_()
            elif any(part in name for part in ("to_out", "to_add_out", "down_proj")):
                parameter.mul_((2 * num_layers) ** -0.5)


def _vae_settings(base_dim: int, z_dim: int) -> dict[str, Any]:
    """The Wan 2.2 VAE's shape (4x16x16; 48 latent channels) with few channels inside."""
    return {
        "base_dim": base_dim,
        "decoder_base_dim": base_dim,
        "z_dim": z_dim,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.02 * (channel - z_dim / 2) for channel in range(z_dim)],
        "latents_std": [0.5 + 0.01 * channel for channel in range(z_dim)],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
    }


def _write_tokenizer(folder: Path, vocab_size: int, corpus: Sequence[str]) -> None:
    """A byte-level BPE, trained on the words that captions are made of; what all of them say is a token each."""
    phrases = _standing_phrases()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_SPECIAL_TOKENS) - len(phrases),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    tokenizer.add_tokens(phrases)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)


def _corpus() -> list[str]:
    caption = {
        "cinematography": {"framing": ""},
        "actions": [{"time": "0:00-0:01", "description": "Put the marker in the pot."}],
        "duration": "1s",
        "fps": 15.0,
        "resolution": {"H": 544, "W": 736},
        "aspect_ratio": "4,3",
    }
    return [*_framings(), json.dumps(caption), "user\n", "assistant\n"]


def _framings() -> list[str]:
    return [*VIEW_POINT_SENTENCES.values(), get_embodiment("droid_lerobot").view_description]


def _standing_phrases() -> list[str]:
    """What captions say around the task and the numbers. A small model would have to find the task among all that:
    six words of a hundred and thirty.
    """
    caption = {
        "cinematography": {"framing": "?"},
        "actions": [{"time": "0:00-0:01", "description": "?"}],
        "duration": "?",
        "fps": None,
        "resolution": {"H": None, "W": None},
        "aspect_ratio": "?",
    }
    return [*_framings(), *re.split(r"\?|null", json.dumps(caption))[:-1]]


def _model_index() -> dict:
    return {
        "_class_name": "Cosmos3OmniPipeline",
        "_diffusers_version": "0.42.1",
        "default_use_system_prompt": False,
        "enable_safety_checker": False,
        "use_native_flow_schedule": True,
        "transformer": ["diffusers", "Cosmos3OmniTransformer"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "sound_tokenizer": [None, None],
        "safety_checker": [None, None],
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")

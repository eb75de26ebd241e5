"""A checkpoint's own configs: what is read, what is refused by name, and the identity of a folder."""

from __future__ import annotations

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from checkpoint_edits import WEIGHTS, edit_json, edit_tensors

from pipeline.cosmos3.config import checkpoint_fingerprint, read_checkpoint_config, resolve_checkpoint
from pipeline.cosmos3.engine import Engine
from pipeline.errors import CheckpointError

TRANSFORMER, VAE, SCHEDULER = "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"


@pytest.fixture
def configs(tiny_checkpoint, tmp_path):
    """A folder with the tiny checkpoint's configs and none of its weights: reading configs needs no more."""
    for name in (TRANSFORMER, VAE, SCHEDULER):
        (tmp_path / name).parent.mkdir()
        shutil.copy(tiny_checkpoint / name, tmp_path / name)
    return tmp_path


def test_numbers_are_the_files(configs):
    raw = json.loads((configs / TRANSFORMER).read_text())
    config = read_checkpoint_config(configs)
    assert config.folder == configs
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "action_dim", "base_fps", "rms_norm_eps"):
        assert getattr(config.transformer, name) == raw[name]
    assert config.transformer.rope_axes_dim == tuple(raw["rope_axes_dim"])
    assert config.transformer.temporal_margin == 15000
    assert config.transformer.patch_latent_dim == 192
    assert config.vae["z_dim"] == 48
    assert config.scheduler["sigma_max"] == 200.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu2"}, "hidden_act='relu2' .* Use a Nano-style checkpoint"),
        ({"qk_norm_for_text": False}, "qk_norm_for_text=False"),
        ({"use_und_k_norm_for_gen": True}, "use_und_k_norm_for_gen=True"),
        ({"unified_3d_mrope_reset_spatial_ids": False}, "unified_3d_mrope_reset_spatial_ids=False"),
        ({"action_gen": False}, "action_gen is not set, so this checkpoint generates video and has"),
        ({"action_gen": False, "sound_gen": True}, "generates sound and video and has no action heads"),
        ({"rope_axes_dim": [24, 20, 20]}, r"rope_axes_dim \[24, 20, 20\] must add up to half of head_dim=32"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused_by_name(configs, changes, message):
    edit_json(configs / TRANSFORMER, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_config(configs)


def test_sound_alone_is_no_reason_to_refuse(checkpoint_copy):
    """The released Nano has audio heads; they take no part in an action sequence."""
    edit_json(checkpoint_copy / TRANSFORMER, sound_gen=True, sound_dim=64)
    audio = {"audio_proj_in.weight": (64, 64), "audio_proj_out.bias": (64,), "audio_modality_embed": (64,)}
    edit_tensors(
        checkpoint_copy / "transformer",
        lambda tensors: tensors.update({name: torch.ones(shape) for name, shape in audio.items()}),
    )
    engine = Engine.from_pretrained(checkpoint_copy, device="cpu")
    assert not any(name.startswith("audio") for name, _ in engine.transformer.named_parameters())


@pytest.mark.parametrize(
    ("changes", "remove", "expected"),
    [
        ({"rope_axes_dim": None, "rope_scaling": {"mrope_section": [6, 5, 5]}}, (), (6, 5, 5)),
        ({"rope_scaling": {"mrope_section": [6, 5, 5]}}, ("rope_axes_dim",), (6, 5, 5)),
        ({"rope_scaling": {"mrope_section": [6, 5, 5]}}, (), (8, 4, 4)),
        ({"head_dim": 128, "rope_scaling": None}, ("rope_axes_dim",), (24, 20, 20)),
        ({"head_dim": 128}, ("rope_axes_dim", "rope_scaling"), (24, 20, 20)),
    ],
)
def test_rope_axes_fall_back_to_mrope_section_and_then_to_the_first_releases(configs, changes, remove, expected):
    edit_json(configs / TRANSFORMER, remove=remove, **changes)
    assert read_checkpoint_config(configs).transformer.rope_axes_dim == expected


def test_missing_numbers_are_listed(configs):
    edit_json(
        configs / TRANSFORMER,
        remove=("hidden_size", "timestep_scale", "unified_3d_mrope_temporal_modality_margin"),
    )
    with pytest.raises(CheckpointError, match="lacks hidden_size, temporal margin, timestep_scale"):
        read_checkpoint_config(configs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor_temporal": 8}, "expected scale_factor_temporal=4"),
        ({"scale_factor_spatial": 8}, "expected scale_factor_spatial=16"),
        ({"latents_mean": [0.0]}, "latents_mean must have z_dim=48 values"),
        ({"latents_std": None}, "latents_std must have z_dim=48 values"),
    ],
)
def test_another_vae_is_refused(configs, changes, message):
    edit_json(configs / VAE, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_config(configs)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (TRANSFORMER, {"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer of 1 to 1024"),
        (TRANSFORMER, {"hidden_size": 64.0}, "hidden_size must be an integer"),
        (TRANSFORMER, {"hidden_size": 10**400}, "hidden_size must be an integer"),
        (TRANSFORMER, {"vocab_size": True}, "vocab_size must be an integer"),
        (TRANSFORMER, {"action_dim": 0}, "action_dim must be an integer of 1"),
        (TRANSFORMER, {"rope_theta": float("nan")}, "rope_theta must be a number above zero"),
        (TRANSFORMER, {"base_fps": -24}, "base_fps must be a number above zero"),
        (TRANSFORMER, {"rms_norm_eps": 10**400}, "rms_norm_eps must be a number above zero"),
        (TRANSFORMER, {"enable_fps_modulation": 1}, "enable_fps_modulation must be true or false"),
        (TRANSFORMER, {"rope_axes_dim": [8, 8]}, "rope_axes_dim must be three integers"),
        (TRANSFORMER, {"rope_axes_dim": "axes"}, "rope_axes_dim must be three integers"),
        (TRANSFORMER, {"rope_axes_dim": [24, -4, -4]}, "rope_axes_dim must be an integer of 1"),
        (TRANSFORMER, {"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        (VAE, {"z_dim": "48"}, "z_dim must be an integer"),
        (VAE, {"latents_std": [0.0] * 48}, "latents_std must be above zero"),
        (VAE, {"latents_mean": ["0"] * 48}, "latents_mean must have z_dim=48 values, all of them numbers"),
        (VAE, {"num_res_blocks": 10**5}, "num_res_blocks must be an integer of 1 to 64"),
        (VAE, {"dim_mult": [1] * 17}, "dim_mult must be a list of at most 16"),
        (VAE, {"base_dim": 10**9}, "base_dim must be an integer of at most"),
        (SCHEDULER, {"num_train_timesteps": 10**12}, "num_train_timesteps must be an integer of at most"),
        (SCHEDULER, {"trained_betas": [0.1] * 5000}, "trained_betas must be at most 4096 values"),
    ],
    ids=str,
)
def test_numbers_that_no_model_has_are_refused_before_anything_is_built(configs, name, changes, message):
    edit_json(configs / name, **changes)
    with pytest.raises(CheckpointError, match=f"{name}: {message}"):
        read_checkpoint_config(configs)


@pytest.mark.parametrize("name", [TRANSFORMER, VAE, SCHEDULER])
def test_absent_and_broken_files_are_named(configs, name):
    for content, message in (("{", "is not valid JSON"), ("[1]", "expected a JSON object, found list")):
        (configs / name).write_text(content)
        with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
            read_checkpoint_config(configs)
    (configs / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_checkpoint_config(configs)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", "nano"])
def test_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Expected a checkpoint folder or a hub id"):
        resolve_checkpoint(name)


def test_a_file_is_no_checkpoint(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="Expected a checkpoint folder"):
        resolve_checkpoint(tiny_checkpoint / "model_index.json")


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="Could not fetch 'nobody/nothing' from the hub"):
        resolve_checkpoint("nobody/nothing")


def test_a_folder_is_taken_as_it_is(tiny_checkpoint):
    assert resolve_checkpoint(tiny_checkpoint) == resolve_checkpoint(str(tiny_checkpoint)) == tiny_checkpoint


def test_fingerprint_follows_the_content_and_not_the_place(checkpoint_copy, tiny_checkpoint, tmp_path):
    original = checkpoint_fingerprint(tiny_checkpoint)
    assert checkpoint_fingerprint(checkpoint_copy) == original
    assert checkpoint_fingerprint(checkpoint_copy.rename(tmp_path / "elsewhere")) == original


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_fingerprint_changes_with_one_byte_of_a_weight(checkpoint_copy, part):
    before = checkpoint_fingerprint(checkpoint_copy)
    path = checkpoint_copy / part / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checkpoint_fingerprint(checkpoint_copy) != before


@pytest.mark.parametrize("name", [SCHEDULER, "text_tokenizer/chat_template.jinja", TRANSFORMER])
def test_fingerprint_changes_with_a_config(checkpoint_copy, name):
    before = checkpoint_fingerprint(checkpoint_copy)
    path = checkpoint_copy / name
    path.write_text(path.read_text() + " ")
    assert checkpoint_fingerprint(checkpoint_copy) != before

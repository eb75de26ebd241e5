"""What was trained becomes a folder in the public layout, which the engine and diffusers load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.cosmos3.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.training.checkpoints import trainable_transformer, trainable_vae, write_checkpoint


@pytest.fixture
def source(tiny_checkpoint):
    return read_checkpoint_config(tiny_checkpoint)


def weights_of(folder, part):
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def test_new_weights_take_the_place_of_the_old_and_all_else_stays(source, tmp_path):
    model = trainable_transformer(source)
    new = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    folder = write_checkpoint(tmp_path / "new", source, transformer=new)
    before, after = weights_of(source.folder, "transformer"), weights_of(folder, "transformer")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor + 1 if name in new else tensor, atol=0, rtol=0)
    for name, tensor in weights_of(source.folder, "vae").items():
        assert torch.equal(weights_of(folder, "vae")[name], tensor)
    for path in source.folder.rglob("*.json"):
        assert (folder / path.relative_to(source.folder)).read_text() == path.read_text()


def test_the_engine_and_diffusers_load_it(source, tmp_path):
    from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer

    model, vae = trainable_transformer(source), trainable_vae(source)
    folder = write_checkpoint(
        tmp_path / "new",
        source,
        transformer={name: parameter * 2 for name, parameter in model.named_parameters()},
        vae={name: parameter * 2 for name, parameter in vae.named_parameters()},
        latent_scale=([0.5] * 48, [2.0] * 48),
        dtype=torch.bfloat16,
    )
    engine = Engine.from_pretrained(folder, device="cpu", decode_video=True)
    assert engine.config.vae["latents_std"] == [2.0] * 48
    peer = Cosmos3OmniTransformer.from_pretrained(folder / "transformer")
    torch.testing.assert_close(peer.proj_in.weight.float(), (2 * model.proj_in.weight).bfloat16().float())
    assert AutoencoderKLWan.from_pretrained(folder / "vae").config.latents_mean == [0.5] * 48


def test_a_folder_that_is_there_is_replaced_as_a_whole(source, tmp_path):
    folder = tmp_path / "new"
    write_checkpoint(folder, source)
    (folder / "left.txt").write_text("over")
    assert write_checkpoint(folder, source) == folder
    assert not (folder / "left.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_model_card_stays_with_the_weights_it_is_about(tiny_checkpoint, tmp_path):
    described = Path(shutil.copytree(tiny_checkpoint, tmp_path / "described"))
    (described / "README.md").write_text("# Right in nine cases of ten")
    folder = write_checkpoint(tmp_path / "new", read_checkpoint_config(described))
    assert not (folder / "README.md").exists()


def test_weights_of_another_model_are_refused_by_name(source, tmp_path):
    with pytest.raises(CheckpointError, match=r"layers\.9\.nothing"):
        write_checkpoint(tmp_path / "new", source, transformer={"layers.9.nothing": torch.zeros(1)})


def test_a_trainable_model_owns_its_weights(source):
    """The loaded ones are a mapped file, shared with whoever loads it next."""
    model = trainable_transformer(source)
    with torch.no_grad():
        model.proj_in.weight.add_(1)
    again = trainable_transformer(source)
    assert not torch.equal(model.proj_in.weight, again.proj_in.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert json.loads((source.folder / "model_index.json").read_text())["_class_name"] == "Cosmos3OmniPipeline"

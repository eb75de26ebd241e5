"""Training from a dataset to a folder that every job loads; stopped and gone on with; of wrong input, a clear error."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_by_stage import drive_without_ray

from pipeline.config import DatasetConfig, EngineConfig, LabelConfig
from pipeline.errors import DatasetError
from pipeline.labelling import prepare
from pipeline.training import train as training_room
from pipeline.training.config import TrainConfig
from pipeline.training.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import make_recorded_v3, make_v3

LENGTHS = (20, 19)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_checkpoint) -> TrainConfig:
    root = make_recorded_v3(tmp_path_factory.mktemp("recorded") / "dataset", LENGTHS)
    return TrainConfig(
        dataset=DatasetConfig(root=str(root), cameras=("observation.images.front",)),
        checkpoint=str(tiny_checkpoint),
        action_normalization="none",
        vae_code_steps=2,
        vae_steps=2,
        vae_batch_size=1,
        transformer_steps=4,
        batch_size=2,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    return train(replace(base, output_dir=str(tmp_path_factory.mktemp("trained")))).checkpoint


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("transformer", "vae")
        for name, tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }


def test_a_label_run_takes_what_was_trained(base, trained, tmp_path):
    config = LabelConfig(
        dataset=base.dataset,
        engine=EngineConfig(checkpoint=str(trained), num_inference_steps=1, device="cpu"),
        action_normalization="none",
        image_size=256,
        output_dir=str(tmp_path),
    )
    statuses = drive_without_ray(prepare(config))
    assert len(statuses) == 2
    assert not any(status["error"] for status in statuses)


def test_every_part_learned(base, trained, tiny_checkpoint):
    before, after = weights(tiny_checkpoint), weights(trained)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("transformer.layers.0.self_attn.to_q", "transformer.proj_out", "vae.encoder.conv_in", "vae.decoder"):
        assert any(name.startswith(part) for name in changed), part


def test_what_was_stopped_in_the_middle_ends_with_the_same_weights(base, trained, tmp_path, monkeypatch):
    """With the VAE and the windows of the run that was not stopped, which are gone on with, too."""
    folder = Path(shutil.copytree(trained.parent, tmp_path / "stopped"))
    for part in ("transformer", "checkpoint"):
        shutil.rmtree(folder / part)
    config = replace(base, output_dir=str(folder))
    monkeypatch.setattr(training_room, "LOOP_SAVES_EVERY_S", 0.0)
    losses, calls = training_room.flow_loss, itertools.count(1)

    def stop_at_the_third(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(training_room, "flow_loss", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(training_room, "flow_loss", losses)
    resumed, through = weights(train(config).checkpoint), weights(trained)
    assert resumed.keys() == through.keys()
    assert all(torch.equal(resumed[name], through[name]) for name in through)


def test_without_a_vae_of_its_own_it_keeps_the_one_it_began_with(base, tmp_path, tiny_checkpoint):
    folder = train(
        replace(base, vae_code_steps=0, vae_steps=0, transformer_steps=1, output_dir=str(tmp_path))
    ).checkpoint
    before, after = weights(tiny_checkpoint), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("vae."))


def test_a_dataset_without_actions_is_refused_before_anything_is_trained(base, tmp_path):
    root = make_v3(tmp_path / "dataset", (20,), per_file=1, codec="libx264").root
    with pytest.raises(DatasetError, match="no recorded actions"):
        train(replace(base, dataset=replace(base.dataset, root=str(root)), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_episodes_that_are_too_short_are_told(base, tmp_path):
    root = make_recorded_v3(tmp_path / "dataset", (3, 2))
    with pytest.raises(DatasetError, match="expected episodes of"):
        train(replace(base, dataset=replace(base.dataset, root=str(root)), output_dir=str(tmp_path / "out")))

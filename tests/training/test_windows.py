"""What is trained on is what labelling would see: the same frames, latents, scales and prompts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.action_sources import open_action_source
from pipeline.config import DatasetConfig, EngineConfig, LabelConfig
from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.cosmos3.prompt import PromptTokenizer
from pipeline.errors import DatasetError
from pipeline.run import open_input
from pipeline.stages.engine_stage import make_processor
from pipeline.training.checkpoints import load_vae
from pipeline.training.windows import Recorded, WindowStore, read_episodes, write_windows

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import make_recorded_v3

LENGTHS = (12, 4, 7)
CHUNK = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_checkpoint) -> LabelConfig:
    root = make_recorded_v3(tmp_path_factory.mktemp("recorded") / "dataset", LENGTHS)
    return LabelConfig(
        dataset=DatasetConfig(root=str(root), cameras=("observation.images.front",)),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint)),
        action_normalization="none",
        action_chunk_size=CHUNK,
        image_size=256,
    )


@pytest.fixture(scope="module")
def read(config):
    recipe, episodes = read_episodes(config)
    return recipe, list(episodes)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint):
    checkpoint = read_checkpoint_config(tiny_checkpoint)
    return PromptTokenizer.from_pretrained(checkpoint.folder), load_vae(checkpoint)


@pytest.fixture(scope="module")
def store(read, parts, tmp_path_factory) -> WindowStore:
    (recipe, episodes), (tokenizer, vae) = read, parts
    path = tmp_path_factory.mktemp("windows") / "windows.safetensors"
    write_windows(path, episodes, recipe, tokenizer, vae, stride=2)
    return WindowStore(path, recipe, tokenizer)


def test_episodes_come_as_the_loader_sees_them_with_their_recorded_actions(config, read):
    recipe, episodes = read
    dataset = open_input(config)
    source = open_action_source("recorded", dataset, recipe)
    # Episode 1 has three actions: less than a latent frame.
    assert [len(episode.frames) for episode in episodes] == [12, 7]
    for index, episode in zip((0, 2), episodes, strict=True):
        np.testing.assert_array_equal(episode.actions, source.read(dataset, index, recipe.timebase))
        assert episode.task == dataset.episode(index).task
        assert episode.frames.shape[1:] == (episode.canvas.content_height_px, episode.canvas.content_width_px, 3)


def test_windows_begin_at_every_stride_and_at_the_last_place(store):
    # 11 actions, windows of 8: at 0, 2 and 3. The other episode has six actions, and is one window.
    assert len(store) == 4
    assert [store[index].num_actions for index in range(4)] == [8, 8, 8, 6]
    assert [store[index].opens for index in range(4)] == [True, False, False, True]


def test_a_window_is_what_the_engine_would_be_given(read, parts, store):
    (recipe, episodes), (tokenizer, vae) = read, parts
    processor = make_processor(recipe, tokenizer)
    for index, (episode, start) in enumerate([(0, 0), (0, 2), (0, 3), (1, 0)]):
        recorded = episodes[episode]
        inputs = processor.window_inputs(
            recorded.frames[start : start + CHUNK + 1], recorded.canvas, recorded.task, fps=recipe.timebase.model_fps
        )
        request = processor.to_request(inputs)
        [latents] = vae.encode([inputs["pixel_values"]])
        _, rows, columns = request.video_shape
        found = store[index]
        torch.testing.assert_close(found.video_CTHW, latents[:, :, :rows, :columns], atol=5e-3, rtol=2e-3)
        torch.testing.assert_close(
            found.action_RA, processor.cond_action(recorded.actions[start : start + CHUNK]), atol=0, rtol=0
        )
        assert found.request.text_ids == request.text_ids
        assert found.request.video_shape == request.video_shape
        assert found.request.fps == request.fps
        assert found.request.domain_id == request.domain_id


def test_what_is_drawn_follows_from_the_generator(store):
    drawn, again = (store.draw(10, torch.Generator().manual_seed(0)) for _ in range(2))
    assert len(drawn) == 10
    assert all(torch.equal(one.video_CTHW, other.video_CTHW) for one, other in zip(drawn, again, strict=True))


def test_windows_that_begin_an_episode_are_drawn_more_often_than_they_are_there(read, parts, tmp_path):
    (recipe, [longest, _]), (tokenizer, vae) = read, parts
    path = tmp_path / "windows.safetensors"
    write_windows(path, [longest], recipe, tokenizer, vae, stride=1)
    store = WindowStore(path, recipe, tokenizer)
    assert [store[index].opens for index in range(4)] == [True, False, False, False]
    opens = [example.opens for example in store.draw(4000, torch.Generator().manual_seed(0))]
    assert sum(opens) / 4000 == pytest.approx(0.4, abs=0.03)


def test_pictures_of_several_sizes_are_refused(read, parts, tmp_path):
    (recipe, episodes), (tokenizer, vae) = read, parts
    canvas = replace(episodes[0].canvas, content_height_px=32)
    other = Recorded(episodes[0].frames[:, :32], canvas, episodes[0].actions, "Do it.")
    with pytest.raises(DatasetError, match="one picture size"):
        write_windows(tmp_path / "windows", [*episodes, other], recipe, tokenizer, vae, stride=2)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_of_something_else_is_named(read, parts, tmp_path, content):
    path = tmp_path / "windows.safetensors"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"windows\.safetensors"):
        WindowStore(path, read[0], parts[0])

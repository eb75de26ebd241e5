"""One engine for all of these tests, and checkpoints that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def engine(tiny_checkpoint):
    """The tiny checkpoint in fp32 on the CPU, decoder included. Tests share it, so none may change it."""
    from pipeline.cosmos3.engine import Engine

    return Engine.from_pretrained(tiny_checkpoint, device="cpu", decode_video=True)


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint):
    from pipeline.cosmos3.prompt import PromptTokenizer

    return PromptTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture
def checkpoint_copy(tiny_checkpoint, tmp_path) -> Path:
    """A complete copy of the tiny checkpoint, this test's own."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny matrices gain nothing from threads, and lose much when other processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

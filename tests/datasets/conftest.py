"""Datasets made once per run; tests that damage one take a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dataset_factory
import pytest
from dataset_factory import Made

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("v3") / "dataset"
    return dataset_factory.make_v3(root, [23, 31, 17, 40, 29], per_file=3, codec="libx264", gop=12)


@pytest.fixture(scope="session")
def v3_av1(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("v3_av1") / "dataset"
    return dataset_factory.make_v3(root, [23, 31, 17], per_file=3, codec="libsvtav1")


@pytest.fixture(scope="session")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return dataset_factory.make_v2(tmp_path_factory.mktemp("v2") / "dataset", [33, 21, 40])


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Made], Made]:
    """A copy of a made dataset that a test may damage."""

    def copy(made: Made) -> Made:
        return replace(made, root=Path(shutil.copytree(made.root, tmp_path / "copy")))

    return copy


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real datasets are not at {SHARED_DATA}")
    return SHARED_DATA

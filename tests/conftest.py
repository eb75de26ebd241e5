"""What every room's tests share: a tiny checkpoint, and the real data where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import shell_environment  # noqa: F401 - taken before any test imports anything
import torch  # noqa: F401 - before decord, whose libraries make torch's convolutions crash when they come first

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A random checkpoint in the public layout, written once for the whole session."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real DROID and GR1 episodes and statistics, which live outside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA

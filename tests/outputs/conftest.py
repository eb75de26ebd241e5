"""What tests of outputs share: an output folder on a disk, and the same on an object store."""

from __future__ import annotations

import uuid

import pytest
from upath import UPath

from pipeline.storage import open_path


@pytest.fixture(params=["disk", "s3"])
def output_dir(request, tmp_path) -> UPath:
    """An output folder that is not there yet."""
    if request.param == "disk":
        return open_path(tmp_path / "out")
    return open_path(request.getfixturevalue("s3").url(f"outputs/{uuid.uuid4().hex}"))

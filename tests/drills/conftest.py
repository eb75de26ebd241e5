"""One real Ray for all drills: a head and, where a drill wants them, more nodes, each with processes of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill import SIXTY_FOUR, Drill
from stage_by_stage import run_without_ray

from pipeline.stages import on_ray  # isort: skip - before a drill imports Ray: it sets what Ray reads then

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A `ray.cluster_utils.Cluster`. Its slots are logical: the machine's cores are shared by all nodes."""
    # Under `uv run` Ray would else pack the checkout for every job, and take it from under workers that start late.
    assert not on_ray.ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS / "drills"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def undisturbed(tiny_checkpoint, shared_data, tmp_path_factory) -> Drill:
    """The labels of a run that nothing happened to, made without Ray."""
    drill = Drill(shared_data / "droid_videos", tiny_checkpoint, tmp_path_factory.mktemp("undisturbed"), SIXTY_FOUR)
    _, drill.labels = run_without_ray(drill.prepare())
    return drill

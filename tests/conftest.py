"""What every room's tests share: a tiny checkpoint, and the real data where it is there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import shell_environment  # noqa: F401 - taken before any test imports anything
import torch  # before decord, whose libraries make torch's convolutions crash when they come first

if TYPE_CHECKING:
    from s3_server import S3Server

    from pipeline.demo.choreography import Recording

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core each

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before xdist looks for its groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together, for they share fixtures; and so do all that need Ray, of which there is one.

    Those come first, because they take longest.
    """
    items.sort(key=lambda item: not _needs_ray(item))
    for item in items:
        group = "ray" if _needs_ray(item) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def _needs_ray(item: pytest.Item) -> bool:
    return not {"ray_of_this_session", "demo_run", "cluster"}.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """`write_tiny_checkpoint` with half the VAE's width: its decoder is most of what an engine does in tests."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    return functools.partial(write_tiny_checkpoint, vae_base_dim=4)


@pytest.fixture(scope="session")
def tiny_checkpoint(write_tiny, tmp_path_factory) -> Path:
    """A random checkpoint in the public layout, written once for the whole session."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def held_out_world(tmp_path_factory) -> tuple[Path, list[Recording]]:
    """Three held-out episodes of the demo's world: the dataset, and what was played in them."""
    from pipeline.demo.dataset import write_world_dataset
    from pipeline.demo.world import play_world

    root = write_world_dataset(tmp_path_factory.mktemp("world") / "dataset", seed=4, num_episodes=3, held_out=True)
    return root, play_world(4, 3, held_out=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real DROID and GR1 episodes and statistics, which live outside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server on loopback. This process finds it by its environment; others need `s3.environment` in theirs.

    It is shared by the whole session: tests use prefixes of their own.
    """
    import fsspec.config
    from s3_server import S3Server
    from s3fs import S3FileSystem

    server, before = S3Server(), dict(os.environ)
    os.environ.pop("AWS_PROFILE", None)
    os.environ.update(server.environment)
    fsspec.config.conf["s3"] = server.options  # else read from the environment, but only when it is imported
    S3FileSystem.clear_instance_cache()
    yield server
    os.environ.clear()
    os.environ.update(before)
    del fsspec.config.conf["s3"]
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def ray_of_this_session() -> Iterator[None]:
    """The one Ray of this process; a run that is given no cluster joins it."""
    from pipeline.config import RayConfig
    from pipeline.stages.on_ray import ray_session

    with ray_session(RayConfig()):
        yield

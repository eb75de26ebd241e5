"""How many actors a machine gets: never more than it has, and always one loader beside the engines."""

from __future__ import annotations

import pytest

from pipeline.config import RayConfig
from pipeline.errors import ConfigError
from pipeline.stages.fit import LOADERS_PER_ENGINE, Fit, fit_to_machine

CORES = (1, 2, 4, 64)
GPUS = (0, 1, 8)
RAY_UNITS = 10_000  # Ray counts resources in ten-thousandths and drops what is smaller (tried with 2.60)
RECORD_UNITS = RAY_UNITS // 10


def fit(cores: float, gpus: float, device: str = "auto", **config) -> Fit:
    resources = {"CPU": float(cores), "memory": 1e9} | ({"GPU": float(gpus)} if gpus else {})
    return fit_to_machine(RayConfig(**config), device, resources)


def units_asked(found: Fit) -> int:
    """What Ray adds up once all actors are placed."""
    return (
        found.num_engines * int(found.cpus_per_engine * RAY_UNITS)
        + found.num_loaders * int(found.cpus_per_loader * RAY_UNITS)
        + RECORD_UNITS
    )


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_every_machine_is_fitted_within_its_means(cores, gpus, device):
    if device == "cuda" and not gpus:
        with pytest.raises(ConfigError, match=r"--engine\.device cpu"):
            fit(cores, gpus, device)
        return
    found = fit(cores, gpus, device)
    on_gpu = device != "cpu" and gpus > 0
    assert found.num_engines == (gpus if on_gpu else 1)
    assert found.gpus_per_engine == (1.0 if on_gpu else 0.0)
    assert found.num_engines * found.gpus_per_engine <= gpus
    assert units_asked(found) <= cores * RAY_UNITS
    assert found.num_cpus <= cores + 1e-6
    assert found.num_loaders >= 1
    assert 0 < found.cpus_per_loader <= 1
    assert 0 < found.cpus_per_engine <= 1


def test_loaders_are_as_many_as_the_engines_need_or_the_cores_allow():
    assert fit(64, 8).num_loaders == 8 * LOADERS_PER_ENGINE
    assert fit(64, 0).num_loaders == LOADERS_PER_ENGINE
    assert fit(12, 8).num_loaders == 5, "eight engines take six cores, and recording a tenth of one"


@pytest.mark.parametrize("cores", CORES)
def test_loaders_keep_a_share_of_the_cores_on_the_cpu(cores):
    """A pool that asks for every core leaves none for the stage before it, and the run would hang."""
    found = fit(cores, 0)
    assert found.num_engines * found.cpus_per_engine <= cores / 2 or cores >= 2
    assert found.num_loaders * found.cpus_per_loader >= 0.4


def test_what_is_set_is_taken():
    found = fit(64, 8, num_engines=3, num_loaders=5)
    assert (found.num_engines, found.num_loaders, found.cpus_per_loader) == (3, 5, 1.0)
    assert fit(4, 0, num_engines=2).num_engines == 2


@pytest.mark.parametrize(
    ("cores", "gpus", "device", "config", "remedy"),
    [
        (8, 1, "auto", {"num_engines": 2}, "--ray.num_engines"),
        (8, 1, "cuda", {"num_engines": 2}, "--engine.device cpu"),
        (8, 0, "cuda", {}, "--engine.device cpu"),
        (0, 0, "auto", {}, "Ray has 0"),
        (0.1, 0, "auto", {}, "Ray has 0.1"),
        (0, 8, "auto", {}, "Ray has 0"),
    ],
)
def test_what_can_never_be_scheduled_is_refused_with_the_remedy(cores, gpus, device, config, remedy):
    with pytest.raises(ConfigError, match=remedy) as raised:
        fit(cores, gpus, device, **config)
    assert "Lower --ray.num_engines" in str(raised.value)


def test_no_setting_asks_for_more_than_there_is():
    """An actor too many is never scheduled, and the run would wait for it without a word."""
    asked_too_much = []
    for cores in (1, 2, 3, 8):
        for num_engines in (None, 1, 2, 3, 6, 7):
            for num_loaders in (None, 1, 3, 7, 64):
                try:
                    found = fit(cores, 0, num_engines=num_engines, num_loaders=num_loaders)
                except ConfigError:
                    continue
                if units_asked(found) > cores * RAY_UNITS:
                    asked_too_much.append((cores, num_engines, num_loaders, units_asked(found)))
    assert asked_too_much == []

"""How many actors of each kind a machine or a cluster can hold, and what each of them takes. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import RayConfig
from pipeline.errors import ConfigError

# One core decodes tens of windows a second and a GPU answers a few, so two loaders keep an engine fed.
LOADERS_PER_ENGINE = 2
RECORD_CPUS = 0.1


@dataclass(frozen=True)
class Fit:
    """How many actors of each kind, and what each of them takes."""

    num_engines: int
    gpus_per_engine: float
    cpus_per_engine: float
    num_loaders: int
    cpus_per_loader: float

    @property
    def num_cpus(self) -> float:
        return self.num_engines * self.cpus_per_engine + self.num_loaders * self.cpus_per_loader + RECORD_CPUS


def fit_to_machine(config: RayConfig, device: str, resources: dict[str, float]) -> Fit:
    """Actors for Ray's `resources`, one engine for each GPU or each unit of `engine_resource`.

    Raises ConfigError, with the remedy, for what can never be scheduled.

    On the CPU one engine takes half the cores' slots, whatever it computes with, because a pool that asks for every
    core leaves none for the stage before it, and the run would hang.
    """
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    on_gpu = device == "cuda" or (device == "auto" and num_gpus >= 1)
    places = resources.get(config.engine_resource, 0.0) if config.engine_resource else num_gpus
    if config.engine_resource and places < (config.num_engines or 1):
        raise ConfigError(
            f"{config.num_engines or 1} engines need a node each with the resource {config.engine_resource!r}, and Ray "
            f"has {places:g}. Start nodes with --resources '{{\"{config.engine_resource}\": 1}}', or leave out "
            "--ray.engine_resource."
        )
    has_places = on_gpu or config.engine_resource
    num_engines = config.num_engines or (max(1, int(min(places, num_gpus if on_gpu else places))) if has_places else 1)
    if on_gpu and num_engines > num_gpus:
        raise ConfigError(
            f"{num_engines} engines need a GPU each, and Ray has {num_gpus:g}. Lower --ray.num_engines, or use "
            "--engine.device cpu."
        )
    cpus_per_engine = min(1.0, num_cpus / 2 / num_engines)
    free = num_cpus - num_engines * cpus_per_engine - RECORD_CPUS
    num_loaders = config.num_loaders or max(1, min(int(free), LOADERS_PER_ENGINE * num_engines))
    fit = Fit(
        num_engines=num_engines,
        gpus_per_engine=1.0 if on_gpu else 0.0,
        cpus_per_engine=cpus_per_engine,
        num_loaders=num_loaders,
        cpus_per_loader=max(0.0, min(1.0, free / num_loaders)),
    )
    if free <= 0 or fit.num_cpus > num_cpus + 1e-6:
        raise ConfigError(
            f"{num_engines} engines and {num_loaders} loaders need {fit.num_cpus:.1f} cores, and Ray has {num_cpus:g}. "
            "Lower --ray.num_engines or --ray.num_loaders."
        )
    return fit

"""The road: load → infer → record, strung on Ray Data. The only file that imports Ray.

One segment is one row and one block, so that what fails is one segment; and what travels between the stages counts
against a byte budget, so that decoding never runs away from the model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

# Must be set before Ray is imported. Under `uv run` Ray would build a virtual environment of several GB for every
# worker; a local run's workers take the driver's interpreter instead, and on a cluster the job's own runtime
# environment decides.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Threads that wait for others of the same matrix product sleep instead of spinning: on the CPU the stages share cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray's own processes write to the user's terminal otherwise; their log files are kept.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from pipeline.config import RayConfig
from pipeline.errors import ConfigError, StageError
from pipeline.plan import Segment
from pipeline.recipe import Recipe
from pipeline.stages.engine_stage import EngineSettings
from pipeline.stages.stage import Road, Row

# A call that dies with its process is tried this often again before its segment counts as lost. Without a bound Ray
# retries a poisonous row for ever.
MAX_TASK_RETRIES = 2
# One core decodes tens of windows a second and a GPU answers a few, so two loaders keep an engine fed.
LOADERS_PER_ENGINE = 2
_RECORD_CPUS = 0.1


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
        return self.num_engines * self.cpus_per_engine + self.num_loaders * self.cpus_per_loader + _RECORD_CPUS


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Ray's C++ core announces its log level on file descriptor 2; errors of `ray.init` are exceptions all the same."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextlib.contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Joins the cluster that is given or running, or starts one of this run's own and ends it afterwards."""
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    own = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
    try:
        with _silenced_stderr():
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"No Ray cluster answers at {address!r} ({error}). Start one, or leave out --ray.address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def fit_to_machine(config: RayConfig, device: str, resources: dict[str, float]) -> Fit:
    """Actors for Ray's `resources`. Raises ConfigError, with the remedy, for what can never be scheduled.

    On the CPU one engine takes half the cores' slots, whatever it computes with, because a pool that asks for every
    core leaves none for the stage before it, and the run would hang.
    """
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    on_gpu = device == "cuda" or (device == "auto" and num_gpus >= 1)
    num_engines = config.num_engines or (max(1, int(num_gpus)) if on_gpu else 1)
    if on_gpu and num_engines > num_gpus:
        raise ConfigError(
            f"{num_engines} engines need a GPU each, and Ray has {num_gpus:g}. Lower --ray.num_engines, or use "
            "--engine.device cpu."
        )
    cpus_per_engine = min(1.0, num_cpus / 2 / num_engines)
    free = num_cpus - num_engines * cpus_per_engine - _RECORD_CPUS
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


def stream(
    segments: Sequence[Segment],
    recipe: Recipe,
    road: Road,
    *,
    settings: EngineSettings,
    config: RayConfig,
) -> Iterator[Row]:
    """Sends the segments down the road and yields a status row for each that came to an end, in any order.

    A segment whose process died too often yields nothing: whoever counts has to hold the plan against what came.
    Raises StageError when a stage cannot be set up.
    """
    resources = ray.cluster_resources()
    fit = fit_to_machine(config, settings.device, resources)
    settings = _settle_device(settings, fit, resources, loads_all_along=not road.infer[0].decodes_video)
    _configure(config)
    (load, load_arguments), (infer, infer_arguments), (record, record_arguments) = road.load, road.infer, road.record
    rows = ray.data.from_items([segment.to_row() for segment in segments], override_num_blocks=len(segments))
    retries = {"max_task_retries": MAX_TASK_RETRIES}
    statuses = (
        rows.map(
            load,
            fn_constructor_args=load_arguments,
            compute=ActorPoolStrategy(size=fit.num_loaders),
            num_cpus=fit.cpus_per_loader,
            **retries,
        )
        .map(
            infer,
            fn_constructor_args=(recipe, settings, *infer_arguments),
            compute=ActorPoolStrategy(
                size=fit.num_engines,
                max_tasks_in_flight_per_actor=2 * infer.segments_at_once,
                max_concurrent_calls_per_actor=infer.segments_at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=fit.cpus_per_engine,
            num_gpus=fit.gpus_per_engine,
            **retries,
        )
        .map(
            record,
            fn_constructor_args=record_arguments,
            compute=ActorPoolStrategy(size=1),
            num_cpus=_RECORD_CPUS,
            **retries,
        )
    )
    try:
        yield from statuses.iter_rows()
    except ray.exceptions.RayError as error:
        last_words = str(error).strip().splitlines()[-1]
        raise StageError(
            f"Ray gave up on a stage: {last_words} What was recorded is kept; mend this and run the same command again."
        ) from error


def _settle_device(
    settings: EngineSettings, fit: Fit, resources: dict[str, float], *, loads_all_along: bool
) -> EngineSettings:
    """The device that the engines will find, and on the CPU how many cores they compute with."""
    if fit.gpus_per_engine:
        return replace(settings, device="cuda")
    # A thread that has to share its core makes all others of a matrix product wait, so loaders that are always busy
    # keep theirs. Where video is drawn, what they load lasts for long.
    kept = fit.num_loaders * fit.cpus_per_loader if loads_all_along else 0
    return replace(settings, device="cpu", num_threads=max(1, int((resources.get("CPU", 1) - kept) / fit.num_engines)))


def _configure(config: RayConfig) -> None:
    """One row per block, losses counted by us, Ray's chatter off the terminal."""
    context = DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=config.memory_budget_mib * 1024**2
    )
    for name in ("ray", *(name for name in logging.root.manager.loggerDict if name.startswith("ray."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", category=UserWarning)
    # `max_task_retries` has no named parameter yet in this Ray, and without it a poisonous row is retried for ever.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")

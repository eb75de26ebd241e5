"""The road: load → infer → record, strung on Ray Data.

One segment is one row and one block, so that what fails is one segment; and what travels between the stages counts
against a byte budget, so that decoding never runs away from the model. What does not come back, because a process died
with it in hand, is tried again by Ray a few times, and then runs alone in the ward.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

# Must be set before Ray is imported. Under `uv run` Ray would build a virtual environment of several GB for every
# worker; a local run's workers take the driver's interpreter instead, and on a cluster the job's own runtime
# environment decides.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Nothing is sent anywhere that was not asked for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Threads that wait for others of the same matrix product sleep instead of spinning: on the CPU the stages share cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray's own processes write to the user's terminal otherwise; their log files are kept.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import RayConfig
from pipeline.errors import ConfigError, StageError
from pipeline.plan import Segment
from pipeline.recipe import Recipe
from pipeline.stages.engine_stage import EngineSettings
from pipeline.stages.fit import RECORD_CPUS, Fit, fit_to_machine
from pipeline.stages.metrics import StageMetrics
from pipeline.stages.pump import END, Pump
from pipeline.stages.register import Attendance, Register
from pipeline.stages.stage import Road, Row
from pipeline.stages.ward import Death
from pipeline.stages.wards import Wards
from pipeline.stages.watched import watched
from pipeline.stopping import Stop

# A call that dies with its process is tried this often again before its segment has to run alone. Without a bound Ray
# retries a poisonous row for ever.
MAX_TASK_RETRIES = 2
# Ray keeps a block of every segment from the start, at about a millisecond each. A longer plan goes in waves of this
# many: hours of work, after which the engines are loaded once more.
SEGMENTS_PER_WAVE = 20_000
# So many processes may die one after the other without a single segment done, besides one for each actor: three for a
# segment that kills whatever touches it, and several such side by side. More, and it is not the segments.
DEATHS_WITHOUT_PROGRESS = 20
_TICK_S = 0.5
_LOOK_EVERY_S = 2.0

Watch = Callable[[Attendance], None]


@dataclass(frozen=True)
class Errand:
    """What a run wants done, and how."""

    recipe: Recipe
    road: Road
    settings: EngineSettings
    config: RayConfig
    stop: Stop
    watch: Watch = lambda attendance: None  # called every two seconds

    @property
    def engine_resources(self) -> dict[str, float]:
        """What an engine takes besides cores and a GPU."""
        return {self.config.engine_resource: 1.0} if self.config.engine_resource else {}


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
    # Its dashboard is left out; a cluster's own is the affair of whoever started it.
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


def stream(segments: Sequence[Segment], errand: Errand) -> Iterator[Row | None]:
    """Sends the segments down the road and yields a status row for each that came to an end, in any order.

    Yields None now and then when nothing came, so that whoever iterates can look after other things. A segment that
    killed its process also when it was alone comes with `death` (a `Death`) and `attempts`. Once `errand.stop` is
    requested, what is in hand is finished as far as the grace period allows, and the rest yields nothing or rows of
    type `Dropped`. Raises StageError when a stage cannot be set up, or dies again and again whatever it is given.
    """
    resources = ray.cluster_resources()
    fit = fit_to_machine(errand.config, errand.settings.device, resources)
    loads_all_along = not errand.road.infer[0].decodes_video
    settings = _settle_device(errand.settings, fit, resources, loads_all_along=loads_all_along)
    infer, arguments = errand.road.infer
    errand = replace(errand, road=replace(errand.road, infer=(infer, (errand.recipe, settings, *arguments))))
    _configure(errand.config)
    names = [stage.name for stage, _ in errand.road.stages]
    actors = dict(zip(names, (fit.num_loaders, fit.num_engines, 1), strict=True))
    register = ray.remote(Register).options(num_cpus=0, scheduling_strategy=_beside_the_driver()).remote(actors)
    for first in range(0, len(segments), SEGMENTS_PER_WAVE):
        wave = segments[first : first + SEGMENTS_PER_WAVE]
        heard_of = set()
        for status in _in_company(_string(wave, errand, fit, register), errand, register):
            if status is not None:
                heard_of.add(status["key"])
            yield status
        if errand.stop.is_requested:
            return
        yield from _alone([segment for segment in wave if segment.key not in heard_of], errand, fit, register)


def _beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """Ray places an actor that takes nothing anywhere, also on a node that is lost later, and the run with it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _string(segments: Sequence[Segment], errand: Errand, fit: Fit, register: ray.actor.ActorHandle) -> Dataset:
    """The three stages as one lazy dataset of status rows."""
    rows = ray.data.from_items([segment.to_row() for segment in segments], override_num_blocks=len(segments))
    retries = {"max_task_retries": MAX_TASK_RETRIES}
    of_this_run = (register, errand.recipe.run_id, errand.recipe.mode)
    infer = errand.road.infer[0]
    return (
        rows.map(
            watched(errand.road.load[0]),
            fn_constructor_args=(*errand.road.load, *of_this_run),
            compute=ActorPoolStrategy(size=fit.num_loaders),
            num_cpus=fit.cpus_per_loader,
            **retries,
        )
        .map(
            watched(infer),
            fn_constructor_args=(*errand.road.infer, *of_this_run),
            compute=ActorPoolStrategy(
                size=fit.num_engines,
                max_tasks_in_flight_per_actor=2 * infer.segments_at_once,
                max_concurrent_calls_per_actor=infer.segments_at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=fit.cpus_per_engine,
            num_gpus=fit.gpus_per_engine,
            resources=errand.engine_resources,
            **retries,
        )
        .map(
            watched(errand.road.record[0]),
            fn_constructor_args=(*errand.road.record, *of_this_run),
            compute=ActorPoolStrategy(size=1),
            num_cpus=RECORD_CPUS,
            **retries,
        )
    )


def _in_company(statuses: Dataset, errand: Errand, register: ray.actor.ActorHandle) -> Iterator[Row | None]:
    """Status rows as they come. Ray Data runs in a thread, so that signals and standstills are noticed here."""
    pump = Pump(statuses)
    guard = _Guard(errand, register)
    try:
        while True:
            try:
                item = pump.items.get(timeout=_TICK_S)
            except queue.Empty:
                item = None
            if item is END:
                guard.look()
                return
            if isinstance(item, BaseException):
                raise _ray_gave_up(item) from item
            yield item
            if guard.may_leave():
                return
    finally:
        pump.leave()


class _Guard:
    """Looks at the register every two seconds: is anybody still at work, and does anything come of it?"""

    def __init__(self, errand: Errand, register: ray.actor.ActorHandle) -> None:
        self._errand, self._register = errand, register
        self._looked_s = time.monotonic()
        self._was_told = False
        self._num_done_then, self._births_then = -1, 0

    def may_leave(self) -> bool:
        """Whether the run is to stop and nothing is left in hand, or no time. Raises StageError in a standstill."""
        stop = self._errand.stop
        if stop.is_requested and not self._was_told:
            self._was_told = True
            self._register.stop.remote()
        if stop.is_overdue:
            return True
        if time.monotonic() - self._looked_s < (_TICK_S if self._was_told else _LOOK_EVERY_S):
            return False
        return self.look().is_idle and self._was_told

    def look(self) -> Attendance:
        self._looked_s = time.monotonic()
        attendance = ray.get(self._register.attendance.remote())
        self._errand.watch(attendance)
        self._count_deaths(attendance)
        return attendance

    def _count_deaths(self, attendance: Attendance) -> None:
        births = sum(attendance.births.values())
        if attendance.num_done > self._num_done_then:
            self._num_done_then, self._births_then = attendance.num_done, births
        died = births - self._births_then
        if died > DEATHS_WITHOUT_PROGRESS + sum(attendance.actors.values()):
            raise StageError(
                f"{died} processes died one after the other and not a single segment came to an end meanwhile. It is "
                "not the segments: look at Ray's logs, the memory of the machine and its GPU. What was recorded is "
                "kept; mend this and run the same command again."
            )


def _ray_gave_up(error: BaseException) -> BaseException:
    if not isinstance(error, ray.exceptions.RayError):
        return error
    last_words = str(error).strip().splitlines()[-1]
    return StageError(
        f"Ray gave up on a stage: {last_words} What was recorded is kept; mend this and run the same command again."
    )


def _alone(
    segments: Sequence[Segment], errand: Errand, fit: Fit, register: ray.actor.ActorHandle
) -> Iterator[Row | None]:
    """What did not come back in company, one at a time in each ward, so that nobody dies of another's segment."""
    waiting = list(reversed(segments))
    metrics = StageMetrics(errand.road.record[0].name, errand.recipe.run_id, job_name=errand.recipe.mode)
    wards = Wards(
        errand.road,
        min(fit.num_engines, len(waiting)),
        num_cpus=fit.cpus_per_engine,
        num_gpus=fit.gpus_per_engine,
        resources=errand.engine_resources,
    )
    losses: Counter[str] = Counter()
    while (waiting or wards.are_at_work) and not errand.stop.is_overdue:
        while wards.have_room and waiting and not errand.stop.is_requested:
            wards.treat(waiting.pop())
        if errand.stop.is_requested and not wards.are_at_work:
            return
        answers = wards.answers(timeout_s=_TICK_S)
        if not answers:
            yield None
        for segment, answer in answers:
            if isinstance(answer, ray.exceptions.RayError):
                # The ward itself is gone, with its node or by a hand from outside: that says nothing of the segment.
                losses[segment.key] += 1
                if losses[segment.key] <= MAX_TASK_RETRIES:
                    waiting.append(segment)
                    continue
                answer = Death("", None, str(answer).strip())
            if isinstance(answer, Death):
                answer = _died(segment, answer, register)
                metrics.quarantined(answer["error_type"])
            else:
                metrics.observe(answer["record_s"], len(segment.window_starts), answer["error_type"])
            yield answer


def _died(segment: Segment, death: Death, register: ray.actor.ActorHandle) -> Row:
    return segment.to_row() | {
        "error_type": "ProcessDied",
        "error": f"Its process died, also when the segment ran alone: {death}",
        "death": death,
        "attempts": ray.get(register.deaths.remote(segment.key)) + 1,
    }


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

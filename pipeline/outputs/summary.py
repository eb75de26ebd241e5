"""The end of a run: every planned segment accounted for, how fast it went, and what the results look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from pipeline.datasets import RobotVideoDataset
from pipeline.limiting_stage import limiting_stage
from pipeline.outputs.accounting import Account
from pipeline.outputs.failures import Outcome
from pipeline.outputs.manifest import write_json
from pipeline.plan import Plan, Segment, count_windows
from pipeline.recipe import Recipe
from pipeline.stopping import EXIT_STOPPED

STAGES = ("load", "infer", "record")
_FAILURES_SHOWN = 10


class Checks(Protocol):
    """What was seen of a run's results while they were merged."""

    def to_json(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]:
        """The same for a terminal, each line beginning with a word in a column of eleven."""

    def warnings(self) -> list[str]:
        """Loud where the results cannot be what they should."""


@dataclass
class Tally:
    """What has come to an end so far, of what this run set out to do."""

    segments: Sequence[Segment]
    windows_done: int = 0
    windows_lost: int = 0  # of segments that failed or were quarantined
    num_quarantined: int = 0
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # key → how it failed
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # that were worked
    engine_busy_s: float = 0.0  # of the engines' own steps
    actors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 1))
    restarts: int = 0  # processes that had to be replaced
    wall_s: float = 0.0
    stopped_by: str = ""  # why the run ended before every segment had come to an end
    signal: str = ""  # the signal that stopped it, where it was one

    def __post_init__(self) -> None:
        self._windows = {segment.key: len(segment.window_starts) for segment in self.segments}

    @property
    def num_windows(self) -> int:
        return sum(self._windows.values())

    def add(self, status: Mapping[str, Any]) -> None:
        """Counts one status row that the last stage handed on; `add_outcome` tells what is known of a failed one."""
        for stage in STAGES:
            self.seconds[stage] += float(status.get(f"{stage}_s", 0.0))
        if not status["error"]:
            self.windows_done += len(status["window_starts"])

    def add_outcome(self, outcome: Outcome) -> None:
        self.outcomes[outcome.key] = outcome
        self.windows_lost += self._windows[outcome.key]
        self.num_quarantined += outcome.kind == "quarantined"


@dataclass(frozen=True)
class Summary:
    """`summary.json`, and the same in words."""

    run_id: str
    segments: dict[str, int]  # planned = recorded + failed + quarantined + unfinished
    episodes: int
    windows: dict[str, int]
    windows_per_s: float | None
    wall_s: float
    seconds_by_stage: dict[str, float]
    restarts: int
    limit: str
    timebase: dict[str, float]
    results: dict[str, Any]
    result_lines: list[str]
    empty_tasks: int
    failures: list[dict[str, Any]]
    problems: list[str]
    stopped_by: str
    signal: str
    warnings: list[str]

    @classmethod
    def of(
        cls,
        dataset: RobotVideoDataset,
        recipe: Recipe,
        plan: Plan,
        tally: Tally,
        checks: Checks,
        *,
        account: Account,
        outcomes: Sequence[Outcome],
        max_failed_fraction: float = 0.0,
    ) -> Summary:
        """`account` holds the plan against what is on disk; `outcomes` are those of the plan, earlier runs' too."""
        busy = tally.seconds | ({"infer": tally.engine_busy_s} if tally.engine_busy_s else {})
        left = {segment.key for segment in tally.segments}
        unfinished = set(account.unfinished_keys)
        counts = {"planned": account.planned, "recorded": account.recorded, "failed": account.failed}
        counts |= {"quarantined": account.quarantined, "unfinished": account.unfinished}
        done_now = left - unfinished - {outcome.key for outcome in outcomes}
        return cls(
            run_id=recipe.run_id,
            segments=counts | {"recorded_earlier": account.recorded - len(done_now)},
            episodes=plan.num_episodes,
            windows={
                "planned": plan.num_windows,
                "done_now": count_windows(segment for segment in tally.segments if segment.key in done_now),
            },
            windows_per_s=tally.windows_done / tally.wall_s if tally.windows_done and tally.wall_s else None,
            wall_s=tally.wall_s,
            seconds_by_stage=dict(tally.seconds),
            restarts=tally.restarts,
            limit=limiting_stage(busy, tally.actors, tally.wall_s),
            timebase={
                "dataset_fps": recipe.timebase.dataset_fps,
                "model_fps": recipe.timebase.model_fps,
                "frame_stride": recipe.timebase.stride,
            },
            results=checks.to_json(),
            result_lines=checks.lines(),
            empty_tasks=plan.num_empty_tasks,
            failures=[asdict(outcome) for outcome in outcomes],
            problems=account.problems(max_failed_fraction),
            stopped_by=tally.stopped_by,
            signal=tally.signal,
            warnings=[*dataset.warnings, *_task_warning(plan), *checks.warnings()],
        )

    @property
    def is_complete(self) -> bool:
        """planned = recorded + failed + quarantined, each once, and no more failed than is tolerated."""
        return not self.problems and not self.stopped_by

    @property
    def exit_code(self) -> int:
        """0: complete; 3: stopped by a signal, and the same command goes on; 1: anything else."""
        if self.signal:
            return EXIT_STOPPED
        return 0 if self.is_complete else 1

    def render(self) -> str:
        """The summary for a terminal."""
        counts, base = self.segments, self.timebase
        rate = f"{self.windows_per_s:.2f} windows/s" if self.windows_per_s else "nothing was done"
        if counts["recorded_earlier"] == counts["planned"]:
            rate = "nothing was left to do"
        spent = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds_by_stage.items())
        unfinished = f" + {counts['unfinished']} unfinished" if counts["unfinished"] else ""
        lines = [
            f"segments   {counts['planned']} planned = {counts['recorded']} recorded + {counts['failed']} failed + "
            f"{counts['quarantined']} quarantined{unfinished}  ({counts['recorded_earlier']} were there already)",
            f"windows    {self.windows['done_now']} done now of {self.windows['planned']} in {self.episodes} "
            f"episodes, {rate}",
            f"timebase   dataset {base['dataset_fps']:g} fps, model {base['model_fps']:g} fps, "
            f"{_every(int(base['frame_stride']))}",
            f"time       {self.wall_s:.1f} s; summed over segments: {spent}",
            f"limit      {self.limit}",
            *self.result_lines,
        ]
        lines += [f"RESTARTED  {self.restarts} processes died and were replaced."] if self.restarts else []
        lines += [f"STOPPED    {self.stopped_by}"] if self.stopped_by else []
        lines += [f"WARNING    {warning}" for warning in self.warnings]
        lines += [f"INCOMPLETE {problem}" for problem in self.problems]
        return "\n".join([*lines, *self._render_failures()])

    def _render_failures(self) -> list[str]:
        """One line per distinct error."""
        episodes: dict[str, list[int]] = defaultdict(list)
        for failure in self.failures:
            episodes[f"{failure['error_type']}: {failure['error']}"].append(failure["episode_index"])
        lines = [f"FAILED     {_episodes(indexes)}: {error}" for error, indexes in episodes.items()]
        more = len(lines) - _FAILURES_SHOWN
        told = lines[:_FAILURES_SHOWN] + (
            [f"FAILED     … and {more} more errors: see summary.json"] if more > 0 else []
        )
        return told + (["           --retry_failed runs these again, and no others."] if told else [])


def write_summary(output_dir: Path | UPath, summary: Summary) -> None:
    """`summary.json` is the newest run's; one of each recipe stays under `summaries/`."""
    told = {name: value for name, value in asdict(summary).items() if name != "result_lines"}
    write_json(output_dir / "summaries" / f"{summary.run_id}.json", told)
    write_json(output_dir / "summary.json", told)


class NotMerged:
    """In place of the results' checks where a run was stopped before its records were merged."""

    def to_json(self) -> dict[str, Any]:
        return {}

    def lines(self) -> list[str]:
        return ["results    not merged: the same command goes on from here"]

    def warnings(self) -> list[str]:
        return []


def _episodes(indexes: Sequence[int]) -> str:
    distinct = sorted(set(indexes))
    shown = ", ".join(str(index) for index in distinct[:5])
    return (
        f"episode {shown}" if len(distinct) == 1 else f"{len(distinct)} episodes ({shown}{', …' * (len(distinct) > 5)})"
    )


def _task_warning(plan: Plan) -> list[str]:
    if not plan.num_empty_tasks:
        return []
    return [f"{plan.num_empty_tasks} episodes have an empty task text; the model was asked with a prompt without one."]


def _every(stride: int) -> str:
    return "every frame" if stride == 1 else f"one frame in {stride}"

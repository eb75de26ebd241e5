"""The end of a run: every planned segment accounted for, how fast it went, and what the results look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.datasets import RobotVideoDataset
from pipeline.outputs.manifest import write_json
from pipeline.plan import Plan, Segment, count_windows
from pipeline.recipe import Recipe

STAGES = ("load", "infer", "record")
_LOST = (
    "ProcessDied",
    "Nothing came back for this segment: the process that worked on it died, also when it was tried again. Its memory "
    "may have run out: lower --max_segment_mib or --engine.batch_size, or look into Ray's logs.",
)
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
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)  # key → (error type, error)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wall_s: float = 0.0
    stopped_by: str = ""  # why the run ended before every segment had come to an end

    @property
    def num_windows(self) -> int:
        return count_windows(self.segments)

    def add(self, status: Mapping[str, Any]) -> None:
        """Counts one status row that the last stage handed on."""
        for stage in STAGES:
            self.seconds[stage] += float(status[f"{stage}_s"])
        if status["error"]:
            self.failures[status["key"]] = (status["error_type"], status["error"])
        else:
            self.windows_done += len(status["window_starts"])


@dataclass(frozen=True)
class Summary:
    """`summary.json`, and the same in words."""

    run_id: str
    segments: dict[str, int]  # planned = recorded + failed
    episodes: int
    windows: dict[str, int]
    windows_per_s: float | None
    wall_s: float
    seconds_by_stage: dict[str, float]
    timebase: dict[str, float]
    results: dict[str, Any]
    result_lines: list[str]
    empty_tasks: int
    failures: list[dict[str, Any]]
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
        recorded: set[str],
    ) -> Summary:
        """Holds the plan against the records on disk: whatever has none has failed, with or without a word."""
        failed = [segment for segment in plan.segments if segment.key not in recorded]
        done_now = [segment for segment in tally.segments if segment.key in recorded]
        return cls(
            run_id=recipe.run_id,
            segments={
                "planned": len(plan.segments),
                "recorded": len(plan.segments) - len(failed),
                "failed": len(failed),
                "recorded_earlier": len(plan.segments) - len(tally.segments),
            },
            episodes=plan.num_episodes,
            windows={"planned": plan.num_windows, "done_now": count_windows(done_now)},
            windows_per_s=tally.windows_done / tally.wall_s if tally.windows_done and tally.wall_s else None,
            wall_s=tally.wall_s,
            seconds_by_stage=dict(tally.seconds),
            timebase={
                "dataset_fps": recipe.timebase.dataset_fps,
                "model_fps": recipe.timebase.model_fps,
                "frame_stride": recipe.timebase.stride,
            },
            results=checks.to_json(),
            result_lines=checks.lines(),
            empty_tasks=plan.num_empty_tasks,
            failures=[_failure(segment, tally) for segment in failed],
            warnings=[*dataset.warnings, *_task_warning(plan), *checks.warnings()],
        )

    @property
    def is_complete(self) -> bool:
        counts = self.segments
        return counts["planned"] == counts["recorded"] and counts["failed"] == 0

    def render(self) -> str:
        """The summary for a terminal."""
        counts, base = self.segments, self.timebase
        nothing_left = counts["recorded_earlier"] == counts["planned"]
        rate = "nothing was left to do" if nothing_left else f"{self.windows_per_s or 0:.2f} windows/s"
        spent = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds_by_stage.items())
        lines = [
            f"segments   {counts['planned']} planned = {counts['recorded']} recorded + {counts['failed']} failed"
            f"  ({counts['recorded_earlier']} were there already)",
            f"windows    {self.windows['done_now']} done now of {self.windows['planned']} in {self.episodes} "
            f"episodes, {rate}",
            f"timebase   dataset {base['dataset_fps']:g} fps, model {base['model_fps']:g} fps, "
            f"{_every(int(base['frame_stride']))}",
            f"time       {self.wall_s:.1f} s; summed over actors: {spent}",
            *self.result_lines,
        ]
        lines += [f"WARNING    {warning}" for warning in self.warnings]
        return "\n".join([*lines, *self._render_failures()])

    def _render_failures(self) -> list[str]:
        """One line per distinct error."""
        episodes: dict[str, list[int]] = defaultdict(list)
        for failure in self.failures:
            episodes[f"{failure['error_type']}: {failure['error']}"].append(failure["episode_index"])
        lines = [f"FAILED     {_episodes(indexes)}: {error}" for error, indexes in episodes.items()]
        more = len(lines) - _FAILURES_SHOWN
        return lines[:_FAILURES_SHOWN] + (
            [f"FAILED     … and {more} more errors: see summary.json"] if more > 0 else []
        )


def write_summary(output_dir: Path, summary: Summary) -> None:
    told = {name: value for name, value in asdict(summary).items() if name != "result_lines"}
    write_json(output_dir / "summary.json", told)


def _failure(segment: Segment, tally: Tally) -> dict[str, Any]:
    unheard_of = ("StageError", tally.stopped_by) if tally.stopped_by else _LOST
    error_type, error = tally.failures.get(segment.key, unheard_of)
    return {
        "key": segment.key,
        "episode_index": segment.episode_index,
        "positions": [segment.label_start, segment.label_stop],
        "error_type": error_type,
        "error": error,
    }


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

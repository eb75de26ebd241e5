"""What is in an output folder, asked from outside: which runs, how complete each is, and whether one is going on.

Reads only, needs neither model nor dataset, and answers at once: `jobs/status.py` shows it, in the words of
`status_lines`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from upath import UPath

from pipeline.errors import OutputError
from pipeline.outputs.accounting import Account, account, check_rows, merged_run_id
from pipeline.outputs.failures import FailureStore, Outcome
from pipeline.outputs.holder import Machine, is_moment
from pipeline.outputs.lease import LeaseState, read_lease
from pipeline.outputs.plans import plan_keys, planned_at, read_plan
from pipeline.outputs.records import RecordStore
from pipeline.storage import list_files, open_path, read_bytes

_MERGED_FOLDERS = {"labels": "labels", "rollouts": "rollouts", "evaluation": "frames"}


@dataclass(frozen=True, kw_only=True)
class Live:
    """What a run that is going on last told of itself (`progress/<run_id>.json`)."""

    at: str  # ISO
    phase: str
    windows_done: int
    windows_total: int
    windows_per_s: float | None  # over the last minute
    eta_s: float | None
    segments_failed: int
    segments_quarantined: int


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One recipe's runs in a folder. Texts are as they were found: they need `printable`."""

    run_id: str
    kind: str  # "labels", "rollouts" or "evaluation"
    mode: str  # of the model
    checkpoint: str
    checkpoint_fingerprint: str
    dataset: str
    planned_at: str  # ISO; empty where there is no plan
    num_windows: int
    max_failed_fraction: float
    account: Account | None  # None where there is no plan to hold the records against
    failures: tuple[Outcome, ...]  # of the plan, those that no record has overtaken
    is_going_on: bool = False
    live: Live | None = None

    @property
    def is_complete(self) -> bool:
        return self.account is not None and self.account.is_complete(self.max_failed_fraction)

    @property
    def merged_folder(self) -> str:
        return _MERGED_FOLDERS[self.kind]

    def problems(self) -> list[str]:
        """What keeps it from being complete, in sentences."""
        if self.account is None:
            return ["there is no plan of this run to hold its records against: run its command again"]
        return self.account.problems(self.max_failed_fraction)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The folder's lease, as it looks from here."""

    state: LeaseState
    is_alive: bool
    why: str  # how that is known


@dataclass(frozen=True, kw_only=True)
class FolderStatus:
    """All runs of a folder, the newest first. What belongs to no plan is counted, never left out."""

    output_dir: str
    runs: tuple[RunStatus, ...]
    holding: Holding | None  # None where nobody holds it
    records_of_others: int
    failures_of_others: int

    @property
    def is_going_on(self) -> bool:
        return self.holding is not None and self.holding.is_alive

    @property
    def is_complete(self) -> bool:
        """Whether the newest run is."""
        return bool(self.runs) and self.runs[0].is_complete


class LeaseWatch:
    """Looks at a folder's lease again and again: what changes between two looks is alive, whatever a clock says."""

    def __init__(self, output_dir: str | Path | UPath, machine: Machine | None = None) -> None:
        self._output_dir, self._machine = output_dir, machine or Machine.here()
        self._seen: tuple[str, int] | None = None
        self._changed_s: float | None = None  # None until it was seen to change

    def look(self) -> Holding | None:
        """None where nobody holds the folder."""
        state = read_lease(self._output_dir)
        if state is None or state.released:
            return None
        match state.holder.sign_of_life(seen_from=self._machine):
            case "alive":
                return Holding(state=state, is_alive=True, why="its process is running")
            case "dead":
                return Holding(state=state, is_alive=False, why="its process is gone")
            case _:
                return self._from_afar(state)

    def _from_afar(self, state: LeaseState) -> Holding:
        now = time.monotonic()
        mark = (state.token, state.counter)
        if self._seen is not None and mark != self._seen:
            self._changed_s = now
        self._seen = mark
        if self._changed_s is not None:
            silent_s = now - self._changed_s
            return Holding(state=state, is_alive=silent_s < state.dead_after_s, why=f"renewed {silent_s:.0f} s ago")
        silent_s = seconds_since(state.renewed_at)
        why = f"renewed {silent_s:.0f} s ago by the clock of its own machine"
        return Holding(state=state, is_alive=silent_s < state.dead_after_s, why=why)


def read_status(output_dir: str | Path | UPath, watch: LeaseWatch | None = None) -> FolderStatus:
    """Raises OutputError for a folder that no run has written to, or where a run's own file is damaged."""
    folder = open_path(output_dir)
    # The lease comes first: once it is seen to be given back, all that follows is the run's last word.
    holding = (watch or LeaseWatch(folder)).look()
    manifests = _manifests(folder)
    recorded, failures = RecordStore(folder).keys(), FailureStore(folder)
    outcomes = failures.read(sorted(failures.keys()))
    if not manifests and not recorded and not outcomes and read_lease(folder) is None:
        raise OutputError(
            f"{output_dir}: expected the output folder of a run, with manifests/ and records/; found none there. "
            "Give the folder that was the run's --output_dir."
        )
    runs, known = [], set()
    for run_id, manifest in manifests.items():
        run, keys = _run(folder, run_id, manifest, recorded, outcomes)
        if holding is not None and holding.is_alive and holding.state.holder.run_id == run_id:
            run = replace(run, is_going_on=True, live=_live(folder, run_id))
        known.update(keys)
        runs.append(run)
    newest = _newest(folder)
    return FolderStatus(
        output_dir=str(output_dir),
        runs=tuple(sorted(runs, key=lambda run: (run.is_going_on, run.run_id == newest, run.planned_at), reverse=True)),
        holding=holding,
        records_of_others=len(recorded - known),
        failures_of_others=sum(outcome.key not in known for outcome in outcomes),
    )


def verify(output_dir: str | Path | UPath, run: RunStatus) -> list[str]:
    """What is wrong with a run and its merged rows, in sentences that name keys; empty where nothing is."""
    problems = run.problems()
    plan = read_plan(output_dir, run.run_id)
    if plan is None or run.is_going_on or not run.account.recorded:
        return problems
    folder = open_path(output_dir) / run.merged_folder
    try:
        owner = merged_run_id(folder)
        if owner != run.run_id:
            told = f"{run.merged_folder}/ holds the rows of another run, {owner}: run this one's command again"
            return [*problems, told]
        return problems + check_rows(plan, folder, RecordStore(output_dir).keys())
    except OutputError as error:
        return [*problems, str(error)]


def group_failures(outcomes: Sequence[Outcome]) -> list[tuple[str, str, list[Outcome]]]:
    """(kind, error type, outcomes), the most frequent first."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.episode_index, outcome.positions)):
        groups[outcome.kind, outcome.error_type].append(outcome)
    return sorted(((*name, members) for name, members in groups.items()), key=lambda group: (-len(group[2]), group[:2]))


def seconds_since(moment: str) -> float:
    """By this machine's clock; 0 for a moment that is still to come."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _run(
    folder: Path | UPath, run_id: str, manifest: Mapping[str, Any], recorded: set[str], outcomes: Sequence[Outcome]
) -> tuple[RunStatus, Sequence[str]]:
    """A run, and the keys of its plan."""
    plan = read_plan(folder, run_id)
    keys = [] if plan is None else plan_keys(plan)
    found = None if plan is None else account(keys, recorded, outcomes)
    planned = set(keys)
    recipe = _part(manifest, "recipe")
    kind = "evaluation" if "metrics_version" in recipe else "rollouts" if "chaining" in recipe else "labels"
    fraction = _part(manifest, "settings").get("max_failed_fraction")
    run = RunStatus(
        run_id=run_id,
        kind=kind,
        mode=str(recipe.get("mode", "")),
        checkpoint=str(_part(manifest, "checkpoint").get("id", "")),
        checkpoint_fingerprint=str(_part(manifest, "checkpoint").get("fingerprint", "")),
        dataset=str(_part(manifest, "dataset").get("root", "")),
        planned_at="" if plan is None else planned_at(plan),
        num_windows=0 if plan is None else int(pc.sum(plan["num_windows"]).as_py() or 0),
        max_failed_fraction=float(fraction) if isinstance(fraction, int | float) and _is_rate(fraction) else 0.0,
        account=found,
        failures=tuple(each for each in outcomes if each.key in planned and each.key not in recorded),
    )
    return run, keys


def _manifests(folder: Path | UPath) -> dict[str, Mapping[str, Any]]:
    """By run id."""
    names = [name for name in list_files(folder / "manifests") if name.endswith(".json") and not name.startswith(".")]
    return {name.removesuffix(".json"): _read_json(folder / "manifests" / name) for name in sorted(names)}


def _newest(folder: Path | UPath) -> str:
    try:
        return str(_read_json(folder / "manifest.json").get("run_id", ""))
    except FileNotFoundError:
        return ""


def _live(folder: Path | UPath, run_id: str) -> Live | None:
    """None where it was not told, or not in the way we know: it is a comfort, and no part of the account."""
    try:
        told = _read_json(folder / "progress" / f"{run_id}.json")
        live = Live(**{name: told[name] for name in Live.__dataclass_fields__})
    except (FileNotFoundError, OutputError, KeyError):
        return None
    counts = (live.windows_done, live.windows_total, live.segments_failed, live.segments_quarantined)
    rates = (live.windows_per_s, live.eta_s)
    is_known = all(type(count) is int for count in counts) and all(_is_rate(rate) for rate in rates)
    return live if is_known and is_moment(live.at) and isinstance(live.phase, str) else None


def _is_rate(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _read_json(path: Path | UPath) -> Mapping[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path}: expected JSON, found {error}. Run the command again: it writes it anew.") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected names and values, found a {type(found).__name__}.")
    return found


def _part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}


def to_json(status: FolderStatus) -> dict[str, Any]:
    """The same for programs. Counts instead of keys: a plan may have a million."""
    holding = status.holding
    return {
        "output_dir": status.output_dir,
        "is_complete": status.is_complete,
        "lease": holding and {**asdict(holding.state), "is_alive": holding.is_alive, "why": holding.why},
        "runs": [_run_to_json(run) for run in status.runs],
        "records_of_other_runs": status.records_of_others,
        "failures_of_other_runs": status.failures_of_others,
    }


def _run_to_json(run: RunStatus) -> dict[str, Any]:
    names = ("planned", "recorded", "failed", "quarantined", "unfinished")
    told = {name: value for name, value in vars(run).items() if name not in {"account", "failures", "live"}}
    return told | {
        "is_complete": run.is_complete,
        "segments": run.account and {name: getattr(run.account, name) for name in names},
        "live": run.live and asdict(run.live),
    }

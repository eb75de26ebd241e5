"""A folder's status in words, for a terminal. Whatever came from data is made printable here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.outputs.failures import Outcome
from pipeline.printable import printable
from pipeline.progress import duration
from pipeline.status import FolderStatus, Holding, Live, RunStatus, group_failures, seconds_since

_BAR_WIDTH = 30
_EPISODES_NAMED = 8
_FINGERPRINT_DIGITS = 8
_ERROR_CHARACTERS = 300


def status_lines(status: FolderStatus) -> list[str]:
    """All runs of the folder, the newest first."""
    lines = [f"{printable(status.output_dir)}: {_count(len(status.runs), 'run')}"]
    if status.holding is not None:
        lines.append(_holding_line(status.holding))
    for run in status.runs:
        lines += ["", *_run_lines(run, status.holding)]
    others = [(status.records_of_others, "record"), (status.failures_of_others, "failure")]
    if told := [_count(number, name) for number, name in others if number]:
        lines += ["", f"{' and '.join(told)} of other runs, or of episodes that no plan here asks for any more"]
    return lines


def failure_lines(outcomes: Sequence[Outcome], most: int) -> list[str]:
    """One entry for each kind and type of error, the most frequent first, `most` at most."""
    groups = group_failures(outcomes)
    lines = []
    for kind, error_type, members in groups[:most]:
        first = members[0]
        lines.append(f"  {kind:<12}{printable(error_type)}: {_count(len(members), 'segment')}, {_episodes(members)}")
        lines.append(f"    {_short(first.error)}")
        ending = first.signal or ("" if first.exit_code is None else f"exit code {first.exit_code}")
        if ending or first.last_words:
            attempts = _count(first.attempts, "attempt")
            lines.append(f"    {printable(ending) or 'no signal'} after {attempts}: {_short(first.last_words)}")
    if len(groups) > most:
        lines.append(f"  … and {_count(len(groups) - most, 'other type')} of error")
    return lines


def _run_lines(run: RunStatus, holding: Holding | None) -> list[str]:
    fingerprint = run.checkpoint_fingerprint[:_FINGERPRINT_DIGITS]
    kind = f"{run.kind} ({run.mode})" if run.kind == "rollouts" else run.kind
    lines = [
        f"{printable(run.run_id)}  {printable(kind)}  {_bar(run)}  {_state(run, holding)}",
        f"  checkpoint  {printable(run.checkpoint)} ({printable(fingerprint)})",
        f"  dataset     {printable(run.dataset)}",
    ]
    if run.account is None:
        return [*lines, "  segments    not known: there is no plan of this run"]
    found = run.account
    unfinished = f" + {found.unfinished} unfinished" if found.unfinished else ""
    tolerated = f", {run.max_failed_fraction:.2%} may fail" if run.max_failed_fraction else ""
    lines += [
        f"  planned     {printable(run.planned_at)}: {_count(found.planned, 'segment')}, "
        f"{_count(run.num_windows, 'window')}{tolerated}",
        f"  segments    {found.planned} planned = {found.recorded} recorded + {found.failed} failed + "
        f"{found.quarantined} quarantined{unfinished}",
    ]
    if found.planned_twice:
        lines.append(f"  WARNING     {_count(len(found.planned_twice), 'key')} planned more than once")
    return [*lines, f"  now         {_live_line(run.live)}"] if run.live else lines


def _state(run: RunStatus, holding: Holding | None) -> str:
    if run.is_going_on:
        return "going on"
    if run.is_complete:
        return "complete"
    if run.account is None:
        return "unknown"
    if run.account.is_conserved:
        return "ended, with more failures than are tolerated"
    is_dead = holding is not None and not holding.is_alive and holding.state.holder.run_id == run.run_id
    return "died; the same command goes on from here" if is_dead else "not finished"


def _holding_line(holding: Holding) -> str:
    holder = holding.state.holder
    who = f"{holder.describe()}, since {printable(holder.since)}; {holding.why}"
    return f"going on: {who}" if holding.is_alive else f"dead: {who}; the next run takes its lease"


def _live_line(live: Live) -> str:
    rate = "rate not known yet" if live.windows_per_s is None else f"{live.windows_per_s:.2f}/s in the last minute"
    left = "time left unknown" if live.eta_s is None else f"{duration(live.eta_s)} left"
    failed = f"{live.segments_failed} segments failed, {live.segments_quarantined} quarantined"
    windows = f"{printable(live.phase)}: {live.windows_done}/{live.windows_total} windows"
    return f"{windows}, {rate}, {left}; {failed} (told {duration(seconds_since(live.at))} ago)"


def _bar(run: RunStatus) -> str:
    """`#` is recorded, `x` failed or quarantined. Nothing is rounded up: 100% means all."""
    if run.account is None or not run.account.planned:
        return f"[{' ' * _BAR_WIDTH}]   –  "
    planned, recorded = run.account.planned, run.account.recorded
    lost = run.account.failed + run.account.quarantined
    full = _BAR_WIDTH * recorded // planned
    crossed = min(_BAR_WIDTH - full, max(_BAR_WIDTH * lost // planned, 1 if lost else 0))
    return f"[{'#' * full}{'x' * crossed:<{_BAR_WIDTH - full}}] {1000 * recorded // planned / 10:5.1f}%"


def _episodes(outcomes: Iterable[Outcome]) -> str:
    indexes = sorted({outcome.episode_index for outcome in outcomes})
    named = ", ".join(str(index) for index in indexes[:_EPISODES_NAMED])
    more = f" and {len(indexes) - _EPISODES_NAMED} more" if len(indexes) > _EPISODES_NAMED else ""
    return f"episode {named}" if len(indexes) == 1 else f"episodes {named}{more}"


def _short(text: str) -> str:
    shown = printable(text.strip())
    return shown if len(shown) <= _ERROR_CHARACTERS else shown[:_ERROR_CHARACTERS] + " …"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"

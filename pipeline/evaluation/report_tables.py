"""What the report says in words and tables: scores become rows of text. Owns digits, units and labels; reads no file.

Scores may lack anything (LPIPS has no weights, no actions were recovered): what is missing is an en dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.evaluation.rows import LOWER_IS_BETTER, METRICS, VARIANTS

DASH = "–"
MINUS = "−"

# Short names for lines and columns; `rows.VARIANTS` says the same in a sentence.
VARIANT_LABELS = {
    "ceiling": "Ceiling",
    "recorded": "Rollout",
    "copy": "First frame, copied",
    "zero_motion": "Standing still",
    "other_actions": "Other actions",
}
METRIC_LABELS = {"psnr": "PSNR", "moving_psnr": "Moving PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_DIGITS = {"psnr": 2, "moving_psnr": 2, "ssim": 3, "lpips": 3, "obedience": 2, "drop": 2}
_UNITS = METRICS | {"obedience": "dB", "drop": "dB"}
_UNIT_SUFFIXES = {"m": "m", "rad": "rad", "deg": "°", "db": "dB"}
_LABELS = {
    "recorded": "Rollout",
    "ceiling": "Recorded video",
    "always_the_mean": "Always the mean action",
    "mae": "MAE",
    "mean": "Mean",
    "rmse": "RMSE",
    "r2": "R²",
    "drop": "Obedience",
    "translation_rmse": "Translation RMSE",
    "rotation_rmse": "Rotation RMSE",
    "agreement_translation_rmse": "Translation RMSE",
    "agreement_rotation_rmse": "Rotation RMSE",
    "agreement_gripper": "Gripper agreement",
}
_GROUPS = ("translation", "rotation", "gripper")


class Cell(NamedTuple):
    value: str
    interval: str = ""
    title: str = ""


class KeyFigure(NamedTuple):
    label: str
    value: str
    unit: str
    interval: str
    note: str


def format_number(value: Any, digits: int | None = None, *, signed: bool = False) -> str:
    """`digits` after the point, or three significant ones; an en dash where there is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    text = _significant(value) if digits is None else f"{value:.{digits}f}"
    if not text.strip("-0."):
        return text.lstrip("-")  # what rounds to zero has no sign
    return ("+" if signed and value > 0 else "") + text.replace("-", MINUS)


def _significant(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-6 else f"{value:#.3g}".removesuffix(".")


def format_interval(score: Any, digits: int | None = None) -> str:
    """`23.90 to 24.80`; nothing where a bound is missing."""
    low, high = (_field(score, bound) for bound in ("low", "high"))
    if low is None or high is None:
        return ""
    return f"{format_number(low, digits)} to {format_number(high, digits)}"


def metric_info(name: str) -> dict[str, Any]:
    """Label, unit, digits and direction of a metric, or of any other score that an episode has."""
    stem, _, unit = name.rpartition("_")
    return {
        "label": METRIC_LABELS.get(name, _readable(stem if unit in _UNIT_SUFFIXES else name)),
        "unit": _UNITS.get(name, _UNIT_SUFFIXES.get(unit, "")),
        "digits": _DIGITS.get(name),
        "higher_is_better": name not in LOWER_IS_BETTER,
    }


def _readable(name: str) -> str:
    words = _LABELS.get(name, name.replace("_", " "))
    return words[:1].upper() + words[1:]


def _field(score: Any, name: str) -> Any:
    return score.get(name) if isinstance(score, Mapping) else None


def _at(metrics: Any, *path: str) -> Any:
    """`metrics[a][b]...`, None as soon as one is missing."""
    for name in path:
        metrics = _field(metrics, name)
    return metrics


# ------------------------------------------------------------------------------------------------------ key figures


def key_figures(metrics: Mapping[str, Any]) -> list[KeyFigure]:
    """PSNR, where something moves, above the copy, below the ceiling, and obedience.

    What is compared is compared where something moves, as in the verdict; where nothing does, on the whole picture.
    """
    scores, gains = metrics.get("metrics"), metrics.get("gains")
    moves = _at(scores, "moving_psnr", "recorded", "mean") is not None
    name, whose = ("moving_psnr", "Moving PSNR") if moves else ("psnr", "PSNR")
    obedience = _at(metrics, "drops", "other_actions", name) or {"mean": metrics.get("obedience")}
    return [
        _key_figure("PSNR", _at(scores, "psnr", "recorded"), "The rollout against the recorded video."),
        _key_figure("Moving PSNR", _at(scores, "moving_psnr", "recorded"), "Only where something moves."),
        _key_figure("Over the copy", _at(gains, "copy", name), f"{whose} above the first frame, copied.", signed=True),
        _key_figure("Below the ceiling", _at(gains, "ceiling", name), f"{whose} that the VAE would still allow."),
        _key_figure("Obedience", obedience, f"{whose} lost when told another episode’s actions."),
    ]


def _key_figure(label: str, score: Any, note: str, *, signed: bool = False) -> KeyFigure:
    value = format_number(_field(score, "mean"), 2, signed=signed)
    return KeyFigure(label, value, "dB" * (value != DASH), format_interval(score, 2), note)


def sizes(metrics: Mapping[str, Any]) -> str:
    """How much was measured: `24 episodes, 1,536 frames, 2 rollouts of each episode.`"""
    counts = [(metrics.get("episodes"), "episode"), (metrics.get("frames"), "frame")]
    said = [f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts if isinstance(count, int)]
    if isinstance(samples := metrics.get("num_samples"), int):
        said.append(f"{samples} {'rollout' if samples == 1 else 'rollouts'} of each episode")
    return ", ".join(said) + "." * bool(said)


# ----------------------------------------------------------------------------------------------------------- tables


def score_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Variants by metrics. A variant that nothing was measured of has no row."""
    scores = metrics.get("metrics") or {}
    rows = [
        {
            "variant": variant,
            "label": label,
            "note": _note(variant),
            "is_rollout": variant == "recorded",
            "cells": [_score_cell(_at(scores, name, variant), name) for name in METRIC_LABELS],
        }
        for variant, label in VARIANT_LABELS.items()
        if any(_at(scores, name, variant) for name in METRIC_LABELS)
    ]
    columns = [{"label": METRIC_LABELS[name], "hint": _hint(name)} for name in METRIC_LABELS]
    return {"metrics": columns, "rows": rows, "notes": _score_notes(metrics)}


def _note(variant: str) -> str:
    sentence = VARIANTS[variant]
    says_no_more = sentence.removeprefix("the ") == VARIANT_LABELS[variant].lower()
    return "" if says_no_more else sentence[:1].upper() + sentence[1:]


def _hint(name: str) -> str:
    unit, arrow = METRICS[name], "↓" if name in LOWER_IS_BETTER else "↑"
    return f"{unit} {arrow}".strip()


def _score_cell(score: Any, name: str) -> Cell:
    spreads = [("episodes", "std_over_episodes"), ("samples", "std_over_samples")]
    told = [f"std over {of}: {format_number(_field(score, key), _DIGITS[name])}" for of, key in spreads]
    return Cell(
        format_number(_field(score, "mean"), _DIGITS[name]),
        format_interval(score, _DIGITS[name]),
        f"{', '.join(told)}; {format_number(_field(score, 'num_episodes'))} episodes" if score else "",
    )


def _score_notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = []
    spread = _at(metrics, "metrics", "psnr", "recorded", "std_over_samples")
    if spread is not None and (metrics.get("num_samples") or 0) > 1:
        notes.append(f"Sampling noise: {format_number(spread, 2)} dB PSNR (std over the rollouts of one episode).")
    if status := metrics.get("lpips_status"):
        notes.append(status if "LPIPS" in status else f"LPIPS: {status}")
    return notes


def drop_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How far each score falls when the model is told something else."""
    drops = metrics.get("drops") or {}
    names = [name for name in METRIC_LABELS if any(_at(drops, variant, name, "mean") is not None for variant in drops)]
    rows = [
        {
            "variant": variant,
            "label": VARIANT_LABELS[variant],
            "cells": [_drop_cell(_at(drops, variant, name), name) for name in names],
        }
        for variant in ("other_actions", "zero_motion")
        if _field(drops, variant)
    ]
    return {"metrics": [{"label": METRIC_LABELS[name], "unit_hint": METRICS[name]} for name in names], "rows": rows}


def _drop_cell(drop: Any, name: str) -> Cell:
    value = format_number(_field(drop, "mean"), _DIGITS[name], signed=True)
    return Cell(value, format_interval(drop, _DIGITS[name]))


def difference_table(differences: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many episodes it takes to tell two checkpoints apart; one row per difference in dB."""
    differences = differences or {}
    needed = {
        name: {entry.get("difference_db"): entry.get("episodes_needed") for entry in differences[name]}
        for name in METRIC_LABELS
        if differences.get(name)
    }
    rows = [
        {
            "label": f"{format_number(size, 2)} dB",
            "cells": [format_number(found.get(size)) for found in needed.values()],
        }
        for size in dict.fromkeys(size for found in needed.values() for size in found)
    ]
    columns = [METRIC_LABELS[name] for name in needed]
    return {"columns": columns, "rows": rows, "assumption": differences.get("assumption") or ""}


def comparison_table(comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    """One row per score that both checkpoints have, the episodes that were paired, and what to be wary of."""
    comparison = comparison or {}
    rows = [
        _comparison_row(name, entry)
        for name, entry in comparison.items()
        if isinstance(entry, Mapping) and entry.get("mean") is not None
    ]
    pairs = {"in both": "num_common_episodes", "only here": "num_only_here", "only there": "num_only_in_baseline"}
    told = [f"{comparison[key]} {where}" for where, key in pairs.items() if comparison.get(key) is not None]
    notes = [f"Episodes: {', '.join(told)}."] if told else []
    notes += [comparison["warning"]] if comparison.get("warning") else []
    return {"rows": rows, "baseline": comparison.get("baseline") or "", "notes": notes}


def _comparison_row(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    info = metric_info(name)
    return {
        "label": info["label"],
        "hint": "" if entry.get("higher_is_better", info["higher_is_better"]) else "lower is better",
        "value": _with_unit(format_number(entry["mean"], info["digits"], signed=True), entry.get("unit", info["unit"])),
        "interval": format_interval(entry, info["digits"]) or DASH,
        "p": _p_value(entry.get("p")),
        "num_episodes": format_number(entry.get("num_episodes")),
    }


def _with_unit(text: str, unit: str | None) -> str:
    return text if text == DASH or not unit else f"{text} {unit}"


def _p_value(p: Any) -> str:
    return "< 0.001" if isinstance(p, int | float) and 0 <= p < 0.001 else format_number(p, 3)


def fact_rows(facts: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """Settings as two columns, nested ones by their dotted names."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            rows += fact_rows(value, f"{prefix}{name}.")
        else:
            rows.append({"label": f"{prefix}{name}", "value": _fact(value)})
    return rows


def _fact(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, Sequence | Mapping) and not value):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_fact(entry) for entry in value)
    return str(value)


# -------------------------------------------------------------------------------------------------------- agreement


def agreement_tables(agreement: Mapping[str, Any] | None) -> dict[str, Any]:
    """Per kind of motion a small table, per dimension a row; the columns are whichever numbers there are."""
    dimensions = _at(agreement, "dimensions") or []
    columns = _columns_of(dimensions)
    rows = [
        {
            "name": dimension.get("name", DASH),
            "unit": dimension.get("unit") or "",
            "cells": [format_number(_sources(dimension).get(source, {}).get(name)) for source, name in columns],
        }
        for dimension in dimensions
    ]
    of_columns = [source for source, _ in columns]
    spans = [{"label": _readable(source), "width": of_columns.count(source)} for source in dict.fromkeys(of_columns)]
    starts = [index > 0 and of_columns[index - 1] != source for index, source in enumerate(of_columns)]
    labels = [{"label": _readable(name), "starts": start} for (_, name), start in zip(columns, starts, strict=True)]
    groups = [_group_table(name, agreement) for name in _GROUPS if _field(agreement, name)]
    return {"rows": rows, "columns": labels, "spans": spans, "groups": groups}


def _group_table(title: str, agreement: Mapping[str, Any]) -> dict[str, Any]:
    group = agreement[title]
    names = list(dict.fromkeys(name for _, name in _columns_of([group])))
    rows = [
        {
            "label": _readable(source),
            "cells": [
                Cell(
                    format_number(numbers.get(name)),
                    format_interval(_interval_of(agreement, title, name) if source == "recorded" else None),
                )
                for name in names
            ],
        }
        for source, numbers in _sources(group).items()
    ]
    unit = group.get("unit") or ""
    return {"name": _readable(title), "unit": unit, "columns": [_readable(name) for name in names], "rows": rows}


def _interval_of(agreement: Mapping[str, Any], group: str, measure: str) -> Any:
    """`intervals` names them by group, measure and unit: `translation_rmse_m`."""
    intervals = agreement.get("intervals") or {}
    return next((intervals[key] for key in intervals if key.startswith(f"{group}_{measure}")), None)


def _columns_of(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(source, measure) of everything measured, by source."""
    found = dict.fromkeys(
        (source, name) for entry in entries for source, numbers in _sources(entry).items() for name in numbers
    )
    sources = list(dict.fromkeys(source for source, _ in found))
    return sorted(found, key=lambda column: sources.index(column[0]))


def _sources(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{source: {measure: number}}. What stands in `entry` itself is the rollout's."""
    nested = {name: value for name, value in entry.items() if isinstance(value, Mapping)}
    measured = {
        source: {name: value for name, value in numbers.items() if _is_measure(value)}
        for source, numbers in ({"recorded": entry} | nested).items()
    }
    return {source: numbers for source, numbers in measured.items() if numbers}


def _is_measure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

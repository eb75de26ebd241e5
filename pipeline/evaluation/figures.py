"""A world model's headline figures for a terminal: what the metrics file has, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


def render_world_model_scores(metrics: Mapping[str, Any]) -> str:
    """PSNR on moving pixels over the horizon, beside the copied first frame and the VAE alone; and what is obeyed."""
    rows = [entry for entry in metrics["horizon"] if entry["step"] in _STEPS]
    lines = ["PSNR on moving pixels, dB, by frames since the rollout's first", _line("", [row["step"] for row in rows])]
    for variant, name in (("recorded", "rollout"), ("copy", "copied frame"), ("ceiling", "VAE alone")):
        lines.append(_line(name, [_moving(row, variant) for row in rows]))
    gains = [_gain(entry) for entry in metrics["horizon"] if entry["step"] > 4]
    least = min((gain for gain in gains if gain is not None), default=None)
    if least is not None:
        lines.append(f"past the fourth frame the rollout is at least {least:.1f} dB above the copied one")
    if metrics["obedience"] is not None:
        lines.append(f"with another episode's actions it loses {metrics['obedience']:.1f} dB")
    recovered = _recovered(metrics["agreement"])
    return "\n".join([*lines, *([recovered] if recovered else [])])


def _recovered(agreement: Mapping[str, Any] | None) -> str | None:
    groups = {name: (agreement or {}).get(name) for name in ("translation", "rotation")}
    told = [f"{name} {group['r2']:.3f}" for name, group in groups.items() if group and group["r2"] is not None]
    return f"R² of the actions that inverse dynamics recovers from the rollouts: {', '.join(told)}" if told else None


def _gain(entry: Mapping[str, Any]) -> float | None:
    ours, copied = _moving(entry, "recorded"), _moving(entry, "copy")
    return None if ours is None or copied is None else ours - copied


def _moving(entry: Mapping[str, Any], variant: str) -> float | None:
    return entry[variant]["moving_psnr"]["mean"] if variant in entry else None


def _line(name: str, values: list) -> str:
    cells = ["–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value) for value in values]
    return f"{name:<14}" + "".join(f"{cell:>7}" for cell in cells)

"""Rows of an evaluation with known numbers, as the tests of scores, verdict and comparison need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation.agreement import ActionLayout
from pipeline.evaluation.rows import evaluation_schema

IDENTITY_6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NAMES = ("dx_m", "dy_m", "dz_m", "r00", "r10", "r20", "r01", "r11", "r21", "gripper_open")
LAYOUT = ActionLayout(NAMES, rot6d_starts=(3,), gripper_columns=(9,))
LPIPS_STATUS = "LPIPS was switched off."


def action(
    translation: Sequence[float] = (0, 0, 0), rot6d: Sequence[float] = IDENTITY_6, gripper: float = 0
) -> list[float]:
    return [*map(float, translation), *map(float, rot6d), float(gripper)]


def turn_about_z(angle_rad: float) -> tuple[float, ...]:
    """Six numbers of a rotation about z: its first two columns."""
    return (np.cos(angle_rad), np.sin(angle_rad), 0.0, -np.sin(angle_rad), np.cos(angle_rad), 0.0)


def frame(episode: int, variant: str = "recorded", *, step: int = 1, sample: int = 0, **values: Any) -> dict[str, Any]:
    """One row. Nothing moves and there is no LPIPS unless `values` says so."""
    return {
        "episode_index": episode,
        "task": f"task {episode}",
        "frame_index": step,
        "timestamp": step / 5,
        "rollout_start": 0,
        "horizon_step": step,
        "variant": variant,
        "sample": sample,
        "psnr": 20.0,
        "ssim": 0.5,
        "moving_psnr": None,
        "lpips": None,
        "moving_share": 0.0,
        "action_given": None,
        "action_recovered": None,
    } | values


def table(frames: Iterable[Mapping[str, Any]], names: Sequence[str] = NAMES) -> pa.Table:
    return pa.Table.from_pylist(list(frames), schema=evaluation_schema(names))


def full_table(
    num_episodes: int = 10, *, drop_db: float = 2.0, gain_db: float = 3.0, moves: bool = True, noise: float = 0.1
) -> pa.Table:
    """Two steps, two samples, every variant, LPIPS and recovered actions. Drops and gains spread by `noise` dB."""
    rng = np.random.default_rng(0)
    frames = []
    for episode in range(num_episodes):
        base = 20 + rng.normal()
        offsets = {"recorded": 0, "other_actions": -drop_db, "zero_motion": -1, "copy": -gain_db, "ceiling": 6}
        for variant, offset in offsets.items():
            level = base + offset + (noise * rng.normal() if variant != "recorded" else 0)
            spread = (-0.5, 0.5) if variant == "recorded" else (0.0,)
            for sample in range(len(spread)):
                for step in (1, 2):
                    given = action((0.01 * rng.normal(), 0, 0.02), turn_about_z(0.1 * rng.normal()), step % 2)
                    frames.append(
                        frame(
                            episode,
                            variant,
                            step=step,
                            sample=sample,
                            psnr=level + spread[sample],
                            moving_psnr=level - 5 + spread[sample] if moves else None,
                            lpips=0.5 - level / 100,
                            action_given=given,
                            action_recovered=given if variant in ("recorded", "ceiling") else None,
                        )
                    )
    return table(frames)

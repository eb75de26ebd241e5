"""The flow schedule and its UniPC solver (diffusers'). The state it carries is fp32.

Ground truth is cosmos-framework's schedule: `linspace(1 - 1/1000, 0, n + 1)[:-1]`, shifted. Checkpoints ship a Karras
grid in `scheduler/`, fitted to another setting; it is used only when asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import UniPCMultistepScheduler

from pipeline.errors import CheckpointError


def make_solver(
    scheduler_config: dict[str, Any], *, num_inference_steps: int, flow_shift: float, use_karras_sigmas: bool | None
) -> UniPCMultistepScheduler:
    """A fresh solver whose `timesteps` [n] are integers in 0..1000 and whose `sigmas` [n + 1] end in zero.

    `use_karras_sigmas=False` is the trainer's flow grid with `flow_shift`; True is the checkpoint's Karras grid; None
    does what `scheduler/scheduler_config.json` says. Raises CheckpointError for a config that makes no solver.
    """
    if use_karras_sigmas is None:
        use_karras_sigmas = bool(scheduler_config.get("use_karras_sigmas", False))
    overrides = {"use_karras_sigmas": use_karras_sigmas, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if not use_karras_sigmas:
        overrides["flow_shift"] = flow_shift
    try:
        solver = UniPCMultistepScheduler.from_config(scheduler_config, **overrides)
        if use_karras_sigmas:
            solver.set_timesteps(num_inference_steps)
        else:
            first = 1.0 - 1.0 / solver.config.num_train_timesteps
            solver.set_timesteps(sigmas=np.linspace(first, 0.0, num_inference_steps + 1)[:-1])
    except Exception as error:  # diffusers checks few of these settings: what a wrong one leads to comes out here
        raise CheckpointError(
            f"scheduler/scheduler_config.json is not one that diffusers' UniPC solver can be built from "
            f"({type(error).__name__}: {error}). Download the checkpoint again."
        ) from error
    # Without this the solver looks its first step up by value, which fails where two timesteps truncate to one.
    solver.set_begin_index(0)
    return solver

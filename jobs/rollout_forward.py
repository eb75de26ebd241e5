"""Rollout videos: what would these actions have done? `uv run jobs/rollout_forward.py --help`.

From the first frame of each episode and its recorded actions, a label run's pseudo-actions or an action file. Without
arguments it runs on an embedded demo. Exit code: 0 when every video has its record, 1 when some failed, 2 when the
settings or the input do not allow a run.
"""

from __future__ import annotations

import sys

from pipeline.config import RolloutConfig
from pipeline.terminal import carry_out, run_job


def roll_out_dataset(config: RolloutConfig, is_demo: bool) -> int:
    from pipeline.rollouts import prepare_forward, roll_out, where_it_is

    summary = carry_out(prepare_forward(config), roll_out, doing="rolling out")
    if summary is None:
        return 0
    print(where_it_is(config, summary))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(run_job(RolloutConfig, roll_out_dataset))

"""Dreams: what would the model do, and what would follow? `uv run jobs/rollout_policy.py --help`.

From the first frame of each episode and an instruction (its own, `--task`, or each of `--tasks_path`) come actions and
video together. Without arguments it runs on an embedded demo. Exit code: 0 when every video has its record, 1 when
some failed, 2 when the settings or the input do not allow a run.
"""

from __future__ import annotations

import sys

from pipeline.config import PolicyConfig
from pipeline.terminal import carry_out, run_job


def dream(config: PolicyConfig, is_demo: bool) -> int:
    from pipeline.rollouts import prepare_policy, roll_out, where_it_is

    summary = carry_out(prepare_policy(config), roll_out, doing="dreaming")
    if summary is None:
        return 0
    print(where_it_is(config, summary))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(run_job(PolicyConfig, dream))

"""How far can a checkpoint's rollouts be trusted? `uv run jobs/evaluate_world_model.py --help`.

Measures rollouts of held-out episodes, frame by frame, against what was recorded, between two baselines; whether they
obey their actions; and whether inverse dynamics recovers those actions. With --scenes_path also whether the policy goes
for what its instruction names. Without arguments it runs on the embedded demo. Exit code: 0 when every segment has its
record and every --fail_below score is reached, 1 when not, 2 when the settings or the input do not allow a run.
"""

from __future__ import annotations

import sys

from pipeline.config import EvaluationConfig
from pipeline.terminal import carry_out, run_job


def evaluate_checkpoint(config: EvaluationConfig, is_demo: bool) -> int:
    from pipeline import evaluating, evaluating_policy

    rollouts = evaluating.prepare(config)
    policy = evaluating_policy.prepare(config) if config.scenes_path else None  # a wrong file is told now
    evaluation = carry_out(rollouts, evaluating.evaluate, doing="evaluating")
    if evaluation is None:
        return 0
    if evaluation.report is not None:
        print(f"\nThe figures are in {config.output_dir}/metrics.json, the report is {evaluation.report}.")
    if policy is None:
        return evaluation.exit_code
    judged = carry_out(policy, evaluating_policy.evaluate, doing="dreaming")
    print(f"\nThe policy's figures are in {policy.output_dir}/metrics.json.")
    return max(evaluation.exit_code, judged.exit_code)


if __name__ == "__main__":
    sys.exit(run_job(EvaluationConfig, evaluate_checkpoint))

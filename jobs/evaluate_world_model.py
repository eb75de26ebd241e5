"""How far can a checkpoint's rollouts be trusted? `uv run jobs/evaluate_world_model.py --help`.

Measures rollouts of held-out episodes, frame by frame, against what was recorded, between two baselines; whether they
obey their actions; and whether inverse dynamics recovers those actions. Without arguments it runs on an embedded demo.
Exit code: 0 when every segment has its record and every --fail_below score is reached, 1 when not, 2 when the settings
or the input do not allow a run.
"""

from __future__ import annotations

import sys

from pipeline.config import EvaluationConfig
from pipeline.terminal import carry_out, run_job


def evaluate_checkpoint(config: EvaluationConfig, is_demo: bool) -> int:
    from pipeline.evaluating import evaluate, prepare

    evaluation = carry_out(prepare(config), evaluate, doing="evaluating")
    if evaluation is None:
        return 0
    if evaluation.report is not None:
        print(f"\nThe figures are in {config.output_dir}/metrics.json, the report is {evaluation.report}.")
    return evaluation.exit_code


if __name__ == "__main__":
    sys.exit(run_job(EvaluationConfig, evaluate_checkpoint))

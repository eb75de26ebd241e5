"""How right are the labels? `uv run jobs/evaluate_labels.py --help`.

Labels episodes whose actions were recorded, and holds one against the other: R² of translation and rotation, accuracy
of the gripper, beside always answering the mean and copying the last action. Without arguments it runs on the embedded
demo. Exit code: 0 when every segment has its record, 1 when some failed, 2 when the settings or the input do not allow
a run.
"""

from __future__ import annotations

import sys

from pipeline.config import LabelEvaluationConfig
from pipeline.terminal import carry_out, run_job


def evaluate_labels(config: LabelEvaluationConfig, is_demo: bool) -> int:
    from pipeline.evaluating_labels import evaluate, prepare

    evaluation = carry_out(prepare(config), evaluate, doing="evaluating")
    if evaluation is None:
        return 0
    if evaluation.metrics:
        print(f"\nThe figures, by dimension and by episode, are in {config.output_dir}/metrics.json.")
    return evaluation.exit_code


if __name__ == "__main__":
    sys.exit(run_job(LabelEvaluationConfig, evaluate_labels))

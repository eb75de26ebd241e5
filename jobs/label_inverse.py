"""Label robot video with pseudo-actions: `uv run jobs/label_inverse.py --help`.

Without arguments it runs on an embedded demo. Exit code: 0 when every segment has its record, 1 when some failed, 2
when the settings or the input do not allow a run.
"""

from __future__ import annotations

import sys

from pipeline.config import LabelConfig
from pipeline.terminal import carry_out, run_job


def label_dataset(config: LabelConfig, is_demo: bool) -> int:
    from pipeline.labelling import label, prepare

    summary = carry_out(prepare(config), label, doing="labelling")
    if summary is None:
        return 0
    if summary.results.get("rows"):
        print(f"Labels are in {config.output_dir}/labels. {_next_command(config, is_demo)}")
    return summary.exit_code


def _next_command(config: LabelConfig, is_demo: bool) -> str:
    if is_demo:
        return (
            "Next, your own data:\n  uv run jobs/label_inverse.py --config_path configs/droid.yaml "
            "--dataset.root DATASET --action_stats_path STATS.json"
        )
    return f"Open them:\n  datasets.load_dataset('parquet', data_files='{config.output_dir}/labels/*.parquet')"


if __name__ == "__main__":
    sys.exit(run_job(LabelConfig, label_dataset))

"""Label robot video with pseudo-actions: `uv run jobs/label_inverse.py --help`.

Without arguments it runs on an embedded demo. Exit code: 0 when every segment has its record, 1 when some failed, 2
when the settings or the input do not allow a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config import LabelConfig, parse_config
from pipeline.errors import PipelineError


def main() -> int:
    try:
        config = parse_config(LabelConfig)
        return run(config)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def run(config: LabelConfig) -> int:
    # Heavy imports wait until the settings are known to be possible.
    from pipeline.labelling import describe_plan, label, prepare
    from pipeline.progress import ProgressBar

    is_demo = config.is_demo
    if is_demo:
        from pipeline.demo import WARNING, fill_in_demo

        print(f"Demo: rendering a dataset and a tiny checkpoint under outputs/demo. {WARNING}", flush=True)
        config = fill_in_demo(config, Path("outputs/demo"))
    prepared = prepare(config)
    print(describe_plan(prepared), flush=True)
    if config.dry_run:
        return 0
    with ProgressBar(prepared) as progress:
        summary = label(prepared, progress)
    print(summary.render())
    if summary.labels["rows"]:
        print(f"Labels are in {config.output_dir}/labels. {_next_command(config, is_demo)}")
    return 0 if summary.is_complete else 1


def _next_command(config: LabelConfig, is_demo: bool) -> str:
    if is_demo:
        return (
            "Next, your own data:\n  uv run jobs/label_inverse.py --config_path configs/droid.yaml "
            "--dataset.root DATASET --action_stats_path STATS.json"
        )
    return f"Open them:\n  datasets.load_dataset('parquet', data_files='{config.output_dir}/labels/*.parquet')"


if __name__ == "__main__":
    sys.exit(main())

"""Train a small Cosmos3 on recorded actions, from nothing or from a checkpoint. `uv run jobs/train_demo.py --help`.

Without arguments it renders the demo's world and trains a checkpoint of ten megabytes on it: VAE, then transformer, on
the CPU. The same command goes on where an earlier one stopped. Curves and pictures are in the output folder, and the
checkpoint is in `checkpoint`. Exit code: 0 when it is trained, 2 when settings or input do not allow it, 3 when it was
stopped.
"""

from __future__ import annotations

import sys

from pipeline.command_line import parse_config
from pipeline.errors import PipelineError
from pipeline.printable import error_line
from pipeline.stopping import EXIT_STOPPED
from pipeline.training.config import TrainConfig


def main() -> int:
    try:
        config = parse_config(TrainConfig)
        from pipeline.demo import fill_in_training
        from pipeline.training.train import train

        trained = train(fill_in_training(config))
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last state that was saved.", file=sys.stderr)
        return EXIT_STOPPED
    for part, seconds in trained.seconds.items():
        print(f"{part:<12}{seconds / 60:.0f} min")
    print(f"The checkpoint is {trained.checkpoint}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

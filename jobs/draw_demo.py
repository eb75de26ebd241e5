"""Draws the demo's labels over its video. `uv run jobs/draw_demo.py`, after `uv run jobs/label_inverse.py`.

The way that the labels lead from the first recorded pose, and the way that the hand went, in two of the demo's cameras;
beside them the labelled and the recorded motion over time. Exit code: 0 when the picture is written, 2 when there are
no labels to draw.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.command_line import parse_config
from pipeline.errors import PipelineError
from pipeline.printable import error_line


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """What is drawn, and where to."""

    # A label run of the demo.
    output_dir: str = "outputs/label_inverse"
    # The demo's dataset.
    dataset_root: str = "outputs/demo/dataset"
    episodes: tuple[int, ...] = (0, 1, 2)
    # null: labels.png in the run's folder.
    picture: str | None = None


def main() -> int:
    try:
        config = parse_config(DrawConfig)
        from pipeline.demo.overlay import draw_labels

        picture = Path(config.picture or Path(config.output_dir) / "labels.png")
        draw_labels(Path(config.output_dir), Path(config.dataset_root), picture, episodes=config.episodes)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    print(f"The picture is {picture}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

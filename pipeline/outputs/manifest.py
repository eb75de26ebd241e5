"""The manifest: every setting of a run, its checkpoint, statistics and versions. It also travels inside the labels."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.config import RunConfig, all_settings, label_settings
from pipeline.datasets import RobotVideoDataset
from pipeline.outputs.writing import write_file
from pipeline.recipe import Recipe
from pipeline.storage import open_path

_PACKAGES = ("robot-video-labelling", "torch", "diffusers", "transformers", "ray", "av", "numpy")


def make_manifest(config: RunConfig, recipe: Recipe, dataset: RobotVideoDataset, checkpoint: Path) -> dict[str, Any]:
    return {
        "run_id": recipe.run_id,
        "recipe": recipe.to_json(),
        "action_names": list(recipe.action_names),
        "settings": all_settings(config),
        "settings_that_change_labels": sorted(label_settings(config)),
        "checkpoint": {
            "id": config.engine.checkpoint,
            "path": str(checkpoint),
            "fingerprint": recipe.checkpoint_fingerprint,
        },
        "dataset": {
            "root": str(dataset.root),
            "format": dataset.format,
            "fps": dataset.fps,
            "episodes": dataset.num_episodes,
            "fingerprint": dataset.fingerprint(),
            "warnings": list(dataset.warnings),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def write_manifest(output_dir: str | Path | UPath, manifest: dict[str, Any]) -> None:
    """`manifest.json` is the newest run's; one of each recipe stays under `manifests/`."""
    folder = open_path(output_dir)
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "manifests" / f"{manifest['run_id']}.json", manifest)


def write_json(path: str | Path | UPath, value: Any) -> None:
    """Writes a file that is at no moment half there. Raises ValueError for what JSON has no word for, NaN included."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_file(open_path(path), lambda partial: partial.write_text(text, encoding="utf-8"))

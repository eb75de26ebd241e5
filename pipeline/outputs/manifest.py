"""The manifest: every setting of a run, its checkpoint, statistics and versions. It also travels inside the labels."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, all_settings, label_settings
from pipeline.datasets import RobotVideoDataset
from pipeline.outputs.records import write_atomically
from pipeline.recipe import Recipe

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


def write_manifest(output_dir: Path, manifest: dict[str, Any]) -> None:
    """`manifest.json` is the newest run's; one of each recipe stays under `manifests/`."""
    write_json(output_dir / "manifest.json", manifest)
    write_json(output_dir / "manifests" / f"{manifest['run_id']}.json", manifest)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))

"""What a run does first with a folder of inputs, reader by reader. Heavy imports wait until a reader needs them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.datasets import RobotVideoDataset
    from pipeline.recipe import Recipe

_NUM_LOOKED_AT = 3
_WIDTH = 10


def read_dataset(folder: Path, *, with_pictures: bool = True) -> None:
    """Opens a dataset, plans it, and reads its first episodes: columns, time stamps, the first and the last picture.

    Goes on after an error as a run does, and raises the first one in the end.
    """
    from pipeline.datasets import open_dataset
    from pipeline.plan import make_plan

    dataset = open_dataset(folder / "dataset")
    errors: list[PipelineError] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except PipelineError as error:
            errors.append(error)

    attempt(lambda: make_plan(dataset, recipe_for(dataset), max_segment_bytes=2**26))
    attempt(dataset.fingerprint)
    json.dumps(dataset.warnings)
    for index in list(dataset.episode_indexes())[:_NUM_LOOKED_AT]:
        attempt(lambda index=index: dataset.read_columns(index, list(dataset.features)))
        attempt(lambda index=index: dataset.timestamps(index, [0]))
        attempt(lambda index=index: dataset.episode_identity(index, dataset.cameras))
        last = max(0, dataset.episode(index).num_frames - 1)
        for camera in dataset.cameras if with_pictures else ():
            attempt(lambda index=index, camera=camera, last=last: dataset.read_frames(index, camera, sorted({0, last})))
    if errors:
        raise errors[0]


def read_recordings(folder: Path) -> None:
    """The same without pictures, which take the most time."""
    read_dataset(folder, with_pictures=False)


def recipe_for(dataset: RobotVideoDataset) -> Recipe:
    """A recipe of label runs that any dataset passes."""
    from pipeline.actions import load_normalizer
    from pipeline.datasets import resolve_timebase
    from pipeline.embodiments import get_embodiment
    from pipeline.recipe import Recipe

    return Recipe(
        mode="inverse_dynamics",
        embodiment=get_embodiment("droid_lerobot"),
        raw_action_dim=_WIDTH,
        action_chunk=16,
        cameras=dataset.cameras,
        view_point="",
        view_description="",
        image_size=256,
        prompt_format="json",
        timebase=resolve_timebase(dataset.fps, None, "native"),
        normalizer=load_normalizer("none", None, _WIDTH),
        checkpoint_fingerprint="",
        num_inference_steps=1,
        guidance_scale=1.0,
        flow_shift=10.0,
        use_karras_sigmas=False,
        dtype="float32",
        seed=0,
    )


def read_action_files(folder: Path) -> None:
    from pipeline.action_files import read_action_file

    for name in ("shaped.json", "chunks.json"):
        actions = read_action_file(folder / name, raw_action_dim=_WIDTH)
        assert actions.ndim == 2
        assert actions.shape[1] == _WIDTH
        assert np.isfinite(actions).all()


def read_statistics(folder: Path) -> None:
    """Every method on both layouts; what is accepted has to give finite numbers back."""
    from pipeline.actions import load_normalizer

    for name in ("flat.json", "nested.json"):
        for method in ("meanstd", "minmax", "quantile", "quantile_rot"):
            normalizer = load_normalizer(method, folder / name, _WIDTH)
            json.dumps(normalizer.to_json(), allow_nan=False)
            assert np.isfinite(normalizer.offset).all()
            assert (normalizer.scale > 0).all()


def read_config(folder: Path) -> None:
    _parse([f"--config_path={folder / 'config.yaml'}"])


def read_command_line(folder: Path) -> None:
    _parse(json.loads((folder / "arguments.json").read_text()))


def _parse(arguments: list[str]) -> None:
    """`--help` prints and exits with 0, which is its job."""
    from pipeline.command_line import parse_config
    from pipeline.config import EvaluationConfig, LabelConfig, all_settings

    for config_class in (LabelConfig, EvaluationConfig):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                config = parse_config(config_class, arguments)
            except SystemExit as exit_:
                if exit_.code == 0 and any(flag.startswith(("--help", "-h")) for flag in arguments):
                    continue
                raise
        json.dumps(all_settings(config), allow_nan=False)


def read_checkpoint(folder: Path) -> None:
    """Everything that is read of a checkpoint but its text tokenizer, into an engine on the CPU."""
    from pipeline.cosmos3.engine import Engine
    from pipeline.cosmos3.sampler import make_solver

    engine = Engine.from_pretrained(folder / "checkpoint", device="cpu")
    for use_karras_sigmas in (None, False, True):
        make_solver(
            engine.config.scheduler, num_inference_steps=2, flow_shift=10.0, use_karras_sigmas=use_karras_sigmas
        )


def read_tokenizer(folder: Path) -> None:
    from pipeline.cosmos3.prompt import PromptTokenizer

    PromptTokenizer.from_pretrained(folder / "checkpoint").encode("Lift the cup.")


def read_weights(folder: Path) -> None:
    import torch

    from pipeline.cosmos3.loading import check_strictly, load_strictly

    with torch.device("meta"):
        module, again = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    check_strictly(module, folder / "model")
    load_strictly(again, folder / "model", device=torch.device("cpu"), dtype=torch.float32)


def read_baseline_and_compare(folder: Path) -> None:
    from pipeline.evaluation.comparison import compare, read_baseline

    ours = json.loads((folder / "ours.json").read_text())
    json.dumps(compare(ours, read_baseline(folder / "metrics.json")), allow_nan=False)


def open_label_run(folder: Path) -> None:
    """The pseudo-labels of a run as actions for a rollout of the same dataset."""
    from pipeline.action_sources import open_action_source
    from pipeline.datasets import open_dataset

    dataset = open_dataset(folder / "dataset")
    recipe = recipe_for(dataset)
    source = open_action_source(f"labels:{folder / 'run'}", dataset, recipe)
    for index in list(dataset.episode_indexes())[:_NUM_LOOKED_AT]:
        source.read(dataset, index, recipe.timebase)

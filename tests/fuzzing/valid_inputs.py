"""The valid files that damaged ones are made of, as {relative path: content}. Made when first asked for."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import dataset_factory
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

_WIDTH = 10
_LENGTHS = (6, 4)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def parsed(raw: bytes) -> Any:
    return json.loads(raw)


def parsed_lines(raw: bytes) -> list[Any]:
    return [json.loads(line) for line in raw.splitlines()]


def table(raw: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(raw))


def _written(write: Callable[[Path], object], prefix: str) -> dict[str, bytes]:
    """The files that `write` leaves in a new folder, under `prefix`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        write(root)
        return {
            f"{prefix}/{path.relative_to(root).as_posix()}": path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


@cache
def lerobot_v3() -> dict[str, bytes]:
    return _written(lambda root: dataset_factory.make_v3(root, _LENGTHS, per_file=2, codec="libx264"), "dataset")


@cache
def lerobot_v2() -> dict[str, bytes]:
    return _written(lambda root: dataset_factory.make_v2(root, _LENGTHS), "dataset")


@cache
def video_folder() -> dict[str, bytes]:
    def write(root: Path) -> None:
        for name in ("a", "b"):
            dataset_factory.write_video(root / f"{name}.mp4", range(5))
        captions = [{"file_name": f"{name}.mp4", "text": f"Do {name}."} for name in ("a", "b")]
        (root / "captions.jsonl").write_bytes(b"\n".join(map(as_json, captions)))

    return _written(write, "dataset")


@cache
def outside() -> dict[str, bytes]:
    """What lies beside the inputs' folder: good files, which nothing may open."""
    files = lerobot_v3()
    return {
        "file-000.mp4": files["dataset/videos/observation.images.front/chunk-000/file-000.mp4"],
        "file-000.parquet": files["dataset/data/chunk-000/file-000.parquet"],
        "diffusion_pytorch_model.safetensors": weights()["model/diffusion_pytorch_model.safetensors"],
    }


@cache
def action_files() -> dict[str, bytes]:
    rows = [[0.1 * column + row for column in range(_WIDTH)] for row in range(3)]
    return {
        "shaped.json": as_json({"shape": [3, _WIDTH], "dtype": "float32", "data": rows, "units": ["m"]}),
        "chunks.json": as_json({"action_chunks": [rows, rows]}),
    }


@cache
def statistics() -> dict[str, bytes]:
    low, high = [-1.0] * _WIDTH, [0.5 + column for column in range(_WIDTH)]
    fields = {"mean": low, "std": high, "min": low, "max": high, "q01": low, "q99": high}
    return {"flat.json": as_json(fields), "nested.json": as_json({"global": fields, "global_raw": fields})}


SETTINGS = {
    "dataset": {"root": "somewhere", "format": "auto", "episodes": [0, 3], "cameras": ["a", "b"]},
    "engine": {"checkpoint": "elsewhere", "num_inference_steps": 4, "guidance_scale": 1.5, "use_karras_sigmas": None},
    "ray": {"address": None, "num_loaders": 2},
    "action_normalization": "none",
    "fps": 15,
    "dry_run": True,
}
YAML = b"""# A comment.
dataset:
  root: ~/data   # with a comment
  episodes: [0, 1]
engine: {checkpoint: tiny, seed: 7}
action_normalization: none
dry_run: yes
"""
ODD_YAML = (
    b"a: &a [*a]\n",
    b"a: &a {b: *a}\n",
    b"dataset: &d {root: x}\nengine: *d\n",
    b"a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n"
    b"d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e]\n"
    b"g: &g [*f, *f, *f, *f, *f, *f, *f, *f]\nh: &h [*g, *g, *g, *g, *g, *g]\ndataset.episodes: [*h, *h, *h, *h, *h]\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"engine: !!python/name:os.system\n",
    b"dataset: !include /etc/passwd\n",
    b"? [a, b]\n: c\n",
    b"1: 2\n",
    b"null: null\n",
    b"dataset:\n  root: 2001-01-01\n",
    b"engine:\n  seed: 1_000\n",
    b"engine:\n  seed: 12:30:45\n",
    b"engine: {seed: 0x10}\n",
    b"fps: .nan\n",
    b"fps: .inf\n",
    b"dataset: {root: !!binary aGVsbG8=}\n",
    b"dataset: !!set {a, b}\n",
    b"--- a\n--- b\n",
    b"config_path: config.yaml\n",
    b"help: true\n",
    b"dataset.root: x\ndataset:\n  root: y\n",
    b"'dataset ': x\n",
    b"'': x\n",
    b"a\tb: c\n",
    b"\x00",
    b"\x80",
    b'dataset: {root: "\\ud800"}\n',
)
ODD_VALUES = (
    *("[", "]", "[1, 2", "[a, b]", "[0, -1]", "{a: b}", "{", "*a", "&a", "!x", "'", '"', "#", "- a", "a: b", "@", "`"),
    *("null", "~", "true", "yes", "1e3", "1_000", "0x1", "1.5", "-1", "256", "none", "auto", "psnr=20", "[psnr=nan]"),
    *("--", "-", "---", "-x", "--help", "-h", "--config_path", "[[1]]", "[null]", "[1.5]", "[true]", "2001-01-01"),
)
# What a chat template could try: to leave its sandbox, to read a file, to fail, to run for long.
ODD_TEMPLATES = (
    b"{{ messages.__class__.__mro__ }}",
    b"{{ ''.__class__.__base__.__subclasses__() }}",
    b"{{ cycler.__init__.__globals__.os.system('true') }}",
    b"{{ self._TemplateReference__context.environment.loader }}",
    b"{% include '/etc/passwd' %}",
    b"{% import 'os' as os %}",
    b"{% extends '../outside/file-000.mp4' %}",
    b"{{ raise_exception('no') }}",
    b"{{ 1 / 0 }}",
    b"{{ messages[5].content }}",
    b"{{ undefined.attribute }}",
    b"{% for",
    b"{{ messages | tojson | safe }}",
    b"{{ range(10 ** 9) | list | length }}",
    b"{{ 'x' | center(10 ** 4) }}",
    b"{% set x = namespace(y=1) %}{{ x.y }}",
    b"{{ messages.append(1) }}",
    b"\xff\xfe",
    b"",
)


def flag_names() -> tuple[str, ...]:
    from pipeline.config import EvaluationConfig, LabelConfig, settings_of

    known = dict.fromkeys([*(name for name, _ in settings_of(LabelConfig)), *dict(settings_of(EvaluationConfig))])
    return (*known, "help", "config_path", "dataset", "engine", "ray", "dataset.", "", "h", "engine.see")


@cache
def checkpoint() -> dict[str, bytes]:
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vae_base_dim": 8}
    return _written(lambda root: write_tiny_checkpoint(root, **small), "checkpoint")


def text_tokenizer() -> dict[str, bytes]:
    return {name: raw for name, raw in checkpoint().items() if name.startswith("checkpoint/text_tokenizer/")}


@cache
def weights() -> dict[str, bytes]:
    """A linear layer of 3 to 2, as safetensors."""
    tensors = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    return {"model/diffusion_pytorch_model.safetensors": save(tensors, metadata={"format": "pt"})}


@cache
def sharded_weights() -> dict[str, bytes]:
    index = {"metadata": {"total_size": 32}, "weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}
    return {
        "model/diffusion_pytorch_model.safetensors.index.json": as_json(index),
        "model/a.safetensors": save({"weight": np.ones((2, 3), np.float32)}),
        "model/b.safetensors": save({"bias": np.zeros(2, np.float32)}),
    }


@cache
def baseline() -> dict[str, bytes]:
    from pipeline.evaluation.metrics_schema import METRICS_SCHEMA

    def entry(index: int) -> dict[str, Any]:
        scores = {"psnr": 20.0 + index, "ssim": 0.5, "moving_psnr": 18.0, "lpips": None}
        agreement = {"translation_rmse_m": 0.01, "rotation_rmse_rad": 0.1, "gripper_agreement": 0.9}
        return {"episode_index": index, "task": "t", "recorded": scores, "drop": 1.0, "agreement": agreement}

    metrics = {
        "schema": METRICS_SCHEMA,
        "settings": {"engine.seed": 0, "engine.checkpoint": "x"},
        "dataset": {"root": "/a", "fingerprint": "f"},
        "per_episode": [entry(index) for index in range(3)],
    }
    return {"metrics.json": as_json(metrics), "ours.json": as_json(metrics)}


@cache
def label_run() -> dict[str, bytes]:
    """A dataset, and the labels that a run made of it."""
    manifest = as_json(_manifest())
    rows = {
        "episode_index": [index for index, length in enumerate(_LENGTHS) for _ in range(length)],
        "frame_index": [frame for length in _LENGTHS for frame in range(length)],
        "action": [[0.0] * _WIDTH for length in _LENGTHS for _ in range(length)],
        "action_valid": [frame < length - 1 for length in _LENGTHS for frame in range(length)],
    }
    labels = pa.table(rows).replace_schema_metadata({"manifest": manifest})
    sink = io.BytesIO()
    pq.write_table(labels, sink)
    return {**lerobot_v2(), "run/manifest.json": manifest, "run/labels/labels-00000.parquet": sink.getvalue()}


def _manifest() -> dict[str, Any]:
    from readers import recipe_for

    from pipeline.datasets import open_dataset

    with tempfile.TemporaryDirectory() as scratch:
        for name, content in lerobot_v2().items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        dataset = open_dataset(Path(scratch) / "dataset")
        recipe = recipe_for(dataset)
        identity = {"root": "/data", "fingerprint": dataset.fingerprint()}
    return {"run_id": recipe.run_id, "dataset": identity, "recipe": recipe.to_json()}

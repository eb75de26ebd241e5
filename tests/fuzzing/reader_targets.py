"""What is fuzzed: every reader of files that come from outside, and what nearly valid inputs of it look like.

A target's inputs are files; `read` gets their folder and does with them what a run would do first. Only a PipelineError
may come out of it. Used by the tests and by `jobs/fuzz_readers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import readers
import valid_inputs as valid
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import (
    NASTY_TEXTS,
    Files,
    json_files,
    json_lines_files,
    mutated_bytes,
    parquet_files,
    rarities,
    with_file,
)
from video_mutations import other_containers, patched_headers

Inputs = SearchStrategy[dict[str, bytes]]


@dataclass(frozen=True)
class Target:
    """Inputs as {relative path: content}, and the reader that gets the folder they are written to."""

    name: str
    valid: Files  # what the inputs are damaged copies of: this is accepted
    inputs: Inputs
    read: Callable[[Path], object]


def _damaged(kind: str, *names: str) -> Callable[[Files], Inputs]:
    """Damage of one kind to one of these files."""
    change: Callable[[bytes], SearchStrategy[bytes]] = {
        "json": lambda raw: json_files(valid.parsed(raw)),
        "jsonl": lambda raw: json_lines_files(valid.parsed_lines(raw)),
        "parquet": lambda raw: parquet_files(valid.table(raw)),
        "video": lambda raw: st.one_of(mutated_bytes(raw), rarities(raw), other_containers(raw)),
        "video_header": patched_headers,
    }[kind]
    return lambda files: st.one_of(*(with_file(files, name, change(files[name])) for name in names))


def _safetensors(files: Files) -> Inputs:
    raw = files["model/diffusion_pytorch_model.safetensors"]
    size = int.from_bytes(raw[:8], "little")
    header, data = valid.parsed(raw[8 : 8 + size]), raw[8 + size :]

    def joined(head: bytes, length: int | None = None) -> bytes:
        return (len(head) if length is None else length).to_bytes(8, "little") + head + data

    lengths = st.sampled_from((0, 1, 7, 2**20, 100_000_001, 2**32, 2**63 - 1, 2**64 - 1)) | st.integers(0, 2 * size)
    heads = json_files(header)
    changed = st.one_of(
        heads.map(joined),
        heads.map(joined),
        st.builds(joined, st.just(raw[8 : 8 + size]), lengths),
        mutated_bytes(raw),
    )
    return with_file(files, "model/diffusion_pytorch_model.safetensors", changed)


def _shard_index(files: Files) -> Inputs:
    name = "model/diffusion_pytorch_model.safetensors.index.json"
    index = valid.parsed(files[name])
    elsewhere = st.sampled_from(NASTY_TEXTS).map(lambda text: {"weight_map": {**index["weight_map"], "weight": text}})
    return with_file(files, name, st.one_of(json_files(index), elsewhere.map(valid.as_json)))


def _tokenizer(files: Files) -> Inputs:
    folder = "checkpoint/text_tokenizer"
    template = f"{folder}/chat_template.jinja"
    templates = st.one_of(st.sampled_from(valid.ODD_TEMPLATES), mutated_bytes(files[template]))
    return st.one_of(
        _damaged("json", f"{folder}/tokenizer.json", f"{folder}/tokenizer_config.json")(files),
        with_file(files, template, templates),
    )


def _yaml(files: Files) -> Inputs:
    structured = json_files(valid.SETTINGS)  # JSON is YAML
    damaged = mutated_bytes(files["config.yaml"])
    text = st.one_of(damaged, st.sampled_from(valid.ODD_YAML), structured, structured)
    return with_file(files, "config.yaml", text)


def _command_line(files: Files) -> Inputs:
    names = st.sampled_from(valid.flag_names()) | st.text(max_size=8)
    values = st.sampled_from((*NASTY_TEXTS, *valid.ODD_VALUES)) | st.text(max_size=8)
    flag = st.one_of(
        st.builds(lambda name, value: [f"--{name}", value], names, values),
        st.builds(lambda name, value: [f"--{name}={value}"], names, values),
        names.map(lambda name: [f"--{name}"]),
        values.map(lambda value: [value]),
    )
    arguments = st.lists(flag, max_size=4).map(lambda flags: [part for parts in flags for part in parts])
    return with_file(files, "arguments.json", arguments.map(valid.as_json))


_FRONT = "observation.images.front"
_CHECKPOINT_CONFIGS = ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")

# Name → valid files, how they are damaged, and what reads them.
_TARGETS: Mapping[str, tuple[Callable[[], Files], Callable[[Files], Inputs], Callable[[Path], object]]] = {
    "lerobot_v3_info": (valid.lerobot_v3, _damaged("json", "dataset/meta/info.json"), readers.read_dataset),
    "lerobot_v3_episodes": (
        valid.lerobot_v3,
        _damaged("parquet", "dataset/meta/episodes/chunk-000/file-000.parquet"),
        readers.read_dataset,
    ),
    "lerobot_v3_data": (
        valid.lerobot_v3,
        _damaged("parquet", "dataset/data/chunk-000/file-000.parquet"),
        readers.read_recordings,
    ),
    "lerobot_v3_video": (
        valid.lerobot_v3,
        _damaged("video", f"dataset/videos/{_FRONT}/chunk-000/file-000.mp4"),
        readers.read_dataset,
    ),
    "lerobot_v2_info": (valid.lerobot_v2, _damaged("json", "dataset/meta/info.json"), readers.read_dataset),
    "lerobot_v2_episodes": (valid.lerobot_v2, _damaged("jsonl", "dataset/meta/episodes.jsonl"), readers.read_dataset),
    "lerobot_v2_data": (
        valid.lerobot_v2,
        _damaged("parquet", "dataset/data/chunk-000/episode_000000.parquet"),
        readers.read_recordings,
    ),
    "captions": (valid.video_folder, _damaged("jsonl", "dataset/captions.jsonl"), readers.read_dataset),
    "video_bytes": (valid.video_folder, _damaged("video", "dataset/a.mp4"), readers.read_dataset),
    "video_header": (valid.video_folder, _damaged("video_header", "dataset/a.mp4"), readers.read_dataset),
    "action_file": (valid.action_files, _damaged("json", "shaped.json", "chunks.json"), readers.read_action_files),
    "action_statistics": (valid.statistics, _damaged("json", "flat.json", "nested.json"), readers.read_statistics),
    "yaml_config": (lambda: {"config.yaml": valid.YAML}, _yaml, readers.read_config),
    "command_line": (lambda: {"arguments.json": b"[]"}, _command_line, readers.read_command_line),
    "checkpoint_config": (
        valid.checkpoint,
        _damaged("json", *(f"checkpoint/{name}" for name in _CHECKPOINT_CONFIGS)),
        readers.read_checkpoint,
    ),
    "text_tokenizer": (valid.text_tokenizer, _tokenizer, readers.read_tokenizer),
    "safetensors_header": (valid.weights, _safetensors, readers.read_weights),
    "safetensors_index": (valid.sharded_weights, _shard_index, readers.read_weights),
    "baseline_metrics": (valid.baseline, _damaged("json", "metrics.json"), readers.read_baseline_and_compare),
    "label_run_manifest": (valid.label_run, _damaged("json", "run/manifest.json"), readers.open_label_run),
    "label_run_labels": (
        valid.label_run,
        _damaged("parquet", "run/labels/labels-00000.parquet"),
        readers.open_label_run,
    ),
}
TARGET_NAMES = tuple(_TARGETS)


def make_target(name: str) -> Target:
    """Encodes the valid files that the inputs are made of, so it takes a moment."""
    make_files, damage, read = _TARGETS[name]
    files = make_files()
    return Target(name, files, damage(files), read)

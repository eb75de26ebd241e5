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
    json_files,
    json_lines_files,
    mutated_bytes,
    parquet_files,
    rarities,
    with_file,
)
from video_mutations import other_containers, patched_headers


@dataclass(frozen=True)
class Target:
    """Inputs as {relative path: content}, and the reader that gets the folder they are written to."""

    name: str
    inputs: SearchStrategy[dict[str, bytes]]
    read: Callable[[Path], object]


def _dataset_file(files: Mapping[str, bytes], name: str, kind: str) -> SearchStrategy[dict[str, bytes]]:
    change = {
        "json": lambda raw: json_files(valid.parsed(raw)),
        "jsonl": lambda raw: json_lines_files(valid.parsed_lines(raw)),
        "parquet": lambda raw: parquet_files(valid.table(raw)),
        "video": lambda raw: st.one_of(mutated_bytes(raw), rarities(raw), other_containers(raw)),
        "video_header": patched_headers,
    }[kind]
    return with_file(files, name, change(files[name]))


def _lerobot_v3(name: str, kind: str) -> Callable[[], SearchStrategy[dict[str, bytes]]]:
    return lambda: _dataset_file(valid.lerobot_v3(), name, kind)


def _lerobot_v2(name: str, kind: str) -> Callable[[], SearchStrategy[dict[str, bytes]]]:
    return lambda: _dataset_file(valid.lerobot_v2(), name, kind)


def _video_folder(name: str, kind: str) -> Callable[[], SearchStrategy[dict[str, bytes]]]:
    return lambda: _dataset_file(valid.video_folder(), name, kind)


def _json(files: Callable[[], Mapping[str, bytes]], *names: str) -> Callable[[], SearchStrategy[dict[str, bytes]]]:
    def inputs() -> SearchStrategy[dict[str, bytes]]:
        made = files()
        return st.one_of(*(with_file(made, name, json_files(valid.parsed(made[name]))) for name in names))

    return inputs


def _safetensors() -> SearchStrategy[dict[str, bytes]]:
    made = valid.weights()
    raw = made["model/diffusion_pytorch_model.safetensors"]
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
    return with_file(made, "model/diffusion_pytorch_model.safetensors", changed)


def _shard_index() -> SearchStrategy[dict[str, bytes]]:
    made = valid.sharded_weights()
    name = "model/diffusion_pytorch_model.safetensors.index.json"
    index = valid.parsed(made[name])
    elsewhere = st.sampled_from(NASTY_TEXTS).map(lambda text: {"weight_map": {**index["weight_map"], "weight": text}})
    return with_file(made, name, st.one_of(json_files(index), elsewhere.map(valid.as_json)))


def _labels() -> SearchStrategy[dict[str, bytes]]:
    return _dataset_file(valid.label_run(), "run/labels/labels-00000.parquet", "parquet")


def _tokenizer() -> SearchStrategy[dict[str, bytes]]:
    made = {name: raw for name, raw in valid.checkpoint().items() if name.startswith("checkpoint/text_tokenizer/")}
    folder = "checkpoint/text_tokenizer"
    names = (f"{folder}/tokenizer.json", f"{folder}/tokenizer_config.json")
    template = f"{folder}/chat_template.jinja"
    templates = st.one_of(st.sampled_from(valid.ODD_TEMPLATES), mutated_bytes(made[template]))
    return st.one_of(
        *(with_file(made, name, json_files(valid.parsed(made[name]))) for name in names),
        with_file(made, template, templates),
    )


def _yaml() -> SearchStrategy[dict[str, bytes]]:
    structured = json_files(valid.SETTINGS)  # JSON is YAML
    text = st.one_of(mutated_bytes(valid.YAML), st.sampled_from(valid.ODD_YAML), structured, structured)
    return text.map(lambda content: {"config.yaml": content})


def _command_line() -> SearchStrategy[dict[str, bytes]]:
    names = st.sampled_from(valid.flag_names()) | st.text(max_size=8)
    values = st.sampled_from((*NASTY_TEXTS, *valid.ODD_VALUES)) | st.text(max_size=8)
    flag = st.one_of(
        st.builds(lambda name, value: [f"--{name}", value], names, values),
        st.builds(lambda name, value: [f"--{name}={value}"], names, values),
        names.map(lambda name: [f"--{name}"]),
        values.map(lambda value: [value]),
    )
    arguments = st.lists(flag, max_size=4).map(lambda flags: [part for parts in flags for part in parts])
    return arguments.map(lambda chosen: {"arguments.json": valid.as_json(chosen)})


_V3_VIDEO = "dataset/videos/observation.images.front/chunk-000/file-000.mp4"
_V2_DATA = "dataset/data/chunk-000/episode_000000.parquet"

# Name → how its inputs are made, and what reads them.
_TARGETS: Mapping[str, tuple[Callable[[], SearchStrategy[dict[str, bytes]]], Callable[[Path], object]]] = {
    "lerobot_v3_info": (_lerobot_v3("dataset/meta/info.json", "json"), readers.read_dataset),
    "lerobot_v3_episodes": (
        _lerobot_v3("dataset/meta/episodes/chunk-000/file-000.parquet", "parquet"),
        readers.read_dataset,
    ),
    "lerobot_v3_data": (_lerobot_v3("dataset/data/chunk-000/file-000.parquet", "parquet"), readers.read_recordings),
    "lerobot_v3_video": (_lerobot_v3(_V3_VIDEO, "video"), readers.read_dataset),
    "lerobot_v2_info": (_lerobot_v2("dataset/meta/info.json", "json"), readers.read_dataset),
    "lerobot_v2_episodes": (_lerobot_v2("dataset/meta/episodes.jsonl", "jsonl"), readers.read_dataset),
    "lerobot_v2_data": (_lerobot_v2(_V2_DATA, "parquet"), readers.read_recordings),
    "captions": (_video_folder("dataset/captions.jsonl", "jsonl"), readers.read_dataset),
    "video_bytes": (_video_folder("dataset/a.mp4", "video"), readers.read_dataset),
    "video_header": (_video_folder("dataset/a.mp4", "video_header"), readers.read_dataset),
    "action_file": (_json(valid.action_files, "shaped.json", "chunks.json"), readers.read_action_files),
    "action_statistics": (_json(valid.statistics, "flat.json", "nested.json"), readers.read_statistics),
    "yaml_config": (_yaml, readers.read_config),
    "command_line": (_command_line, readers.read_command_line),
    "checkpoint_config": (
        _json(
            valid.checkpoint,
            "checkpoint/transformer/config.json",
            "checkpoint/vae/config.json",
            "checkpoint/scheduler/scheduler_config.json",
        ),
        readers.read_checkpoint,
    ),
    "safetensors_header": (_safetensors, readers.read_weights),
    "safetensors_index": (_shard_index, readers.read_weights),
    "baseline_metrics": (_json(valid.baseline, "metrics.json"), readers.read_baseline_and_compare),
    "label_run_manifest": (_json(valid.label_run, "run/manifest.json"), readers.open_label_run),
    "label_run_labels": (_labels, readers.open_label_run),
    "text_tokenizer": (_tokenizer, readers.read_tokenizer),
}
TARGET_NAMES = tuple(_TARGETS)


def make_target(name: str) -> Target:
    """Encodes the valid files that the inputs are made of, so it takes a moment."""
    inputs, read = _TARGETS[name]
    return Target(name, inputs(), read)

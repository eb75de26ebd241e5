"""A segment's key is a fingerprint of what it reads and of every setting that changes a label, and of nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DatasetConfig, EngineConfig, LabelConfig, RayConfig, settings_of
from pipeline.cosmos3.config import checkpoint_fingerprint
from pipeline.labelling import prepare
from pipeline.plan import Segment

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_v3

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
DECLARED = {name: setting.metadata["changes_labels"] for name, setting in settings_of(LabelConfig)}

# Another value for every setting there is. Where a value needs others to fit, they are given to both sides.
OTHER: dict[str, Any] = {
    "dataset.format": "lerobot",
    "dataset.cameras": (WRIST,),
    "dataset.timebase": "native",
    "engine.num_inference_steps": 3,
    "engine.guidance_scale": 2.0,
    "engine.flow_shift": 5.0,
    "engine.use_karras_sigmas": True,
    "engine.seed": 1,
    "engine.dtype": "bfloat16",
    "engine.device": "cuda",
    "engine.batch_size": 3,
    "engine.text_cache_mib": 1,
    "ray.address": "ray://elsewhere:10001",
    "ray.num_engines": 2,
    "ray.engine_resource": "engine",
    "ray.num_loaders": 2,
    "ray.memory_budget_mib": 100,
    "embodiment": "bridge_orig_lerobot",
    "raw_action_dim": 7,
    "action_normalization": "minmax",
    "action_chunk_size": 8,
    "fps": 7.5,
    "image_size": 480,
    "prompt_format": "plain",
    "view_point": "wrist_view",
    "retry_failed": True,
    "max_failed_fraction": 0.5,
    "grace_s": 1.0,
    "log_format": "json",
    "dry_run": False,
    "max_segment_mib": 64,
}
# These are paths, or choose among episodes: tests of their own.
ELSEWHERE = {"dataset.root", "dataset.episodes", "engine.checkpoint", "action_stats_path", "output_dir"}
NEEDS: dict[str, dict[str, Any]] = {
    "dataset.timebase": {"fps": 5.0},
    "embodiment": {"fps": 15.0, "view_point": "ego_view"},
    "raw_action_dim": {"action_normalization": "none"},
}


@pytest.fixture(scope="module")
def base(tiny_checkpoint, tmp_path_factory) -> LabelConfig:
    folder = tmp_path_factory.mktemp("identity")
    root = make_v3(folder / "dataset", [40, 24], per_file=1, codec="libx264").root
    stats = folder / "stats.json"
    fields = {"q01": -1.0, "q99": 1.0, "min": -2.0, "max": 2.0}
    stats.write_text(json.dumps({name: [value] * 10 for name, value in fields.items()}))
    return LabelConfig(
        dataset=DatasetConfig(root=str(root), cameras=(FRONT,)),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint), dtype="float32", device="cpu"),
        ray=RayConfig(),
        action_stats_path=str(stats),
        image_size=256,
        max_segment_mib=1,
        output_dir=str(folder / "out"),
        dry_run=True,
    )


def with_setting(config: LabelConfig, name: str, value: Any) -> LabelConfig:
    group, _, field = name.rpartition(".")
    if not group:
        return replace(config, **{field: value})
    return replace(config, **{group: replace(getattr(config, group), **{field: value})})


def planned(config: LabelConfig) -> tuple[Segment, ...]:
    return prepare(replace(config, dry_run=True)).plan.segments


def keys(config: LabelConfig) -> list[str]:
    return [segment.key for segment in planned(config)]


def test_every_setting_is_tried():
    """A new setting has to be declared on one side, and shown to be there."""
    assert set(OTHER) | ELSEWHERE == set(DECLARED)


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_changes_all_keys_or_none(base, name):
    for needed, value in NEEDS.get(name, {}).items():
        base = with_setting(base, needed, value)
    before, after = keys(base), keys(with_setting(base, name, OTHER[name]))
    assert len(set(before)) == len(before) >= 2
    if DECLARED[name]:
        assert not set(before) & set(after)
    else:
        assert before == after


def test_a_choice_of_episodes_leaves_their_keys(base):
    chosen = replace(base, dataset=replace(base.dataset, episodes=(1,)))
    assert keys(chosen) == [segment.key for segment in planned(base) if segment.episode_index == 1]


def test_content_counts_and_not_where_it_lies(base, tmp_path):
    """Dataset, checkpoint and statistics copied elsewhere are the same; results elsewhere are, too."""
    shutil.copytree(base.dataset.root, tmp_path / "dataset")
    shutil.copytree(base.engine.checkpoint, tmp_path / "checkpoint")
    shutil.copy(base.action_stats_path, tmp_path / "copied.json")
    moved = replace(
        base,
        dataset=replace(base.dataset, root=str(tmp_path / "dataset")),
        engine=replace(base.engine, checkpoint=str(tmp_path / "checkpoint")),
        action_stats_path=str(tmp_path / "copied.json"),
        output_dir=str(tmp_path / "out"),
    )
    assert keys(moved) == keys(base)


def test_other_weights_and_other_statistics_are_other_keys(base, tmp_path):
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert checkpoint_fingerprint(other) != checkpoint_fingerprint(Path(base.engine.checkpoint))
    assert not set(keys(with_setting(base, "engine.checkpoint", str(other)))) & set(keys(base))
    stats = json.loads(Path(base.action_stats_path).read_text()) | {"q99": [1.5] * 10}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    assert not set(keys(replace(base, action_stats_path=str(tmp_path / "stats.json")))) & set(keys(base))


def test_another_video_changes_the_keys_of_its_episode_alone(base, tmp_path):
    root = shutil.copytree(base.dataset.root, tmp_path / "dataset")
    [video, *_] = sorted((root / "videos" / FRONT).rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    content[len(content) // 2] ^= 0xFF
    video.write_bytes(content)
    before, after = planned(base), planned(with_setting(base, "dataset.root", str(root)))
    changed = {ours.episode_index for ours, theirs in zip(before, after, strict=True) if ours.key != theirs.key}
    assert changed == {0}


def test_two_checkpoints_see_the_same_noise(base, tmp_path):
    """What differs between their labels is theirs."""
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    other = with_setting(base, "engine.checkpoint", str(write_tiny_checkpoint(tmp_path / "other", seed=1)))
    assert [one.input_digest for one in planned(base)] == [two.input_digest for two in planned(other)]
    assert len({one.input_digest for one in planned(base)}) == 2, "an episode's windows share it, and no two episodes"

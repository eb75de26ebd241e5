"""Settings: YAML and flags, refusals that name the fix, and which of them change a label."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.command_line import parse_config
from pipeline.config import (
    DatasetConfig,
    EngineConfig,
    LabelConfig,
    RayConfig,
    all_settings,
    label_settings,
)
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
REAL_RUN = ["--dataset.root", "x", "--engine.checkpoint", "y"]
HEAVY = ("torch", "ray", "diffusers", "transformers", "datasets", "lerobot")


def parse(*arguments: str) -> LabelConfig:
    return parse_config(LabelConfig, list(arguments))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


# --- YAML and flags ---


def test_nothing_given_is_the_demo_with_defaults():
    assert parse() == LabelConfig()
    assert parse().is_demo


def test_flags_win_over_yaml_and_yaml_over_defaults(yaml_file):
    path = yaml_file("image_size: 256\nengine:\n  seed: 3\n  num_inference_steps: 7\ndataset:\n  episodes: [4, 2]\n")
    config = parse("--config_path", path, "--engine.seed", "5")
    assert (config.engine.seed, config.engine.num_inference_steps, config.image_size) == (5, 7, 256)
    assert config.dataset.episodes == (4, 2)
    assert config.engine.guidance_scale == LabelConfig().engine.guidance_scale


def test_a_flag_may_carry_its_value_behind_an_equals_sign():
    config = parse("--engine.seed=4", "--dry_run=true", "--dataset.episodes=[0, 3]")
    assert (config.engine.seed, config.dry_run, config.dataset.episodes) == (4, True, (0, 3))


@pytest.mark.parametrize("arguments", [["--dry_run"], ["--dry_run", "--engine.seed", "3"], ["--dry_run", "true"]])
def test_dry_run_needs_no_value(arguments):
    assert parse(*arguments).dry_run is True
    assert parse("--dry_run", "false").dry_run is False


def test_null_is_a_value():
    assert parse("--engine.use_karras_sigmas", "null").engine.use_karras_sigmas is None
    assert parse().engine.use_karras_sigmas is False


def test_several_cameras_keep_their_order():
    assert parse("--dataset.cameras", "[b, a]").dataset.cameras == ("b", "a")


def test_one_camera_without_brackets_is_one_camera():
    """A text is a sequence of characters too: `wrist` must not become five cameras."""
    assert parse("--dataset.cameras", "observation.images.wrist").dataset.cameras == ("observation.images.wrist",)


def test_every_shipped_config_parses():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = parse("--config_path", str(path), "--dataset.root", "x", "--action_stats_path", "stats.json")
        assert config.dataset.root == "x", path
        assert not config.is_demo, path


# --- refusals ---


def test_unknown_flag_names_the_closest():
    with pytest.raises(ConfigError, match=r"--engine\.sed\. Did you mean 'engine\.seed'"):
        parse("--engine.sed", "1")
    with pytest.raises(ConfigError, match=r"Did you mean 'image_size'"):
        parse("--image_sise=480")


@pytest.mark.parametrize(
    ("text", "closest"),
    [
        ("image_sizes: 480\n", "image_size"),
        ("engine:\n  sed: 1\n", "engine.seed"),
        ("dataset:\n  camera: [a]\n", "dataset.cameras"),
    ],
)
def test_unknown_yaml_key_names_the_closest(yaml_file, text, closest):
    with pytest.raises(ConfigError, match=f"Did you mean '{closest}'"):
        parse("--config_path", yaml_file(text))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--engine.seed", "abc"],
        ["--engine.seed", "1.5"],
        ["--engine.flow_shift", "high"],
        ["--dry_run", "maybe"],
        ["--dataset.episodes", "first"],
    ],
)
def test_wrong_type_names_the_setting(arguments):
    with pytest.raises(ConfigError, match=arguments[0].removeprefix("--")):
        parse(*arguments)


def test_wrong_type_in_yaml_names_the_setting(yaml_file):
    with pytest.raises(ConfigError, match=r"engine\.seed"):
        parse("--config_path", yaml_file("engine:\n  seed: abc\n"))


@pytest.mark.parametrize("text", ["engine: [1\n", "- 1\n- 2\n", "just words\n", "engine: 3\n"])
def test_a_file_that_is_no_yaml_mapping_is_refused(yaml_file, text):
    with pytest.raises(ConfigError):
        parse("--config_path", yaml_file(text))


def test_an_empty_file_changes_nothing(yaml_file):
    """All lines of a config may be commented out."""
    assert parse("--config_path", yaml_file("# image_size: 480\n")) == LabelConfig()


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse("--config_path", str(tmp_path / "nowhere.yaml"))


IMPOSSIBLE = [
    (DatasetConfig, {"format": "lerobt"}, "dataset.format.*'lerobot'"),
    (DatasetConfig, {"timebase": "natve"}, "dataset.timebase.*'native'"),
    (DatasetConfig, {"episodes": (0, -1)}, "dataset.episodes.*-1"),
    (EngineConfig, {"dtype": "float61"}, "engine.dtype"),
    (EngineConfig, {"device": "gpu"}, "engine.device.*cuda"),
    (EngineConfig, {"num_inference_steps": 0}, "engine.num_inference_steps must be at least 1"),
    (EngineConfig, {"batch_size": 0}, "engine.batch_size must be at least 1"),
    (EngineConfig, {"text_cache_mib": -1}, "engine.text_cache_mib must be at least 0"),
    (EngineConfig, {"flow_shift": 0.0}, "engine.flow_shift must be a number above zero"),
    (EngineConfig, {"flow_shift": float("nan")}, "engine.flow_shift"),
    (EngineConfig, {"flow_shift": float("inf")}, "engine.flow_shift"),
    (EngineConfig, {"guidance_scale": float("nan")}, "engine.guidance_scale"),
    (EngineConfig, {"guidance_scale": float("inf")}, "engine.guidance_scale"),
    (RayConfig, {"num_engines": 0}, "ray.num_engines must be at least 1"),
    (RayConfig, {"num_loaders": 0}, "ray.num_loaders must be at least 1"),
    (RayConfig, {"memory_budget_mib": 63}, "ray.memory_budget_mib must be at least 64"),
    (LabelConfig, {"embodiment": "droid_lerobt"}, "Did you mean 'droid_lerobot'"),
    (LabelConfig, {"action_normalization": "quantil"}, "action_normalization.*'quantile'"),
    (LabelConfig, {"image_size": 300}, "image_size must be one of 256, 480, 704, 720"),
    (LabelConfig, {"prompt_format": "jsn"}, "prompt_format.*'json'"),
    (LabelConfig, {"view_point": "wrist"}, "view_point.*'wrist_view'"),
    (LabelConfig, {"max_segment_mib": 0}, "max_segment_mib must be at least 1"),
    (LabelConfig, {"raw_action_dim": 0}, "raw_action_dim must be 1..64"),
    (LabelConfig, {"raw_action_dim": 65}, "raw_action_dim must be 1..64, found 65"),
    (EngineConfig, {"seed": -1}, "engine.seed must be 0 or more"),
    (LabelConfig, {"fps": 0.0}, "fps must be a number above zero"),
    (LabelConfig, {"fps": -15.0}, "fps must be a number above zero"),
    (LabelConfig, {"action_chunk_size": 6}, "action_chunk_size must be a positive multiple of 4"),
    (LabelConfig, {"action_chunk_size": 0}, "action_chunk_size must be a positive multiple of 4"),
    (LabelConfig, {"action_chunk_size": -4}, "action_chunk_size must be a positive multiple of 4"),
]


@pytest.mark.parametrize(("config_class", "values", "message"), IMPOSSIBLE, ids=[str(row[1]) for row in IMPOSSIBLE])
def test_impossible_value_is_refused_with_the_remedy(config_class, values, message):
    with pytest.raises(ConfigError, match=message):
        config_class(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size", "300"], "image_size must be one of"),
        (["--engine.num_inference_steps", "0"], "engine.num_inference_steps must be at least 1"),
        (["--dataset.episodes", "[-1]"], "dataset.episodes"),
        (["--embodiment", "droid_lerobt"], "Did you mean 'droid_lerobot'"),
        (["--dataset.root", "x"], "--engine.checkpoint"),
    ],
)
def test_impossible_value_on_the_command_line_is_a_config_error(arguments, message):
    """Only a ConfigError reaches the user as one line and exit code 2; anything else is a traceback."""
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


def test_impossible_value_in_yaml_is_a_config_error(yaml_file):
    with pytest.raises(ConfigError, match="action_chunk_size must be a positive multiple of 4"):
        parse("--config_path", yaml_file("action_chunk_size: 6\n"))


# --- demo, pairs, statistics ---


def test_half_a_run_is_refused_and_names_the_other_half():
    with pytest.raises(ConfigError, match=r"Add --engine\.checkpoint"):
        LabelConfig(dataset=DatasetConfig(root="x"))
    with pytest.raises(ConfigError, match=r"Add --dataset\.root"):
        LabelConfig(engine=EngineConfig(checkpoint="y"))


def test_a_real_run_needs_statistics_unless_normalization_is_none():
    real = {"dataset": DatasetConfig(root="x"), "engine": EngineConfig(checkpoint="y")}
    with pytest.raises(ConfigError, match="--action_stats_path FILE"):
        LabelConfig(**real)
    assert not LabelConfig(**real, action_stats_path="stats.json").is_demo
    assert not parse(*REAL_RUN, "--action_normalization", "none").is_demo


# --- which settings change a label ---


def settings_of(config_class: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for setting in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(setting.default_factory):
            yield from settings_of(setting.default_factory, f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, setting


def test_every_setting_declares_whether_it_changes_labels():
    undeclared = [
        name
        for name, setting in settings_of(LabelConfig)
        if not isinstance(setting.metadata.get("changes_labels"), bool)
    ]
    assert undeclared == []


def test_label_settings_are_exactly_the_declared_ones():
    declared = {name for name, setting in settings_of(LabelConfig) if setting.metadata["changes_labels"]}
    assert set(label_settings(LabelConfig())) == declared
    assert {"engine.seed", "engine.checkpoint", "fps", "action_stats_path", "dataset.cameras"} <= declared
    assert not declared & {"dataset.root", "output_dir", "dry_run", "engine.batch_size", "ray.num_engines"}


def test_settings_are_reported_by_their_flag_names():
    config = replace(LabelConfig(), engine=EngineConfig(seed=9), dataset=DatasetConfig(cameras=("a", "b")))
    assert set(all_settings(config)) == {name for name, _ in settings_of(LabelConfig)}
    assert all_settings(config)["engine.seed"] == label_settings(config)["engine.seed"] == 9
    assert all_settings(config)["dataset.cameras"] == ["a", "b"]


def test_a_typo_is_answered_without_importing_anything_heavy():
    """Importing the model's libraries takes many seconds; a mistyped flag must not wait for them."""
    code = (
        "import sys; from pipeline.command_line import parse_config; from pipeline.config import LabelConfig; "
        f"parse_config(LabelConfig, {[*REAL_RUN, '--action_stats_path', 's.json']!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_choices_are_those_of_the_rooms_that_make_them():
    """The config repeats them, because importing those rooms takes seconds."""
    from pipeline import config, datasets, views

    assert tuple(str(size) for size in config.IMAGE_SIZES) == tuple(views.RESOLUTION_TIERS)
    assert datasets._FORMATS == config.DATASET_FORMATS


def test_a_file_may_name_a_checkpoint_with_a_slash_and_say_null(yaml_file):
    config = parse(
        "--config_path", yaml_file("engine:\n  use_karras_sigmas: null\n  num_inference_steps: 4\nfps: 7.5\n")
    )
    assert (config.engine.use_karras_sigmas, config.engine.num_inference_steps, config.fps) == (None, 4, 7.5)


@pytest.mark.parametrize("text", ["video", "[video]", '["video"]'])
def test_a_single_camera_needs_no_brackets(text, yaml_file):
    assert parse("--dataset.cameras", text).dataset.cameras == ("video",)
    assert parse(f"--dataset.cameras={text}").dataset.cameras == ("video",)
    assert parse("--config_path", yaml_file(f"dataset:\n  cameras: {text}\n")).dataset.cameras == ("video",)


def test_several_episodes_may_be_separated_by_commas():
    assert parse("--dataset.episodes", "0,3").dataset.episodes == (0, 3)

"""Settings of rollouts and evaluations: the same schema, refusals that name the fix, and texts that stay as typed."""

from __future__ import annotations

import json

import pytest

from pipeline.command_line import parse_config
from pipeline.config import (
    CHAININGS,
    LPIPS_CHOICES,
    DatasetConfig,
    EngineConfig,
    EvaluationConfig,
    LabelConfig,
    PolicyConfig,
    RolloutConfig,
    RunConfig,
    all_settings,
    label_settings,
    settings_of,
)
from pipeline.errors import ConfigError

CONFIGS = [LabelConfig, RolloutConfig, PolicyConfig, EvaluationConfig]
REAL_RUN = ["--dataset.root", "x", "--engine.checkpoint", "y", "--action_stats_path", "stats.json"]


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def own_settings(config_class: type) -> dict[str, bool]:
    """Settings of this job alone, or with another default, and whether they change a result."""
    shared = dict(settings_of(RunConfig))
    return {
        name: setting.metadata["changes_labels"]
        for name, setting in settings_of(config_class)
        if name not in shared or setting.default != shared[name].default
    }


# --- which settings change a result ---


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_setting_is_on_one_side_or_the_other(config_class):
    """One that is declared nowhere would neither change a key nor be known not to."""
    declared = {name: setting.metadata.get("changes_labels") for name, setting in settings_of(config_class)}
    assert {type(side) for side in declared.values()} == {bool}
    config = config_class()
    assert set(all_settings(config)) == set(declared)
    assert set(label_settings(config)) == {name for name, changes in declared.items() if changes}
    assert json.loads(json.dumps(all_settings(config))) == all_settings(config)


def test_the_jobs_own_settings_are_on_these_sides():
    """What is drawn more of (samples, episodes, tasks) has keys of its own, so it changes none that are there."""
    assert own_settings(RolloutConfig) == {
        "output_dir": False,
        "actions": True,
        "chaining": True,
        "num_samples": False,
        "lerobot_dataset": False,
    }
    assert own_settings(PolicyConfig) == {
        "output_dir": False,
        "task": False,
        "tasks_path": False,
        "num_chunks": True,
        "num_samples": False,
        "lerobot_dataset": False,
    }
    assert own_settings(EvaluationConfig) == {
        "output_dir": False,
        "held_out_fraction": False,
        "held_out_seed": False,
        "chaining": True,
        "num_samples": True,
        "lpips": True,
        "gallery_episodes": True,
        "max_segment_mib": True,
        "scenes_path": False,
        "baseline": False,
        "fail_below": False,
    }


def test_jobs_do_not_share_an_output_folder():
    assert len({config_class().output_dir for config_class in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_job_without_input_is_the_demo_and_with_half_of_it_is_refused(config_class):
    assert parse_config(config_class, []) == config_class()
    assert config_class().is_demo
    assert not parse_config(config_class, REAL_RUN).is_demo
    with pytest.raises(ConfigError, match=r"Add --engine\.checkpoint"):
        config_class(dataset=DatasetConfig(root="x"))
    with pytest.raises(ConfigError, match="--action_stats_path FILE"):
        config_class(dataset=DatasetConfig(root="x"), engine=EngineConfig(checkpoint="y"))


# --- refusals ---


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (RolloutConfig, {"chaining": "autoregresive"}, "chaining must be one of.*Did you mean 'autoregressive'"),
        (RolloutConfig, {"num_samples": 0}, "num_samples must be at least 1, found 0"),
        (RolloutConfig, {"actions": ""}, "recorded, labels:OUTPUT_DIR or the path of an action file; found ''"),
        (RolloutConfig, {"actions": "  "}, "labels:OUTPUT_DIR"),
        (RolloutConfig, {"actions": "labels:"}, "labels:OUTPUT_DIR.*found 'labels:'"),
        (RolloutConfig, {"actions": "labels: "}, "labels:OUTPUT_DIR"),
        (RolloutConfig, {"action_chunk_size": 6}, "multiple of 4"),
        (PolicyConfig, {"num_chunks": 0}, "num_chunks must be at least 1"),
        (PolicyConfig, {"num_samples": -1}, "num_samples must be at least 1, found -1"),
        (PolicyConfig, {"task": "Lift.", "tasks_path": "tasks.txt"}, "either --task or --tasks_path"),
        (EvaluationConfig, {"chaining": "teacher"}, "chaining must be one of.*'teacher_forced'"),
        (EvaluationConfig, {"lpips": "on"}, "lpips must be one of auto, download, none"),
        (EvaluationConfig, {"num_samples": 0}, "num_samples must be at least 1"),
        (EvaluationConfig, {"gallery_episodes": -1}, "gallery_episodes must be at least 0"),
        (EvaluationConfig, {"max_segment_mib": 0}, "max_segment_mib must be at least 1"),
        (EvaluationConfig, {"held_out_fraction": 1.01}, "held_out_fraction must be within 0..1, found 1.01"),
        (EvaluationConfig, {"held_out_fraction": -0.1}, "held_out_fraction must be within 0..1"),
        (EvaluationConfig, {"held_out_fraction": float("nan")}, "held_out_fraction must be within 0..1, found nan"),
        (EvaluationConfig, {"held_out_seed": -1}, "held_out_seed must be 0 or more, found -1"),
        (EvaluationConfig, {"held_out_seed": 2**64}, "held_out_seed must be 0 or more"),
    ],
    ids=str,
)
def test_impossible_value_is_refused_with_the_remedy(config_class, values, message):
    with pytest.raises(ConfigError, match=message):
        config_class(**values)


def test_the_bounds_themselves_are_possible():
    for chaining in CHAININGS:
        assert RolloutConfig(chaining=chaining).chaining == EvaluationConfig(chaining=chaining).chaining == chaining
    for lpips in LPIPS_CHOICES:
        assert EvaluationConfig(lpips=lpips).lpips == lpips
    for fraction in (0.0, 1.0):
        assert EvaluationConfig(held_out_fraction=fraction, gallery_episodes=0).held_out_fraction == fraction


@pytest.mark.parametrize(
    ("config_class", "arguments", "message"),
    [
        (RolloutConfig, ["--actions", "labels:"], r"labels:OUTPUT_DIR.*found 'labels:'"),
        (RolloutConfig, ["--actions="], r"labels:OUTPUT_DIR"),
        (RolloutConfig, ["--chainig", "teacher_forced"], "Unknown setting --chainig. Did you mean 'chaining'"),
        (RolloutConfig, ["--num_samples", "two"], "num_samples"),
        (RolloutConfig, ["--task", "Lift."], "Unknown setting --task"),
        (PolicyConfig, ["--task", "Lift.", "--tasks_path", "t.txt"], "either --task or --tasks_path"),
        (PolicyConfig, ["--actions", "recorded"], "Unknown setting --actions"),
        (EvaluationConfig, ["--held_out_fraction", "2"], "held_out_fraction must be within"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_config_error(config_class, arguments, message):
    """Only a ConfigError reaches the user as one line and exit code 2; anything else is a traceback."""
    with pytest.raises(ConfigError, match=message):
        parse_config(config_class, arguments)


# --- texts ---

AWKWARD = [
    "Put: the cup on the plate",
    "Lift cup #3",
    "- lift",
    "yes",
    "123",
    "1e3",
    "[a, b]",
    "{cup}",
    'it\'s "here" \\ there',
    "Öffne die Schublade – schnell!",
    "Lift:",
    "a=b",
    "~",
    "&cup *cup",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_an_instruction_arrives_as_it_was_typed(text):
    """Values are read as YAML, to which a colon, a hash or a bracket means something else."""
    assert parse_config(PolicyConfig, ["--task", text]).task == text
    assert parse_config(PolicyConfig, [f"--task={text}"]).task == text


@pytest.mark.parametrize("text", AWKWARD)
def test_an_instruction_in_yaml_arrives_as_yaml_says(yaml_file, text):
    path = yaml_file(f"task: {json.dumps(text, ensure_ascii=False)}\n")
    assert parse_config(PolicyConfig, ["--config_path", path]).task == text


def test_paths_arrive_as_they_were_typed():
    arguments = ["--actions", "labels:runs/#2: again", "--engine.checkpoint", "{y}", "--output_dir", "12"]
    config = parse_config(RolloutConfig, [*arguments, "--dataset.root", "x", "--action_normalization", "none"])
    assert (config.actions, config.engine.checkpoint, config.output_dir) == ("labels:runs/#2: again", "{y}", "12")


def test_null_stays_nothing():
    config = parse_config(EvaluationConfig, ["--baseline", "null", "--dataset.root", "null"])
    assert config.baseline is None
    assert config.is_demo


# --- YAML and flags ---


def test_yaml_knows_the_new_settings(yaml_file):
    path = yaml_file(
        "actions: labels:outputs/label_inverse\nchaining: teacher_forced\nnum_samples: 3\nlerobot_dataset: false\n"
        "engine:\n  seed: 3\n"
    )
    config = parse_config(RolloutConfig, ["--config_path", path, "--num_samples", "4"])
    assert (config.actions, config.chaining, config.engine.seed) == (
        "labels:outputs/label_inverse",
        "teacher_forced",
        3,
    )
    assert (config.num_samples, config.lerobot_dataset) == (4, False)


def test_yaml_of_a_policy_and_an_evaluation(yaml_file):
    dreams = parse_config(PolicyConfig, ["--config_path", yaml_file("tasks_path: tasks.txt\nnum_chunks: 5\n")])
    assert (dreams.task, dreams.tasks_path, dreams.num_chunks) == ("", "tasks.txt", 5)
    path = yaml_file(
        "held_out_fraction: 0.03\nheld_out_seed: 7\nlpips: none\ngallery_episodes: 0\nbaseline: metrics.json\n"
        "fail_below: [psnr=20, obedience=1]\ndataset:\n  episodes: [3, 1]\n"
    )
    config = parse_config(EvaluationConfig, ["--config_path", path])
    assert (config.held_out_fraction, config.held_out_seed, config.lpips) == (0.03, 7, "none")
    assert (config.gallery_episodes, config.baseline) == (0, "metrics.json")
    assert (config.fail_below, config.dataset.episodes) == (("psnr=20", "obedience=1"), (3, 1))


@pytest.mark.parametrize("text", ["psnr=20", "[psnr=20]"])
def test_a_single_threshold_needs_no_brackets(text):
    assert parse_config(EvaluationConfig, ["--fail_below", text]).fail_below == ("psnr=20",)
    assert parse_config(EvaluationConfig, [f"--fail_below={text}"]).fail_below == ("psnr=20",)


def test_switches_need_no_value():
    assert parse_config(RolloutConfig, ["--lerobot_dataset"]).lerobot_dataset is True
    assert parse_config(RolloutConfig, ["--lerobot_dataset", "false", "--dry_run"]).lerobot_dataset is False


@pytest.mark.parametrize(
    ("config_class", "text"),
    [(PolicyConfig, "chaining: teacher_forced\n"), (RolloutConfig, "task: Lift.\n"), (LabelConfig, "num_samples: 2\n")],
)
def test_a_setting_of_another_job_is_not_passed_over(yaml_file, config_class, text):
    with pytest.raises(ConfigError, match=f"Unknown setting --{text.split(':')[0]}"):
        parse_config(config_class, ["--config_path", yaml_file(text)])

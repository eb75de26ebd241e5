"""What settings can say, and what they cannot do: a value is a value, whatever it looks like."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.command_line import parse_config
from pipeline.config import EvaluationConfig, LabelConfig, PolicyConfig
from pipeline.errors import ConfigError


def parse(*arguments: str) -> LabelConfig:
    return parse_config(LabelConfig, list(arguments))


@pytest.fixture
def yaml_file(tmp_path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("text", ["include {path}", "included", "!include {path}", "${{oc.env:HOME}}", "@{path}"])
def test_a_text_is_never_opened_as_a_file(tmp_path, yaml_file, text):
    """draccus, left alone, opens what follows `include`."""
    secret = tmp_path / "secret.yaml"
    secret.write_text("stolen: 1\n")
    value = text.format(path=secret)
    assert parse_config(PolicyConfig, ["--task", value]).task == value
    assert parse_config(PolicyConfig, [f"--task={value}"]).task == value
    path = yaml_file(f"task: {value!r}\n")
    assert parse_config(PolicyConfig, ["--config_path", path]).task == value


@pytest.mark.parametrize("value", ["[!include {path}]", "!include {path}"])
def test_no_list_is_read_from_another_file(tmp_path, yaml_file, value):
    secret = tmp_path / "secret.yaml"
    secret.write_text("stolen")
    value = value.format(path=secret)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse("--dataset.cameras", value)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse("--config_path", yaml_file(f"dataset:\n  cameras: {value}\n"))


@pytest.mark.parametrize("text", ["--dry_run", "--engine.seed=5", "--help", "-h", "--", "a: b #c", "{"])
def test_a_text_in_a_file_is_no_flag(yaml_file, text):
    config = parse_config(PolicyConfig, ["--config_path", yaml_file(f"task: {text!r}\n")])
    assert config == PolicyConfig(task=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("help: true\n", "Unknown setting --help"),
        ("config_path: config.yaml\n", "Unknown setting --config_path"),
        ("dataset: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("engine:\n  seed: " + "9" * 5000, "is not valid YAML"),
        ("dataset.root: 2001-99-99\n", "is not valid YAML"),
        ("a: &a [*a]\n", "more than 100,000 values"),
        ("a: &a {b: *a}\n", "more than 100,000 values"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
            "dataset: {cameras: [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d, *d]}\n",
            "more than 100,000 values",
        ),
        ("[" * 100_000, "is not valid YAML"),
        ("dataset: {root: 'a\x00b'}\n", "is not valid YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_that_does_more_than_say_settings_is_refused(yaml_file, text, message):
    with pytest.raises(ConfigError, match=message):
        parse("--config_path", yaml_file(text))


@pytest.mark.parametrize("path", ["x" * 300, "a\x00b", "/", ""])
def test_a_config_path_that_is_none_is_refused(path):
    with pytest.raises(ConfigError, match="expected a YAML file, found none that can be read"):
        parse("--config_path", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset.root"], "--dataset.root needs a value"),
        (["--dataset.root", "--dry_run"], "--dataset.root needs a value"),
        (["--dataset.cameras", "a", "b"], "Expected --name value, found 'b' without a name"),
        (["here"], "found 'here' without a name"),
        (["--"], "Unknown setting --"),
        (["--image_size", "[" * 2000], "is not valid YAML"),
    ],
)
def test_a_command_line_that_is_none_is_a_config_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


def test_values_arrive_as_they_were_meant(yaml_file):
    assert parse("--output_dir", "2001-01-01").output_dir == "2001-01-01"
    assert parse("--config_path", yaml_file("output_dir: 2001-01-01\n")).output_dir == "2001-01-01"
    assert parse("--config_path", yaml_file("output_dir: 5\n")).output_dir == "5"
    assert parse("--output_dir=a=b").output_dir == "a=b"
    assert parse("--output_dir", "a", "--output_dir", "b").output_dir == "b", "the later one counts"
    assert parse("--config_path", yaml_file("image_size: 256\n"), "--image_size", "704").image_size == 704
    assert parse("--image_size", "704", "--config_path", yaml_file("image_size: 256\n")).image_size == 704
    assert parse("--config_path", yaml_file("dataset:\n  cameras: [\U0001f600]\n")).dataset.cameras == ("\U0001f600",)
    assert parse("--ray.address", "null").ray.address is None
    assert parse_config(EvaluationConfig, ["--fail_below", "psnr=20"]).fail_below == ("psnr=20",)


def test_help_is_printed(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as exited:
            parse(flag)
        assert exited.value.code == 0
        assert "--dataset.root" in capsys.readouterr().out

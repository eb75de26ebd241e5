"""No input is ever run as code: nothing unpickles, evaluates or hands text to a shell, but for what is named here."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("pipeline", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]

UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# File → why it may name a module that unpickles.
ALLOWED = {
    "pipeline/stages/alone.py": "rows between a worker and a child of its own, over a pipe that nobody else has",
    "pipeline/stages/ward.py": "the other end of that pipe",
    "pipeline/evaluation/frames.py": "names the error that torch.load raises with weights_only",
}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "runpy.run_path"}
CALLS |= {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "np.load", "numpy.load"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def offences(source: str) -> Iterator[str]:
    """What in a module could run data, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
            case ast.ImportFrom() if (node.module or "").split(".")[0] in UNPICKLERS:
                yield f"{node.lineno}: import {node.module}"
            case ast.Call():
                yield from (f"{node.lineno}: {what}" for what in offences_of_call(node))


def offences_of_call(call: ast.Call) -> Iterator[str]:
    name, keywords = dotted(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
    if name in CALLS:
        yield name
    if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name.endswith("load_state_dict_from_url") and not is_constant(keywords.get("weights_only"), True):
        yield "load_state_dict_from_url without weights_only=True"
    if "trust_remote_code" in keywords and not is_constant(keywords["trust_remote_code"], False):
        yield "trust_remote_code"
    if name.startswith("Auto") and name.endswith(".from_pretrained") and "trust_remote_code" not in keywords:
        yield "from_pretrained without trust_remote_code=False"
    if "shell" in keywords and not is_constant(keywords["shell"], False):
        yield "shell="
    if name.startswith("subprocess.") and call.args and is_text(call.args[0]):
        yield "subprocess with a text"


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from marshal import loads", "import shelve", "eval('1')", "exec(x)", "os.system('ls')"),
        *("yaml.load(x, Loader=yaml.SafeLoader)", "np.load(path, allow_pickle=True)", "torch.load(path)"),
        *("torch.load(p, weights_only=False)", "subprocess.run('ls', check=True)", "subprocess.run(f'ls {x}')"),
        *("subprocess.run(['ls'], shell=True)", "AutoTokenizer.from_pretrained(x)", "f(trust_remote_code=True)"),
        *("AutoModel.from_pretrained(x, trust_remote_code=flag)", "load_state_dict_from_url(url)"),
    ],
)
def test_an_offence_is_seen(source):
    assert len(list(offences(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        *("model.eval()", "yaml.safe_load(x)", "torch.load(p, weights_only=True)", "subprocess.run(['ls', x])"),
        *("re.compile(x)", "AutoTokenizer.from_pretrained(x, trust_remote_code=False)", "json.loads(x)"),
    ],
)
def test_what_is_harmless_passes(source):
    assert list(offences(source)) == []


def test_no_source_runs_data():
    found = {path.relative_to(ROOT).as_posix(): list(offences(path.read_text())) for path in SOURCES}
    unexpected = {name: told for name, told in found.items() if told and name not in ALLOWED}
    assert unexpected == {}
    assert {name for name, told in found.items() if told} == set(ALLOWED), "an allowance that nobody needs any more"
    others = [told for name in ALLOWED for told in found[name] if not told.endswith("import pickle")]
    assert others == [], "an allowed module does more than it is allowed to"


class Touch:
    """Unpickling this makes the folder `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.pt", "model.ckpt", "weights.pth"])
def test_a_component_with_nothing_but_a_pickle_is_refused_by_its_name(tmp_path, name):
    from pipeline.cosmos3.loading import weight_files

    torch.save(Touch(tmp_path / "opened"), tmp_path / name)
    with pytest.raises(CheckpointError, match=f"but {name}, which would have to be unpickled. Only safetensors"):
        weight_files(tmp_path)
    assert not (tmp_path / "opened").exists()


def test_a_pickle_in_the_place_of_alexnets_weights_is_not_run(tmp_path, monkeypatch):
    """torchvision's own loading would run it."""
    from pipeline.evaluation.frames import alexnet_path, load_lpips

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    alexnet_path().parent.mkdir(parents=True)
    torch.save(Touch(tmp_path / "opened"), alexnet_path())
    with pytest.raises(ConfigError, match="expected torchvision's AlexNet weights"):
        load_lpips("auto")
    assert not (tmp_path / "opened").exists()
    torch.load(alexnet_path(), weights_only=False)
    assert (tmp_path / "opened").exists(), "else this test shows nothing"


def test_a_pickle_named_safetensors_is_not_run(tmp_path):
    from pipeline.cosmos3.loading import check_strictly

    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Touch(tmp_path / "opened")))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        check_strictly(torch.nn.Linear(1, 1), tmp_path)
    assert not (tmp_path / "opened").exists()


# ------------------------------------------------------------------------------------------- the tokenizer's own files


@pytest.fixture
def tokenizer_folder(tiny_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint / "text_tokenizer", tmp_path / "text_tokenizer"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].mkdir('{marker}') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(tokenizer_folder, tmp_path, template):
    from pipeline.cosmos3.prompt import PromptTokenizer

    text = template.replace("{marker}", str(tmp_path / "made"))
    (tokenizer_folder / "chat_template.jinja").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be used as a tokenizer"):
        PromptTokenizer.from_pretrained(tmp_path)
    assert not (tmp_path / "made").exists()


def test_code_that_a_tokenizer_brings_along_is_not_run(tokenizer_folder, tmp_path):
    from pipeline.cosmos3.prompt import PromptTokenizer

    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config))
    code = f"import os\nos.mkdir({str(tmp_path / 'made')!r})\nclass Theirs: pass\n"
    (tokenizer_folder / "theirs.py").write_text(code)
    with pytest.raises(CheckpointError, match="cannot be used as a tokenizer"):
        PromptTokenizer.from_pretrained(tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_panic_inside_the_tokenizer_is_a_refusal(tokenizer_folder, tmp_path):
    """Rust's panics are no Exception in Python, and would end a worker."""
    from pipeline.cosmos3.prompt import PromptTokenizer

    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = ".."
    (tokenizer_folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot be used as a tokenizer \\(PanicException"):
        PromptTokenizer.from_pretrained(tmp_path)

"""The walls of the house, read from the sources themselves: who imports whom, and how long things may get."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
GROUND_FLOOR = ("embodiments", "actions", "views", "errors", "fingerprint", "storage", "printable", "staging")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions; `from a import b` counts as a and a.b."""
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}:{node.lineno}: imports here are absolute"
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def trespasses(path: Path, *forbidden: str) -> list[str]:
    return sorted({name for name in imported(path) if inside(name, *forbidden)})


def files_of(*modules: str) -> list[Path]:
    found = [path for path in SOURCES if inside(module_name(path), *modules)]
    assert found, f"no file of {modules}: has it moved?"
    return found


def test_imports_inside_functions_are_seen():
    """Whether this file can see anything at all."""
    names = set(imported(ROOT / "pipeline" / "run.py"))
    assert {"pipeline.stages.on_ray", "pipeline.stages.on_ray.stream", "pathlib.Path", "time"} <= names


def offenders(paths: Iterable[Path], *forbidden: str) -> dict[str, list[str]]:
    """What each of these files imports of what it may not."""
    found = {path.relative_to(ROOT).as_posix(): trespasses(path, *forbidden) for path in paths}
    return {name: trespass for name, trespass in found.items() if trespass}


def strangers(path: Path, *allowed: str) -> list[str]:
    """What a file imports of this project beside what it may."""
    return sorted({name for name in imported(path) if inside(name, "pipeline", "jobs") and not inside(name, *allowed)})


def test_only_stages_import_ray():
    others = [path for path in SOURCES if not inside(module_name(path), "pipeline.stages")]
    assert offenders(others, "ray") == {}
    assert offenders(files_of("pipeline.stages"), "ray"), "else this test sees nothing"


def test_the_engine_knows_neither_rows_nor_cluster():
    outside = ("ray", "lerobot", "datasets", "pyarrow", "pipeline.datasets", "pipeline.outputs", "pipeline.stages")
    assert offenders(files_of("pipeline.cosmos3"), *outside) == {}


def test_datasets_stand_on_the_ground_floor_alone():
    paths = files_of("pipeline.datasets")
    assert offenders(paths, "torch", "ray", "lerobot", "transformers", "diffusers") == {}
    allowed = ("pipeline.errors", "pipeline.fingerprint", "pipeline.storage", "pipeline.datasets")
    assert {path.name: names for path in paths if (names := strangers(path, *allowed))} == {}


@pytest.mark.parametrize("name", GROUND_FLOOR)
def test_the_ground_floor_imports_nothing_above_it(name):
    paths = files_of(f"pipeline.{name}")
    allowed = tuple(f"pipeline.{other}" for other in GROUND_FLOOR)
    assert {path.name: names for path in paths if (names := strangers(path, *allowed))} == {}
    assert offenders(paths, "ray", "lerobot", "datasets", "pyarrow", "transformers", "diffusers") == {}


def test_outputs_need_no_model_and_no_cluster():
    outside = ("torch", "ray", "transformers", "diffusers", "pipeline.cosmos3", "pipeline.stages")
    assert offenders(files_of("pipeline.outputs"), *outside) == {}


def test_evaluation_looks_at_results_and_not_at_how_they_were_made():
    outside = ("ray", "transformers", "diffusers", "lerobot", "pipeline.cosmos3", "pipeline.stages", "pipeline.config")
    assert offenders(files_of("pipeline.evaluation"), *outside) == {}
    maths = ("torch", "torchmetrics", "torchvision")
    found = offenders(files_of("pipeline.evaluation"), *maths)
    assert list(found) == ["pipeline/evaluation/frames.py"], "scores can be computed again where there is no torch"


def test_nothing_depends_on_training():
    """But the demo, which fills in what a training is given."""
    others = [path for path in SOURCES if not inside(module_name(path), "pipeline.training", "jobs.train_demo")]
    assert list(offenders(others, "pipeline.training")) == ["pipeline/demo/__init__.py"]
    assert offenders(files_of("pipeline.training"), "ray", "lerobot", "pipeline.outputs", "pipeline.demo") == {}


def test_the_demo_s_world_knows_no_files_and_no_model():
    names = ("choreography", "objects", "scripted", "tabletop", "world")
    paths = files_of(*(f"pipeline.demo.{name}" for name in names))
    world = tuple(f"pipeline.demo.{name}" for name in names)
    allowed = (*world, "pipeline.actions", "pipeline.embodiments")
    found = {path.name: strangers(path, *allowed) for path in paths}
    assert not any(found.values()), found
    assert offenders(paths, "torch", "ray", "lerobot", "datasets", "pyarrow") == {}


def test_a_single_request_needs_no_cluster():
    assert offenders(files_of("pipeline.single", "pipeline.single_request"), "ray", "pipeline.stages") == {}
    assert offenders([ROOT / "jobs" / "infer_once.py"], "ray", "pipeline.stages", "pipeline.run") == {}


def test_nothing_imports_a_job():
    assert offenders(SOURCES, "jobs") == {}


def test_files_can_be_read_in_one_sitting():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_stay_short():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_every_module_says_what_it_owns():
    modules = [path for path in SOURCES if path.name != "__init__.py"]
    assert [module_name(path) for path in modules if not ast.get_docstring(parsed(path))] == []

"""Gives damaged and malicious files to every reader: `uv run jobs/fuzz_readers.py --help`.

Needs the repository with its tests and the development dependencies (`uv sync`), which have hypothesis. Every target
runs in a process of its own, so that a crash of a library is seen and counted, too. Exit code: 0 when nothing but typed
errors came out, 1 when something else did (its input is in `output_dir`), 2 when this cannot run.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import parse_config
from pipeline.errors import ConfigError, PipelineError, did_you_mean
from pipeline.printable import error_line

if TYPE_CHECKING:
    from examination import Tally

_TESTS = Path(__file__).resolve().parents[1] / "tests"
_EXAMPLES_PER_ROUND = 100
# A library that hangs outside Python hears no clock: then its process is ended from outside.
_PATIENCE_S = 180.0
_MEMORY_BOUND_BYTES = 8 * 1024**3
_CRASHED = "CrashedOrHung"


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """How much is tried."""

    # Inputs for each target.
    examples: int = 1000
    # Seconds after which a target draws no further inputs.
    seconds: float = 120.0
    # Names of targets; empty: all.
    targets: tuple[str, ...] = ()
    # Another seed draws other inputs.
    seed: int = 0
    # Where inputs go that something untyped came out for.
    output_dir: str = "outputs/fuzz_readers"


def main() -> int:
    try:
        config = parse_config(FuzzConfig)
        names = _target_names(config.targets)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    print(f"{'target':<22}{'tried':>7}{'accepted':>10}{'untyped':>9}{'slowest':>9}{'memory':>10}  typed errors")
    results = [_fuzz_apart(name, config) for name in names]
    tried, untyped = (sum(result[key] for result in results) for key in ("tried", "untyped"))
    print(f"{tried} inputs for {len(results)} targets: {untyped} with another end than success or a typed error.")
    if untyped:
        print(f"The first input of each kind is in {config.output_dir}.")
    return 1 if untyped else 0


def _target_names(wanted: tuple[str, ...]) -> list[str]:
    if importlib.util.find_spec("hypothesis") is None or not (_TESTS / "fuzzing").is_dir():
        raise ConfigError(
            "Fuzzing needs hypothesis and this repository's tests/fuzzing. Run it from a checkout with the development "
            "dependencies: uv sync && uv run jobs/fuzz_readers.py."
        )
    sys.path[:0] = [str(_TESTS / "fuzzing"), str(_TESTS / "datasets")]
    from reader_targets import TARGET_NAMES

    for name in wanted:
        if name not in TARGET_NAMES:
            raise ConfigError(
                f"Unknown target {name!r}.{did_you_mean(name, TARGET_NAMES)} Known: {', '.join(TARGET_NAMES)}."
            )
    return list(wanted or TARGET_NAMES)


def _fuzz_apart(name: str, config: FuzzConfig) -> dict[str, Any]:
    """Fuzzes one target in a process of its own, prints its line, and returns what it came to."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        child = multiprocessing.get_context("spawn").Process(target=_fuzz, args=(name, config, Path(scratch)))
        child.start()
        child.join(config.seconds + _PATIENCE_S)
        if child.is_alive():
            child.kill()
            child.join()
        result = _read_result(Path(scratch))
        if child.exitcode != 0:
            result["untyped"] += 1
            _keep_last_input(name, config, Path(scratch), child.exitcode)
    typed = ", ".join(f"{kind} {count}" for kind, count in sorted(result["typed"].items()))
    print(
        f"{name:<22}{result['tried']:>7}{result['accepted']:>10}{result['untyped']:>9}{result['slowest_s']:>7.2f} s"
        f"{result['largest_mib']:>6.0f} MiB  {typed}",
        flush=True,
    )
    return result


def _fuzz(name: str, config: FuzzConfig, scratch: Path) -> None:
    """In the child: rounds of inputs until there were enough of them, or the time is over."""
    sys.path[:0] = [str(_TESTS / "fuzzing"), str(_TESTS / "datasets")]
    _be_quiet(scratch / "last_words.txt")
    import valid_inputs
    from examination import Examiner, Tally
    from reader_targets import make_target
    from rounds import run_examples

    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BOUND_BYTES, _MEMORY_BOUND_BYTES))
    target, tally = make_target(name), Tally(name)
    examiner = Examiner(scratch, valid_inputs.outside())
    give_up_at, number = time.monotonic() + config.seconds, 0
    while tally.tried < config.examples and time.monotonic() < give_up_at:
        num_examples = min(_EXAMPLES_PER_ROUND, config.examples - tally.tried)
        tried = tally.tried
        run_examples(target, examiner, tally, num_examples=num_examples, seed=config.seed * 10**6 + number)
        number += 1
        _write_result(scratch, tally)
        if tally.tried == tried:
            break
    for (kind, _), (message, files) in tally.bad.items():
        _keep_input(Path(config.output_dir) / name / kind, message, files)


def _be_quiet(last_words: Path) -> None:
    """Libraries warn about what is odd in a file, and here everything is. A crash leaves its stack in `last_words`."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.enable(last_words.open("w"))


def _write_result(scratch: Path, tally: Tally) -> None:
    typed = dict(tally.kinds)
    result = {
        "tried": tally.tried,
        "accepted": typed.pop("accepted", 0),
        "typed": typed,
        "untyped": tally.num_bad,
        "slowest_s": tally.slowest_s,
        "largest_mib": tally.largest_mib,
    }
    (scratch / "result.json").write_text(json.dumps(result))


def _read_result(scratch: Path) -> dict[str, Any]:
    path = scratch / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    return {"tried": 0, "accepted": 0, "typed": {}, "untyped": 0, "slowest_s": 0.0, "largest_mib": 0.0}


def _keep_input(folder: Path, message: str, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "error.txt").write_text(message, encoding="utf-8", errors="backslashreplace")


def _keep_last_input(name: str, config: FuzzConfig, scratch: Path, exit_code: int | None) -> None:
    folder = Path(config.output_dir) / name / _CRASHED
    files = {path.relative_to(scratch / "input").as_posix(): path.read_bytes() for path in _files(scratch / "input")}
    words = scratch / "last_words.txt"
    last_words = words.read_text(errors="replace") if words.is_file() else ""
    _keep_input(folder, f"exit code {exit_code} (a negative one is a signal)\n{last_words}", files)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


if __name__ == "__main__":
    sys.exit(main())

"""Whatever is in a file, only typed errors come out of its reader: a short run of every target, always the same one."""

from __future__ import annotations

import pytest
import valid_inputs
from examination import ACCEPTED, Examiner, Tally
from reader_targets import TARGET_NAMES, make_target
from rounds import run_examples

NUM_EXAMPLES = 50


@pytest.fixture(scope="session")
def examiner(tmp_path_factory) -> Examiner:
    return Examiner(tmp_path_factory.mktemp("fuzzing"), valid_inputs.outside())


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_only_typed_errors_come_out(name, examiner):
    target = make_target(name)
    tally = Tally(name)
    run_examples(target, examiner, tally, num_examples=NUM_EXAMPLES, seed=None)
    told = [f"{kind} at {where}: {message}" for (kind, where), (message, _) in tally.bad.items()]
    assert not told, "

".join(told)
        f"{kind} at {where}: {message}" for (kind, where), (message, _) in tally.bad.items()
    )
    assert tally.tried >= NUM_EXAMPLES // 2
    assert set(tally.kinds) - {ACCEPTED}, "nothing was refused, so the inputs are too harmless"

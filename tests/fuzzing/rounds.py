"""Draws inputs of a target and has them examined, without stopping at the first bad one."""

from __future__ import annotations

from examination import Examiner, Tally
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from reader_targets import Target


def run_examples(target: Target, examiner: Examiner, tally: Tally, *, num_examples: int, seed: int | None) -> None:
    """Adds about `num_examples` outcomes to `tally`; without a seed always the same ones.

    Raises what comes out for the valid files, whose damaged copies would else be refused for nothing of their own.
    """
    if not tally.tried:
        examiner.accept(target.valid, target.read)

    @settings(
        max_examples=num_examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def examine(files: dict[str, bytes]) -> None:
        tally.add(examiner.examine(files, target.read), files)

    (examine if seed is None else with_seed(seed)(examine))()

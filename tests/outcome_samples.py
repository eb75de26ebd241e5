"""The end of a segment without a record, as tests of several rooms need it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.outputs.failures import Outcome
from pipeline.plan import Segment

OUTCOME = Outcome(
    key="ab" * 32,
    episode_index=3,
    positions=(16, 48),
    kind="failed",
    error_type="VideoError",
    error="a.mp4: expected 9 frames, found 3.",
    attempts=1,
    signal="",
    exit_code=None,
    last_words="",
    run_id="abc",
    at="2026-01-02T03:04:05+00:00",
)


def outcome_of(segment: Segment, **changes: Any) -> Outcome:
    """How this segment failed."""
    of_segment = {
        "key": segment.key,
        "episode_index": segment.episode_index,
        "positions": (segment.label_start, segment.label_stop),
    }
    return replace(OUTCOME, **of_segment | changes)

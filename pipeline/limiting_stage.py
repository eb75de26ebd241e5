"""Which stage a run waited for, and what to do about it. Owns the rule and its words; imports nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Below this share of the time nobody was the limit: start-up, shut-down and waiting outweigh any stage.
_BUSY = 0.6
# Of two stages this close, the earlier one is the limit: one that waits for a later stage stands idle.
_AS_BUSY = 0.9
_REMEDIES = {
    "load": "More loaders (--ray.num_loaders) on more cores would make it faster.",
    "infer": "More GPUs (--ray.num_engines) would make it faster.",
    "record": "A faster disk or object store for --output_dir would make it faster.",
}


def limiting_stage(seconds_by_stage: Mapping[str, float], actors_by_stage: Mapping[str, int], wall_s: float) -> str:
    """A sentence or two for the end of a run.

    `seconds_by_stage` holds, in the order of the road, the working seconds of each stage summed over its actors, and
    `actors_by_stage` how many there were. A share above one (an actor that works on several rows at once) counts as
    busy all the time; give the engine's own computing seconds where they are known.
    """
    assert seconds_by_stage.keys() <= actors_by_stage.keys(), (seconds_by_stage, actors_by_stage)
    shares = _shares(seconds_by_stage, actors_by_stage, wall_s)
    if not any(shares.values()):
        return "Nothing was worked on, so no stage was the limit."
    busiest = max(shares.values())
    if busiest < _BUSY:
        name = max(shares, key=shares.__getitem__)
        return (
            f"No stage was the limit: the busiest, {name}, worked {busiest:.0%} of the time. The rest was start-up and "
            "waiting, which weighs less in a longer run."
        )
    limit = next(name for name, share in shares.items() if share >= _AS_BUSY * busiest)
    others = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != limit)
    actors = actors_by_stage[limit]
    whose = "its actor" if actors == 1 else f"its {actors} actors"
    told = f"{limit} was the limit: {whose} worked {shares[limit]:.0%} of the time" + (f" ({others})" * bool(others))
    return f"{told}. {_REMEDIES.get(limit, 'More actors for it would make it faster.')}"


def _shares(
    seconds_by_stage: Mapping[str, float], actors_by_stage: Mapping[str, int], wall_s: float
) -> dict[str, float]:
    """Of the time that a stage's actors had, how much they worked: 0 to 1."""
    for stage, seconds in seconds_by_stage.items():
        assert 0 <= seconds < math.inf, (stage, seconds)
    if not wall_s > 0:
        return dict.fromkeys(seconds_by_stage, 0.0)
    return {
        stage: min(1.0, seconds / (max(1, actors_by_stage[stage]) * wall_s))
        for stage, seconds in seconds_by_stage.items()
    }

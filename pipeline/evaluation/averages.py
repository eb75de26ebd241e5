"""From rows to arrays: what each episode scored, by variant and metric, and at each step. Owns the order of averaging.

Samples of one frame are averaged first, then the frames of an episode. Where every sample has the same frames, as
every rollout here has, this equals averaging the frames of each sample first. Legend: F frames, E episodes, V variants,
M metrics; NaN marks what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline.errors import ResultError, did_you_mean
from pipeline.evaluation.rows import METRICS, VARIANTS

MAY_BE_MISSING = frozenset({"moving_psnr", "lpips"})  # where nothing moves, where weights are missing


@dataclass(frozen=True, eq=False)
class FrameScores:
    """Every recorded frame that was compared, each variant's score averaged over its samples.

    A frame is one moment of one rollout. Variants share the axis F, so differences between them compare like with like,
    also where one of them was rolled out for fewer steps.
    """

    episode_index: np.ndarray  # [E] int64, increasing
    tasks: tuple[str | None, ...]  # [E]
    variants: tuple[str, ...]  # those that have rows, in the order of VARIANTS
    values: np.ndarray  # [F, V, M] float64
    episode: np.ndarray  # [F], position in `episode_index`
    step: np.ndarray  # [F] horizon_step, 1 is the first one predicted
    sample_std: np.ndarray  # [E, V, M] float64: over samples of their episode mean; NaN below two samples
    num_samples: int  # rollouts of the recorded actions from one first frame; the most that an episode has

    @cached_property
    def by_episode(self) -> np.ndarray:
        """Mean over the frames of each episode, [E, V, M]."""
        return _means(self.episode, len(self.episode_index), self.values)

    @cached_property
    def steps(self) -> np.ndarray:
        """The horizon steps that occur, increasing, [S]."""
        return np.unique(self.step)

    def by_step(self, step: int) -> np.ndarray:
        """What each episode scored at one horizon step, [E, V, M]."""
        here = self.step == step
        return _means(self.episode[here], len(self.episode_index), self.values[here])

    def num_frames(self) -> np.ndarray:
        """How many frames of the recorded actions' rollouts each episode has, [E]."""
        scored = np.isfinite(self.values[:, self.variants.index("recorded"), 0])
        return np.bincount(self.episode[scored], minlength=len(self.episode_index))

    def differences(self, first: str, second: str) -> np.ndarray | None:
        """Mean over each episode's frames of variant `first` minus `second`, [E, M]; None where either is absent.

        Only frames that both have count.
        """
        if first not in self.variants or second not in self.variants:
            return None
        of_frames = self.values[:, self.variants.index(first)] - self.values[:, self.variants.index(second)]
        return _means(self.episode, len(self.episode_index), of_frames)


def average_samples(rows: pa.Table) -> FrameScores:
    """The rows of `evaluation_schema`, in any order, as arrays.

    Raises ResultError where no row is of variant `recorded`, a variant is unknown, a row occurs twice, or a number is
    missing or infinite that has to be there.
    """
    variant, variants = _variant_codes(rows)
    sample = rows["sample"].to_numpy()
    where = [rows[name].to_numpy() for name in ("episode_index", "rollout_start", "horizon_step")]
    first_row, frame = _groups(*where)
    if len(_groups(frame, variant, sample)[0]) != len(frame):
        raise ResultError(
            "A frame of one variant and sample occurs twice in the evaluation's rows, which would count it twice. "
            "Evaluate into an empty folder."
        )
    scores = _scores(rows)
    episode_index, episode = np.unique(where[0][first_row], return_inverse=True)
    shape = (len(first_row), len(variants))
    return FrameScores(
        episode_index=episode_index,
        tasks=_tasks(rows, episode_index),
        variants=variants,
        values=_means(frame * len(variants) + variant, shape[0] * shape[1], scores).reshape(*shape, len(METRICS)),
        episode=episode,
        step=where[2][first_row],
        sample_std=_sample_std(episode[frame], variant, sample, scores),
        num_samples=_num_samples(episode[frame], sample, variant == variants.index("recorded")),
    )


def _variant_codes(rows: pa.Table) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which variant each row [N] is of, and the names that these positions mean."""
    encoded = rows["variant"].combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    for name in found:
        if name not in VARIANTS:
            raise ResultError(
                f"Unknown variant {name!r} in the evaluation's rows.{did_you_mean(str(name), VARIANTS)} "
                f"Known: {', '.join(VARIANTS)}."
            )
    variants = tuple(name for name in VARIANTS if name in found)
    if "recorded" not in variants:
        raise ResultError(
            "No frame was scored: expected rows of variant 'recorded', found "
            f"{', '.join(variants) or 'no rows at all'}. See which episodes failed, and why."
        )
    position = np.array([variants.index(name) for name in found])
    return position[encoded.indices.to_numpy()], variants


def _scores(rows: pa.Table) -> np.ndarray:
    scores = np.stack([rows[name].to_numpy().astype(np.float64) for name in METRICS], axis=1)
    for column, name in enumerate(METRICS):
        wrong = np.isinf(scores[:, column])
        if name not in MAY_BE_MISSING:
            wrong |= np.isnan(scores[:, column])
        if wrong.any():
            raise ResultError(
                f"{name} is missing or infinite in {wrong.sum()} of {len(scores)} rows, expected a number in each. "
                "Evaluate again; if it stays, the frames of these rows are not what they should be."
            )
    return scores


def _tasks(rows: pa.Table, episode_index: np.ndarray) -> tuple[str | None, ...]:
    found, first_row = np.unique(rows["episode_index"].to_numpy(), return_index=True)
    assert np.array_equal(found, episode_index)
    return tuple(rows["task"].take(pa.array(first_row)).to_pylist())


def _num_samples(episode: np.ndarray, sample: np.ndarray, is_recorded: np.ndarray) -> int:
    first, _ = _groups(episode[is_recorded], sample[is_recorded])
    return int(np.bincount(episode[is_recorded][first]).max())


def _sample_std(episode: np.ndarray, variant: np.ndarray, sample: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Spread of the samples' means within each episode and variant, [E, V, M], n - 1 in the denominator."""
    num_variants = int(variant.max()) + 1
    num_cells = (int(episode.max()) + 1) * num_variants
    first, one_sample = _groups(episode, variant, sample)
    of_samples = _means(one_sample, len(first), scores)
    cell = (episode * num_variants + variant)[first]
    squares = (of_samples - _means(cell, num_cells, of_samples)[cell]) ** 2
    count = _sums(cell, num_cells, np.isfinite(squares).astype(np.float64))
    variance = _means(cell, num_cells, squares) * np.divide(
        count, count - 1, out=np.full_like(count, np.nan), where=count >= 2
    )
    return np.sqrt(variance).reshape(-1, num_variants, scores.shape[1])


def _groups(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N] that agree in all integer `columns`: the first row of each group [G], and each row's group [N].

    Groups are in the order of the columns' values, the first column's above all.
    """
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, position = np.unique(column, return_inverse=True)
        code = code * len(values) + position
    _, first_row, group = np.unique(code, return_index=True, return_inverse=True)
    return first_row, group


def _means(group: np.ndarray, num_groups: int, values: np.ndarray) -> np.ndarray:
    """Mean of [N, ...] in each group, NaN skipped, [num_groups, ...]; NaN where a group has nothing."""
    present = np.isfinite(values)
    sums = _sums(group, num_groups, np.where(present, values, 0.0))
    counts = _sums(group, num_groups, present.astype(np.float64))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _sums(group: np.ndarray, num_groups: int, values: np.ndarray) -> np.ndarray:
    columns = values.reshape(len(values), -1).T
    sums = np.stack([np.bincount(group, weights=column, minlength=num_groups) for column in columns], axis=1)
    return sums.reshape(num_groups, *values.shape[1:])

"""Episodes → segments → keys. Reads metadata only; no pixel is touched here.

A *window* is `action_chunk + 1` consecutive frames at the model's rate. A *segment* is a run of windows of one
episode, small enough to sit in memory; it is the unit of work, of failure and of resuming.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from pipeline.cosmos3.config import TransformerConfig
from pipeline.datasets import Episode, RobotVideoDataset
from pipeline.errors import DatasetError
from pipeline.fingerprint import digest
from pipeline.recipe import Recipe
from pipeline.views import RESOLUTION_TIERS

# Part of every key: raise it when what a record holds, or how a label is computed, changes.
RECORD_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One row of the plan. Positions count frames of the episode at the model's rate, from 0.

    `label_start..label_stop` are the positions whose actions this segment answers for: every position of an episode
    belongs to exactly one segment, also where windows overlap. `problem` is set where the metadata already tells that
    the episode's video cannot be read.
    """

    key: str
    input_digest: str  # of the content that is read: noise derives from it
    episode_index: int
    task: str
    num_positions: int  # of the whole episode
    window_starts: tuple[int, ...]
    label_start: int
    label_stop: int
    problem: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Plain values, as they travel through the stages; `error` is empty as long as all goes well."""
        plain = {
            "window_starts": list(self.window_starts),
            "problem": self.problem or "",
            "error_type": "",
            "error": "",
            "failed_stage": "",
        }
        return asdict(self) | plain


@dataclass(frozen=True)
class Plan:
    """What a run has to do, in the order of its labels."""

    segments: tuple[Segment, ...]
    num_empty_tasks: int

    @property
    def num_windows(self) -> int:
        return count_windows(self.segments)

    @property
    def num_episodes(self) -> int:
        return len({segment.episode_index for segment in self.segments})

    def missing(self, recorded: Iterable[str]) -> list[Segment]:
        """The segments without a record."""
        done = set(recorded)
        return [segment for segment in self.segments if segment.key not in done]


def make_plan(
    dataset: RobotVideoDataset, recipe: Recipe, *, episodes: Sequence[int] = (), max_segment_bytes: int
) -> Plan:
    """Plans the given episodes, or all. Raises DatasetError for an episode that the dataset does not have."""
    indexes = choose_episodes(dataset, episodes)
    recipe_digest = digest(recipe.to_json())
    windows_per_segment = max_windows(recipe, max_segment_bytes)
    dataset.prepare_identities(indexes, recipe.cameras)
    segments, num_empty_tasks = [], 0
    for index in indexes:
        episode = dataset.episode(index)
        num_empty_tasks += not episode.task.strip()
        segments.extend(_plan_episode(dataset, recipe, recipe_digest, episode, windows_per_segment))
    return Plan(tuple(segments), num_empty_tasks)


def choose_episodes(dataset: RobotVideoDataset, episodes: Sequence[int] = ()) -> tuple[int, ...]:
    """The episodes that were asked for, each once, or all. Raises DatasetError where there is none at all."""
    indexes = tuple(dict.fromkeys(episodes)) or dataset.episode_indexes()
    if not len(indexes):
        raise DatasetError(f"{dataset.root}: there is no episode to work on.")
    return tuple(int(index) for index in indexes)


def window_starts(num_positions: int, action_chunk: int) -> list[int]:
    """Windows at stride `action_chunk`, the last one moved back to end with the episode; one if it is shorter."""
    last = num_positions - 1 - action_chunk
    if last <= 0:
        return [0]
    starts = list(range(0, last + 1, action_chunk))
    return starts if starts[-1] == last else [*starts, last]


def cut_windows(
    starts: Sequence[int], num_positions: int, action_chunk: int, windows_per_segment: int
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Runs of windows that make a segment each, and the positions `label_start..label_stop` that each answers for."""
    label_stop = 0
    for first in range(0, len(starts), windows_per_segment):
        chosen = tuple(starts[first : first + windows_per_segment])
        label_start, label_stop = label_stop, max(0, min(chosen[-1] + action_chunk, num_positions - 1))
        yield chosen, label_start, label_stop


def max_windows(recipe: Recipe, max_segment_bytes: int) -> int:
    """How many windows fit in a segment, counting frames of the tier's largest canvas, three bytes a pixel."""
    frame_bytes = 3 * max(width * height for width, height in RESOLUTION_TIERS[str(recipe.image_size)])
    return max(1, (max_segment_bytes // frame_bytes - 1) // recipe.action_chunk)


def count_windows(segments: Iterable[Segment]) -> int:
    return sum(len(segment.window_starts) for segment in segments)


def window_seed(seed: int, input_digest: str, start: int) -> int:
    """A window's own seed, so that its noise does not depend on batch, order, actors or interruptions.

    It derives from the part of the segment's key that says what is read, and not from the checkpoint: two checkpoints
    see the same noise, so that what differs between their labels is theirs. Of a rollout, `start` is the number of the
    sample; its chunks count up from this seed.
    """
    return int(digest([seed, input_digest, start])[:8], 16) & 0x7FFFFFFF


def _plan_episode(
    dataset: RobotVideoDataset, recipe: Recipe, recipe_digest: str, episode: Episode, windows_per_segment: int
) -> Iterator[Segment]:
    num_positions = len(recipe.timebase.frame_indexes(episode.num_frames))
    identity = digest(dataset.episode_identity(episode.episode_index, recipe.cameras))
    for chosen, label_start, label_stop in _cut_episode(num_positions, recipe.action_chunk, windows_per_segment):
        yield Segment(
            key=_segment_key(recipe_digest, identity, chosen),
            input_digest=identity,
            episode_index=episode.episode_index,
            task=episode.task,
            num_positions=num_positions,
            window_starts=chosen,
            label_start=label_start,
            label_stop=label_stop,
            problem=episode.problem,
        )


@lru_cache(maxsize=4096)  # episodes of one length have the same windows, and share them
def _cut_episode(
    num_positions: int, action_chunk: int, windows_per_segment: int
) -> tuple[tuple[tuple[int, ...], int, int], ...]:
    starts = window_starts(num_positions, action_chunk)
    return tuple(cut_windows(starts, num_positions, action_chunk, windows_per_segment))


def _segment_key(recipe_digest: str, identity: str, windows: tuple[int, ...]) -> str:
    """`digest([RECORD_VERSION, recipe_digest, identity, windows])`, written out: a plan may need a million of them."""
    text = f'[{RECORD_VERSION},"{recipe_digest}","{identity}",[{",".join(map(str, windows))}]]'
    return hashlib.sha256(text.encode()).hexdigest()


def estimate_flops(recipe: Recipe, model: TransformerConfig, num_windows: int) -> float:
    """Upper bound of the generation tower's floating-point operations: windows as large as the tier allows.

    The VAE and the text, which is computed once per prompt, come on top: a few percent at 30 steps.
    """
    patch_px = 16 * model.latent_patch_size
    patches = max(ceil(w / patch_px) * ceil(h / patch_px) for w, h in RESOLUTION_TIERS[str(recipe.image_size)])
    tokens = patches * (1 + recipe.action_chunk // 4) + recipe.action_chunk
    query_width = model.num_attention_heads * model.head_dim
    key_width = model.num_key_value_heads * model.head_dim
    weights = 2 * model.hidden_size * (query_width + key_width) + 3 * model.hidden_size * model.intermediate_size
    per_layer = 2 * tokens * weights + 4 * tokens * tokens * query_width
    passes = recipe.num_inference_steps * (1 if recipe.guidance_scale == 1.0 else 2)
    return float(num_windows * passes * model.num_hidden_layers * per_layer)

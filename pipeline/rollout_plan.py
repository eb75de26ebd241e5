"""Episodes → rollouts → keys: what is to be drawn, and what it starts from. Reads metadata only.

A rollout is drawn chunk by chunk, so its segment is a whole video: one episode, one instruction, one sample. Segments
of an evaluation hold frames to compare with, and are cut by memory like those of a label run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.action_sources import ActionSource
from pipeline.datasets import Episode, RobotVideoDataset
from pipeline.errors import ConfigError
from pipeline.fingerprint import digest
from pipeline.plan import RECORD_VERSION, Plan, Segment, choose_episodes, cut_windows, max_windows, window_starts
from pipeline.recipe import EvaluationRecipe, Recipe, RolloutRecipe
from pipeline.storage import open_path, read_bytes


@dataclass(frozen=True, kw_only=True)
class RolloutSegment(Segment):
    """One video. `num_positions` counts its frames; `window_starts` are the positions at which its chunks start."""

    sample: int


@dataclass(frozen=True, kw_only=True)
class EvaluationSegment(Segment):
    """Windows of one held-out episode, and whose actions they are tried with besides their own."""

    other_episode_index: int  # -1 where the selection has no other episode
    in_gallery: bool


def plan_rollouts(
    dataset: RobotVideoDataset,
    recipe: RolloutRecipe,
    source: ActionSource,
    *,
    episodes: Sequence[int] = (),
    num_samples: int,
) -> Plan:
    """`num_samples` videos of each episode, as long as its actions last.

    Teacher-forced, a video is no longer than the episode, since every window starts from a recorded frame.
    """
    chosen = [dataset.episode(index) for index in choose_episodes(dataset, episodes)]
    segments, keys = [], _Keys(dataset, recipe, chosen)
    for episode in chosen:
        num_recorded = len(recipe.timebase.frame_indexes(episode.num_frames))
        num_positions = source.num_actions(episode, recipe.timebase) + 1
        if recipe.chaining == "teacher_forced":
            num_positions = min(num_positions, num_recorded)
        starts = chunk_starts(num_positions, recipe)
        segments += _samples(keys, episode, episode.task, num_positions, starts, num_samples)
    return Plan(tuple(segments), sum(not episode.task.strip() for episode in chosen))


def plan_dreams(
    dataset: RobotVideoDataset,
    recipe: RolloutRecipe,
    *,
    episodes: Sequence[int] = (),
    tasks: Sequence[str],
    num_chunks: int,
    num_samples: int,
) -> Plan:
    """Videos of what the model would do from each first frame: for its own task, or for each of `tasks`."""
    num_positions = num_chunks * recipe.action_chunk + 1
    chosen = [dataset.episode(index) for index in choose_episodes(dataset, episodes)]
    starts, keys = chunk_starts(num_positions, recipe), _Keys(dataset, recipe, chosen)
    segments, num_empty = [], 0
    for episode in chosen:
        for task in tasks or (episode.task,):
            num_empty += not task.strip()
            segments += _samples(keys, episode, task, num_positions, starts, num_samples)
    return Plan(tuple(segments), num_empty)


def plan_evaluation(
    dataset: RobotVideoDataset,
    recipe: EvaluationRecipe,
    *,
    episodes: Sequence[int],
    gallery_episodes: int,
    max_segment_bytes: int,
) -> Plan:
    """Windows of the held-out `episodes`; the first segments of the first `gallery_episodes` leave videos behind."""
    chosen = [dataset.episode(index) for index in episodes]
    windows_per_segment = max_windows(recipe, max_segment_bytes)
    segments, keys = [], _Keys(dataset, recipe, chosen)
    for number, episode in enumerate(chosen):
        others = (chosen[(number + step) % len(chosen)] for step in range(1, len(chosen)))
        other = _first_with_actions(recipe, others)
        segments += _evaluated(keys, episode, other, windows_per_segment, number < gallery_episodes)
    return Plan(tuple(segments), sum(not episode.task.strip() for episode in chosen))


def chunk_starts(num_positions: int, recipe: RolloutRecipe) -> list[int]:
    """Where the chunks of one video start.

    Teacher-forced windows are those of labelling: the last is moved back to end with the episode. A chain cannot move
    back; its last chunk is cut off where the actions end.
    """
    if recipe.chaining == "teacher_forced":
        return window_starts(num_positions, recipe.action_chunk)
    return list(range(0, max(1, num_positions - 1), recipe.action_chunk))


def held_out_episodes(
    dataset: RobotVideoDataset, *, episodes: Sequence[int] = (), fraction: float, seed: int
) -> tuple[int, ...]:
    """The episodes to evaluate on: those named, or a share, drawn as cosmos-framework draws its validation split.

    That is the first `round(fraction * N)` of `torch.randperm(N)` (action/datasets/droid_lerobot_dataset.py, where the
    fraction is 0.03 and the seed 42), here in increasing order. Raises ConfigError when none is left.
    """
    indexes = choose_episodes(dataset, episodes)
    if episodes:
        return indexes
    order = torch.randperm(len(indexes), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = sorted(indexes[place] for place in order[: round(fraction * len(indexes))])
    if not chosen:
        raise ConfigError(
            f"The held-out selection is empty: {fraction:g} of {len(indexes)} episodes is less than one. Raise "
            "--held_out_fraction, or name episodes with --dataset.episodes."
        )
    return tuple(chosen)


def read_tasks(path: str | Path) -> list[str]:
    """Instructions, one a line; empty lines are left out. Raises ConfigError for a file without any."""
    try:
        lines = [line.strip() for line in read_bytes(open_path(path)).decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tasks_path: expected a text file of instructions, one a line ({error}).") from error
    tasks = list(dict.fromkeys(line for line in lines if line))
    if not tasks:
        raise ConfigError(f"--tasks_path: {path} holds no instruction; expected one a line.")
    return tasks


def _first_with_actions(recipe: Recipe, episodes: Iterable[Episode]) -> int:
    """Its index, or -1. An episode with nothing to lend must not fail the ones that are compared with it."""
    for episode in episodes:
        if episode.problem is None and len(recipe.timebase.frame_indexes(episode.num_frames)) > 1:
            return episode.episode_index
    return -1


class _Keys:
    """Fingerprints of segments: of what is read, of the recipe, and of what tells a segment from its neighbours."""

    def __init__(self, dataset: RobotVideoDataset, recipe: Recipe, episodes: Iterable[Episode]) -> None:
        """Reads what identifies the files of `episodes`, many at a time."""
        dataset.prepare_identities([episode.episode_index for episode in episodes], recipe.cameras)
        self.recipe = recipe
        self._dataset, self._recipe_digest = dataset, digest(recipe.to_json())

    def identity(self, *episode_indexes: int) -> str:
        """Of the content of these episodes."""
        return digest([self._dataset.episode_identity(index, self.recipe.cameras) for index in episode_indexes])

    def key(self, identity: str, *parts: Any) -> str:
        return digest([RECORD_VERSION, self._recipe_digest, identity, *parts])


def _evaluated(
    keys: _Keys, episode: Episode, other_episode_index: int, windows_per_segment: int, in_gallery: bool
) -> Iterable[EvaluationSegment]:
    recipe = keys.recipe
    others = (other_episode_index,) if other_episode_index >= 0 else ()
    own, identity = keys.identity(episode.episode_index), keys.identity(episode.episode_index, *others)
    num_positions = len(recipe.timebase.frame_indexes(episode.num_frames))
    starts = chunk_starts(num_positions, recipe)
    for windows, start, stop in cut_windows(starts, num_positions, recipe.action_chunk, windows_per_segment):
        is_shown = in_gallery and windows[0] == 0
        yield EvaluationSegment(
            key=keys.key(identity, windows, is_shown),
            input_digest=own,
            episode_index=episode.episode_index,
            task=episode.task,
            num_positions=num_positions,
            window_starts=windows,
            label_start=start,
            label_stop=stop,
            problem=episode.problem,
            other_episode_index=other_episode_index,
            in_gallery=is_shown,
        )


def _samples(
    keys: _Keys, episode: Episode, task: str, num_positions: int, starts: Sequence[int], num_samples: int
) -> Iterable[RolloutSegment]:
    identity = keys.identity(episode.episode_index)
    for sample in range(num_samples):
        yield RolloutSegment(
            key=keys.key(identity, task, num_positions, sample),
            input_digest=identity,
            episode_index=episode.episode_index,
            task=task,
            num_positions=num_positions,
            window_starts=tuple(starts),
            label_start=0,
            label_stop=num_positions - 1,
            problem=episode.problem,
            sample=sample,
        )

"""What can be wrong with what a user gives us. Owns the typed errors; imports nothing.

Every message says what was expected, what was found and what to do. The class name goes into a failed segment's
`error_type`, so a run's summary can be grouped by it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PipelineError(ValueError):
    """Something the user can mend. Subclasses say in which part of the input it is."""


class ConfigError(PipelineError):
    """A setting is unknown, impossible, or contradicts another."""


class DatasetError(PipelineError):
    """A dataset's folder or metadata is not what its format promises."""


class TimebaseError(PipelineError):
    """The dataset's frame rate does not fit the model's."""


class VideoError(PipelineError):
    """A video file is missing, damaged, or shorter than its metadata says."""


class EpisodeError(PipelineError):
    """One episode cannot be labelled, for instance because it has a single frame."""


class ActionStatsError(PipelineError):
    """Action statistics lack a field, or have another width than the embodiment's actions."""


class ActionFileError(PipelineError):
    """An action file is missing, has neither known format, or holds what is no action."""


class CheckpointError(PipelineError):
    """A checkpoint folder, its config or one of its tensors is not what the engine can load."""


class StorageError(PipelineError):
    """A disk or an object store does not do what was asked, also when asked again."""


class LeaseError(PipelineError):
    """Another run holds the output folder, or has taken it from this one."""


class OutputError(PipelineError):
    """A file of an output folder is not what a run writes there."""


class RecordError(PipelineError):
    """A record, or a pack of them, is damaged, or not what its name says: the rows in it cannot be trusted."""


class StageError(PipelineError):
    """A stage could not be set up, or Ray gave up on it: the run stops, what is recorded stays."""


class ResultError(PipelineError):
    """The model's output is not finite, so it is no label."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or an empty string when nothing known is close to `name`."""
    close = difflib.get_close_matches(name.lower().strip(), sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""

"""What a running job shows in a terminal."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm

from pipeline.labelling import Prepared
from pipeline.outputs.summary import Tally
from pipeline.plan import count_windows


class ProgressBar:
    """A bar over windows; called with the tally after every segment that came to an end."""

    def __init__(self, prepared: Prepared) -> None:
        total = count_windows(prepared.missing)
        self._bar = tqdm(total=total, unit="window", desc="labelling", disable=not total, smoothing=0.05)

    def __enter__(self) -> ProgressBar:
        return self

    def __call__(self, tally: Tally) -> None:
        self._bar.update(tally.windows_done - self._bar.n)
        if tally.failures:
            self._bar.set_postfix_str(f"{len(tally.failures)} segments failed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

"""Silence while lerobot writes a dataset: what its writers, FFmpeg and the encoders say unasked. Owns nothing else.

May import PyAV and `datasets`, both only inside, because importing `datasets` takes seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_lerobot() -> Iterator[None]:
    """Silences the progress bars of `datasets`, FFmpeg's notes on each file, and SVT-AV1's on each encoder.

    Errors of FFmpeg are still printed. Everything is as before on leaving, FFmpeg as silent as PyAV makes it: lerobot
    gives it its voice back, and then x264 tells all about every file.
    """
    import av
    import datasets

    had_progress_bars, svt_log = not datasets.are_progress_bars_disabled(), os.environ.get("SVT_LOG")
    datasets.disable_progress_bars()
    os.environ["SVT_LOG"] = svt_log or "1"
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_level(None)
        if svt_log is None:
            del os.environ["SVT_LOG"]
        if had_progress_bars:
            datasets.enable_progress_bars()

"""Stages that really kill the process they run in, at a segment of their own choice. Ray's workers import it."""

from __future__ import annotations

import ctypes
import os
import signal

from pipeline.stages.infer import Infer
from pipeline.stages.load import Load
from pipeline.stages.stage import Row


class DeadlyLoad(Load):
    """A decoder that reads from address 0 when it meets one key: what a broken video does to a broken decoder."""

    def __init__(self, root, format, recipe, key: str) -> None:
        super().__init__(root, format, recipe)
        self._key = key

    def process(self, row: Row) -> Row:
        if row["key"] == self._key:
            ctypes.string_at(0)
        return super().process(row)


class DeadlyInfer(Infer):
    """An engine whose process is killed amid one segment, with other segments in the same batch."""

    def __init__(self, recipe, settings, key: str) -> None:
        super().__init__(recipe, settings)
        self._key = key

    def process(self, row: Row) -> Row:
        if row["key"] == self._key:
            print("the engine has met its poison", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().process(row)

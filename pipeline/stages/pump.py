"""Ray Data's rows, pulled in a thread of their own, and a way to leave before the last one has come.

Whoever leaves has to end Ray Data's threads, too: one that is still at work when `ray.shutdown()` takes Ray from under
it takes the process along (SIGSEGV).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import Dataset

END = object()
_ABANDONED_WITHIN_S = 30.0
_TICK_S = 0.5


class Pump:
    """`items` are the rows of `rows` as they come, then END; an error comes as an item, too, and is the last one."""

    def __init__(self, rows: Dataset) -> None:
        self.items: queue.SimpleQueue = queue.SimpleQueue()
        self._executors: list = []
        # Ray Data tells its executor to nobody before the first row is there.
        create = rows._create_executor

        def create_and_remember() -> object:
            self._executors.append(create())
            return self._executors[-1]

        rows._create_executor = create_and_remember
        self._thread = threading.Thread(target=self._run, args=(rows,), name="ray-data", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Ends what is at work: its actors are killed, and no thread of it is left. After END it does nothing.

        A cluster that no longer answers is waited for for half a minute.
        """
        deadline_s = time.monotonic() + _ABANDONED_WITHIN_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            for executor in self._executors:
                # In vain as long as it only begins: then again. What fails here failed before, and was told.
                with contextlib.suppress(Exception):
                    executor.shutdown(force=True)
            self._thread.join(_TICK_S)

    def _run(self, rows: Dataset) -> None:
        try:
            for row in rows.iter_rows():
                self.items.put(row)
            self.items.put(END)
        except BaseException as error:  # the thread must not end without a word
            self.items.put(error)

"""Windows of several segments share a batch; each gets its own answer, or its own error."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from pipeline.stages.batcher import WindowBatcher

PATIENCE_S = 20


class Steps:
    """An engine step over integers, ten times each; it keeps its batches and can be held or made to fail."""

    def __init__(self, *, bad: set[int] = frozenset(), fits: int = 1000) -> None:
        self.bad, self.fits = bad, fits
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._is_busy = threading.Lock()

    def __call__(self, batch):
        assert self._is_busy.acquire(blocking=False), "two steps at a time on one engine"
        try:
            self.batches.append(list(batch))
            assert self.may_go_on.wait(PATIENCE_S)
            if len(batch) > self.fits:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            if self.bad & set(batch):
                raise ValueError(f"bad: {sorted(self.bad & set(batch))}")
            return [10 * request for request in batch]
        finally:
            self._is_busy.release()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def queued_together(batcher: WindowBatcher, steps: Steps, *segments: list[int]) -> list[Future]:
    """All segments wait before the engine, which is held on a request of its own, goes on."""
    steps.may_go_on.clear()
    pool = ThreadPoolExecutor(len(segments) + 1)
    pool.submit(batcher.run, [0])
    wait_until(lambda: steps.batches == [[0]])
    futures, num_waiting = [], 0
    for segment in segments:
        futures.append(pool.submit(batcher.run, segment))
        num_waiting += len(segment)
        wait_until(lambda expected=num_waiting: len(batcher._waiting) == expected)
    steps.may_go_on.set()
    pool.shutdown(wait=False)
    return futures


def test_a_segment_alone_is_answered_in_order_in_full_batches():
    steps = Steps()
    assert WindowBatcher(steps, 4).run(list(range(1, 11))) == [10 * request for request in range(1, 11)]
    assert steps.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_no_window_is_no_step():
    steps = Steps()
    assert WindowBatcher(steps, 4).run([]) == []
    assert steps.batches == []


def test_windows_of_several_segments_share_a_batch_oldest_first():
    steps = Steps()
    futures = queued_together(WindowBatcher(steps, 4), steps, [1, 2, 3], [4, 5], [6, 7, 8])
    assert [future.result(PATIENCE_S) for future in futures] == [[10, 20, 30], [40, 50], [60, 70, 80]]
    assert steps.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_bad_request_fails_its_segment_and_its_batch_mates_survive():
    steps = Steps(bad={5})
    futures = queued_together(WindowBatcher(steps, 8), steps, [1, 2, 3], [4, 5], [6, 7, 8])
    assert futures[0].result(PATIENCE_S) == [10, 20, 30]
    assert futures[2].result(PATIENCE_S) == [60, 70, 80]
    with pytest.raises(ValueError, match=r"bad: \[5\]"):
        futures[1].result(PATIENCE_S)


def test_a_failed_segment_leaves_nothing_behind():
    steps = Steps(bad={5})
    batcher = WindowBatcher(steps, 2)
    with pytest.raises(ValueError, match="bad"):
        batcher.run([5, 6, 7, 8])
    assert batcher.run([9]) == [90]
    assert steps.batches[-1] == [9], "what is left of a failed segment is not computed with the next one"


def test_out_of_memory_halves_the_batch_and_the_size_that_fits_is_kept():
    steps = Steps(fits=3)
    batcher = WindowBatcher(steps, 8)
    assert batcher.run(list(range(8))) == [10 * request for request in range(8)]
    assert steps.sizes == [8, 4, 2, 2, 2, 2]
    assert batcher.batch_size == 2
    assert batcher.run([8, 9, 10]) == [80, 90, 100]
    assert steps.sizes[6:] == [2, 1]


def test_after_out_of_memory_the_oldest_still_come_first():
    steps = Steps(fits=2)
    WindowBatcher(steps, 4).run(list(range(8)))
    assert steps.batches == [[0, 1, 2, 3], [0, 1], [2, 3], [4, 5], [6, 7]]


def test_after_out_of_memory_segments_that_share_a_batch_still_get_their_own_answers():
    steps = Steps(fits=2)
    futures = queued_together(WindowBatcher(steps, 8), steps, [1, 2, 3], [4, 5], [6, 7, 8])
    assert [future.result(PATIENCE_S) for future in futures] == [[10, 20, 30], [40, 50], [60, 70, 80]]


def test_a_window_too_large_by_itself_is_an_error_and_no_endless_loop():
    batcher = WindowBatcher(Steps(fits=0), 4)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        batcher.run([1, 2, 3])


@pytest.mark.parametrize("fits", [1000, 3])
def test_many_threads_each_get_their_own_answers(fits):
    """Segments of random length from eight threads, every tenth request bad."""
    steps = Steps(bad=set(range(0, 2000, 10)), fits=fits)
    batcher = WindowBatcher(steps, 6)
    lengths = random.Random(0)
    starts = list(range(1, 2000, 20))
    segments = [list(range(start, start + lengths.randint(1, 12))) for start in starts]

    def run(segment: list[int]) -> list[int] | str:
        try:
            return batcher.run(segment)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, segments, timeout=PATIENCE_S))
    for segment, answer in zip(segments, answers, strict=True):
        bad = [request for request in segment if request % 10 == 0]
        assert answer == (f"bad: {bad[:1]}" if bad else [10 * request for request in segment])
    assert max(steps.sizes) <= 6

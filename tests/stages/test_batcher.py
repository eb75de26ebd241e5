"""Windows of several segments share a batch; each gets its own answer, or its own error."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from pipeline.stages.batcher import WindowBatcher, is_device_lost
from pipeline.stages.stage import SickProcess

PATIENCE_S = 20


class Steps:
    """An engine step over integers, ten times each; it keeps its batches and can be held or made to fail."""

    def __init__(
        self, *, bad: set[int] = frozenset(), fits: int = 1000, out_of_memory: int = 1000, lost_at: int | None = None
    ) -> None:
        self.bad, self.fits, self.lost_at = bad, fits, lost_at
        self.refusals = out_of_memory  # how often a batch that does not fit is refused, before it fits after all
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._is_busy = threading.Lock()

    def __call__(self, batch):
        assert self._is_busy.acquire(blocking=False), "two steps at a time on one engine"
        try:
            self.batches.append(list(batch))
            assert self.may_go_on.wait(PATIENCE_S)
            if self.lost_at in batch:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if len(batch) > self.fits and self.refusals > 0:
                self.refusals -= 1
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


def test_one_window_that_finds_no_memory_is_tried_once_more():
    steps = Steps(fits=0, out_of_memory=2)
    assert WindowBatcher(steps, 4).run([1, 2]) == [10, 20]
    assert steps.batches == [[1, 2], [1], [1], [2]]


def test_twice_out_of_memory_with_one_window_is_a_sick_process():
    steps = Steps(fits=0)
    with pytest.raises(SickProcess, match="out of memory"):
        WindowBatcher(steps, 4).run([1, 2, 3])
    assert steps.sizes == [3, 1, 1]


def test_memory_that_ran_out_once_for_each_of_many_windows_is_no_sickness():
    """What counts is twice in a row: an answer in between shows that the process is well."""

    class Sometimes(Steps):
        def __call__(self, batch):
            self.fits, self.refusals = (1, 0) if self.batches and self.batches[-1] == batch else (0, 1)
            return super().__call__(batch)

    assert WindowBatcher(Sometimes(), 1).run([1, 2, 3]) == [10, 20, 30]


def test_a_lost_device_is_a_sick_process_and_everybody_who_waits_hears_of_it():
    steps = Steps(lost_at=2)
    futures = queued_together(WindowBatcher(steps, 2), steps, [1, 2], [3, 4], [5])
    for future in futures:
        with pytest.raises(SickProcess, match="illegal memory access"):
            future.result(PATIENCE_S)


def test_a_device_lost_while_a_bad_request_is_looked_for_is_a_sick_process():
    class LosesItAlone(Steps):
        def __call__(self, batch):
            if len(batch) == 1:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return super().__call__(batch)

    with pytest.raises(SickProcess, match="device-side assert"):
        WindowBatcher(LosesItAlone(bad={1}), 2).run([1, 2])


@pytest.mark.parametrize("error", [ValueError("CUDA error"), RuntimeError("shapes cannot be multiplied")])
def test_a_requests_own_error_is_no_sickness(error):
    assert not is_device_lost(error)
    assert is_device_lost(torch.AcceleratorError("CUDA error: unspecified launch failure"))


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

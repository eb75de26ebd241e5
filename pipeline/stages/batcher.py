"""Gathers the windows of several segments into one engine step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

import torch

from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult
from pipeline.stages.stage import Pulse, SickProcess

Step = Callable[[Sequence[Cosmos3ActionRequest]], list[Cosmos3ActionResult]]
Batch = list[tuple[Cosmos3ActionRequest, Future]]

# What CUDA and its libraries say when the device's context is lost: every later call would fail, too. Newer torch
# raises an error of its own for it, older code paths a RuntimeError with these words.
_DEVICE_LOST = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS", "NCCL error", "HIP error")


def is_device_lost(error: BaseException) -> bool:
    """Whether the device, and not a request, is to blame. Running out of memory is neither."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_LOST)


class WindowBatcher:
    """Shares one engine between threads: each brings its segment's requests and waits for their results.

    A step takes the oldest `batch_size` requests of whoever waits. All steps run on one thread of their own, because
    every thread that computes would keep a pool of worker threads, and idle pools take cores from the busy one.
    """

    def __init__(
        self,
        step: Step,
        batch_size: int | Callable[[Cosmos3ActionRequest], int],
        *,
        num_threads: int | None = None,
    ) -> None:
        """`batch_size` may be a function of the first request, for a size that fits what is to be done.

        `num_threads` is what one matrix product may use of the CPU; OpenMP keeps that number per calling thread.
        """
        self._step = step
        self.batch_size = batch_size
        self._busy_s, self._latest_size = 0.0, 0
        self._waiting: deque[tuple[Cosmos3ActionRequest, Future]] = deque()
        self._was_out_of_memory_alone = False
        self._engine_thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="engine",
            initializer=torch.set_num_threads if num_threads else None,
            initargs=(num_threads,) if num_threads else (),
        )

    def run(self, requests: Sequence[Cosmos3ActionRequest]) -> list[Cosmos3ActionResult]:
        """Results in the order of `requests`. Raises the error of the first that could not be answered.

        Raises SickProcess when the device was lost, or has no memory for one request alone, twice in a row.
        """
        futures = [Future() for _ in requests]
        self._waiting.extend(zip(requests, futures, strict=True))
        while not all(future.done() for future in futures):
            self._engine_thread.submit(self._step_once).result()
        return [future.result() for future in futures]

    def call[ResultT](self, work: Callable[[], ResultT]) -> ResultT:
        """What `work` returns, computed on the engine's thread: the only one that may start worker threads."""
        return self._engine_thread.submit(work).result()

    @property
    def pulse(self) -> Pulse:
        return Pulse(self._busy_s, len(self._waiting), self._latest_size)

    def _step_once(self) -> None:
        if not self._waiting:
            return  # another caller's step has answered everything by now
        if callable(self.batch_size):
            self.batch_size = self.batch_size(self._waiting[0][0])
        batch = [self._waiting.popleft() for _ in range(min(self.batch_size, len(self._waiting)))]
        try:
            self._answer(batch)
        except torch.cuda.OutOfMemoryError as error:
            self._shrink(batch, error)
        except Exception as error:
            if is_device_lost(error):
                self._give_up(batch, error)
            self._blame(batch, error)
        except BaseException as error:
            self._tell(batch, error)
            raise

    def _answer(self, batch: Batch) -> None:
        started = time.perf_counter()
        try:
            results = self._step([request for request, _ in batch])
        finally:
            self._busy_s, self._latest_size = self._busy_s + time.perf_counter() - started, len(batch)
        for (_, future), result in list(zip(batch, results, strict=True)):
            future.set_result(result)
        self._was_out_of_memory_alone = False

    def _shrink(self, batch: Batch, error: Exception) -> None:
        """Half the batch from now on, and these requests again; one alone is tried once more before all is lost."""
        torch.cuda.empty_cache()
        if len(batch) == 1 and self._was_out_of_memory_alone:
            self._give_up(batch, error)
        self._was_out_of_memory_alone = len(batch) == 1
        self.batch_size = max(1, len(batch) // 2)
        self._waiting.extendleft(reversed(batch))

    def _give_up(self, batch: Batch, error: Exception) -> NoReturn:
        """The process is sick, and whoever waits hears of it."""
        sickness = SickProcess(f"{type(error).__name__}: {error}")
        sickness.__cause__ = error
        self._tell(batch, sickness)
        raise sickness

    def _tell(self, batch: Batch, error: BaseException) -> None:
        for _, future in (*batch, *self._waiting):
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def _blame(self, batch: Batch, error: Exception) -> None:
        """An error belongs to the request that causes it: each is tried alone, so that its batch-mates survive."""
        if len(batch) == 1:
            batch[0][1].set_exception(error)
            return
        for single in batch:
            try:
                self._answer([single])
            except torch.cuda.OutOfMemoryError as own_error:
                self._shrink([single], own_error)
            except Exception as own_error:
                if is_device_lost(own_error):
                    self._give_up(batch, own_error)
                single[1].set_exception(own_error)

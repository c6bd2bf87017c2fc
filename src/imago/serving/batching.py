"""Dynamic batching: threads for the network, which predict the images of several requests at a time."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class _Item(NamedTuple):
    image: Any
    future: "asyncio.Future[Any]"


class Batcher:
    """Threads that predict images in batches.

    A batch is what has come while the one before was predicted. It waits for further images only while some are being
    decoded, and at most `wait_s`: a single client never waits. `coming` and `submit` are for the thread of the event
    loop.

    Args:
        predict: Returns the prediction of each image of a batch.
        max_size: Greatest number of images of a batch.
        wait_s: Seconds that the first image of a batch waits for others.
        threads: Number of threads, which divide what has come. With two on a CPU, one computes where the other waits.
    """

    def __init__(
        self, predict: Callable[[Sequence[Any]], Sequence[Any]], max_size: int, wait_s: float, threads: int = 1
    ) -> None:
        self.predict = predict
        self.max_size = max_size
        self.wait_s = wait_s
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._coming = 0
        self._lock = threading.Lock()
        self._began: dict[int, float] = {}  # of the threads that predict, when they began
        self._threads = [threading.Thread(target=self._run, name="network", daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """End the threads after the images that are queued, or leave those behind that take more than `timeout`
        seconds."""
        self._queue.put(None)
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def busy_s(self) -> float:
        """Seconds since the oldest batch that is being predicted began; 0 between batches."""
        with self._lock:
            return max((time.monotonic() - began for began in self._began.values()), default=0.0)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Inside, an image is being decoded that may be submitted."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def submit(self, image: Any) -> "asyncio.Future[Any]":
        """Queue an image. The future gets its prediction, and may be cancelled."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put(_Item(image, future))
        return future

    def _run(self) -> None:
        me = threading.get_ident()
        while (first := self._queue.get()) is not None:
            batch = [item for item in self._collected(first) if not item.future.cancelled()]
            with self._lock:
                self._began[me] = time.monotonic()
                is_last = len(self._began) == len(self._threads)
            half = len(batch) if is_last else -(-len(batch) // 2)
            for item in batch[half:]:
                self._queue.put(item)  # for a thread that has nothing to do
            if batch:
                self._answer(batch[:half])
            with self._lock:
                del self._began[me]
        self._queue.put(None)  # for the next thread

    def _collected(self, first: _Item) -> list[_Item]:
        batch, until = [first], time.monotonic() + self.wait_s
        while len(batch) < self.max_size:
            left = until - time.monotonic() if self._coming else 0.0
            try:
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)  # the end, after this batch
                break
            batch.append(item)
        return batch

    def _answer(self, batch: Sequence[_Item]) -> None:
        answers: Sequence[Any]
        try:
            answers = self.predict([item.image for item in batch])
        except Exception as error:
            log.exception("A batch of %d could not be predicted", len(batch))
            answers = [error] * len(batch)
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch, answers)


def _deliver(batch: Sequence[_Item], answers: Sequence[Any]) -> None:
    for item, answer in zip(batch, answers, strict=True):
        if item.future.done():  # the request was too slow
            continue
        if isinstance(answer, Exception):
            item.future.set_exception(answer)
        else:
            item.future.set_result(answer)

"""Dynamic batching: one thread for the network, which predicts the images of several requests at a time."""

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
    """Thread that predicts images in batches.

    A batch is what has come while the one before was predicted. It waits for further images only while some are being
    decoded, and at most `wait_s`: a single client never waits. `coming` and `submit` are for the thread of the event
    loop.

    Args:
        predict: Returns the prediction of each image of a batch.
        max_size: Greatest number of images of a batch.
        wait_s: Seconds that the first image of a batch waits for others.
    """

    def __init__(self, predict: Callable[[Sequence[Any]], Sequence[Any]], max_size: int, wait_s: float) -> None:
        self.predict = predict
        self.max_size = max_size
        self.wait_s = wait_s
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._coming = 0
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """End the thread after the images that are queued, or leave it behind after `timeout` seconds."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def busy_s(self) -> float:
        """Seconds since the batch that is being predicted began; 0 between batches."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

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
        while (first := self._queue.get()) is not None:
            batch = [item for item in self._collected(first) if not item.future.cancelled()]
            if batch:
                self._answer(batch)

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
        self._began = time.monotonic()
        answers: Sequence[Any]
        try:
            answers = self.predict([item.image for item in batch])
        except Exception as error:
            log.exception("A batch of %d could not be predicted", len(batch))
            answers = [error] * len(batch)
        finally:
            self._began = None
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

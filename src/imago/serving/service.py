"""The predictions behind the routes: requests in flight, decoding threads, and batches."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from imago.data.decode import BadImageError
from imago.errors import UserError, message_of
from imago.evaluation.prediction import Prediction
from imago.resources import usable_cores
from imago.serving.batching import Batcher
from imago.serving.limits import Limits, RefusedError
from imago.serving.metrics import Metrics
from imago.serving.predictor import Predictor, Seen, answer, unreadable

FAILED = "The server failed. Its log says why."
STOPS = "The server is stopping. Try again later."


class Upload(NamedTuple):
    """An image file of a request; the name is None where it has none."""

    name: str | None
    content: bytes


class Service:
    """Answers to uploads, within limits. Some threads decode, others have the network.

    Args:
        predictor: Reads and predicts images.
        limits: Limits of requests.
        max_batch_size: Greatest number of images that go through the network at a time.
        batch_wait_ms: Milliseconds that an image waits for others that are being decoded.
        network_threads: Number of threads that pass batches through the network.
        api_key: Key that requests for predictions and metrics must bring; None asks for none.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        max_batch_size: int = 32,
        batch_wait_ms: float = 10.0,
        network_threads: int = 1,
        api_key: str | None = None,
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.api_key = api_key
        self.metrics = Metrics(limits)
        self.batcher = Batcher(self._predict, max_batch_size, batch_wait_ms / 1000, network_threads)
        self.decoders = ThreadPoolExecutor(usable_cores(), "decoder")
        self.in_flight = 0
        self.is_stopping = False
        self._timeouts: set[asyncio.Timeout] = set()

    def start(self) -> None:
        """Predict a full batch, and start the thread of the network.

        Raises:
            UserError: The network fails, for example because a batch does not fit into memory.
        """
        black = io.BytesIO()
        Image.new("RGB", (64, 64)).save(black, "PNG")
        seen = self.predictor.read(black.getvalue(), "a black image", 64 * 64)
        try:
            self.predictor.predict([seen] * self.batcher.max_size)
        except Exception as error:
            size = self.batcher.max_size
            raise UserError(f"The network fails on a batch of {size} (max_batch_size): {message_of(error)}") from error
        self.batcher.start()

    def close(self) -> None:
        """End the threads."""
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()

    @property
    def state(self) -> str:
        """`ok`, `stopping`, or `stuck` where the network has worked on a batch for longer than a request may take."""
        if self.is_stopping:
            return "stopping"
        return "stuck" if self.batcher.busy_s > self.limits.timeout_s else "ok"

    def stop(self, seconds: float) -> None:
        """Take no more requests, and let those in flight have `seconds` at most."""
        self.is_stopping = True
        end = asyncio.get_running_loop().time() + seconds
        for timeout in self._timeouts:
            if (planned := timeout.when()) is not None and not timeout.expired():
                timeout.reschedule(min(planned, end))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Inside, a request is in flight, for `timeout_s` at most.

        Raises:
            RefusedError: There are as many as may be, or the server is stopping.
            TimeoutError: It takes longer.
        """
        if self.is_stopping:
            raise RefusedError(503, STOPS)
        if self.in_flight >= self.limits.max_in_flight:
            raise RefusedError(
                429, f"{self.in_flight} requests are in flight, the limit (max_in_flight). Try again later."
            )
        self._count(1)
        try:
            async with asyncio.timeout(self.limits.timeout_s) as timeout:
                self._timeouts.add(timeout)
                yield
        finally:
            self._timeouts.discard(timeout)
            self._count(-1)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)

    async def answers(self, uploads: Sequence[Upload]) -> list[dict[str, Any]]:
        """Return the plain values of each prediction, in order; unreadable images have an `error` in place of one."""
        return list(await asyncio.gather(*(self._answer(upload) for upload in uploads)))

    async def _answer(self, upload: Upload) -> dict[str, Any]:
        name = upload.name or "the image"
        read = partial(self.predictor.read, upload.content, name, self.limits.max_pixels)
        try:
            with self.batcher.coming():
                seen: Seen = await asyncio.get_running_loop().run_in_executor(self.decoders, read)
        except BadImageError as error:
            if not error.lasting:  # no memory, say: it is not the image
                raise RefusedError(503, f"{error}. Try again later.") from error
            self.metrics.images.labels("unreadable").inc()
            return unreadable(upload.name, error)
        try:
            prediction: Prediction = await self.batcher.submit(seen)
        except Exception as error:
            raise RefusedError(500, FAILED) from error
        self.metrics.images.labels("predicted").inc()
        return answer(upload.name, prediction, seen.warning)

    def _predict(self, images: Sequence[Seen]) -> list[Prediction]:
        began = time.monotonic()
        predictions = self.predictor.predict(images)
        self.metrics.batch_images.observe(len(images))
        self.metrics.batch_seconds.observe(time.monotonic() - began)
        return predictions

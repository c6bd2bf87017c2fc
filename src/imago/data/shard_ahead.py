"""Download of shards before they are needed."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from imago.data.shard_index import SplitIndex
from imago.errors import UserError

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds until the next try, after a failure and where there is no room


class NoRoomError(Exception):
    """The shards in use leave no room in the cache."""


class Source(Protocol):
    """Where shards can be had before they are opened."""

    def fetch(self, index: SplitIndex, number: int, is_urgent: bool = True) -> None:
        """Download a shard; NoRoomError if it is not urgent, and those in use leave no room for it."""


class Ahead:
    """Thread that downloads shards of a split while others are read.

    A failure is not reported: whoever needs the shard tries again, and says why it cannot be had.
    """

    def __init__(self, source: Source, index: SplitIndex) -> None:
        self._source = source
        self._index = index
        self._wanted: list[int] = []
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0

    def want(self, numbers: Sequence[int]) -> None:
        """Download these shards next, in place of those that were wanted before."""
        self._wanted = list(numbers)

    def proceed(self) -> None:
        """Start the thread, unless it runs, has nothing to do, or pauses."""
        is_busy = self._thread is not None and self._thread.is_alive()
        if self._wanted and not is_busy and time.monotonic() >= self._rest_until:
            self._thread = threading.Thread(target=self._download, daemon=True)
            self._thread.start()

    def _download(self) -> None:
        while wanted := self._wanted:
            try:
                self._source.fetch(self._index, wanted[0], is_urgent=False)
            except NoRoomError:
                break
            except UserError as error:
                log.info("Not downloaded ahead: %s", error)
                break
            wanted.pop(0)
        self._rest_until = time.monotonic() + (PAUSE if wanted else 0)

"""Warnings of the other processes of a run, in the log of rank 0."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from imago.run.background import repeated
from imago.run.logs import MOST_WARNINGS, PlainFormatter

if TYPE_CHECKING:
    from imago.cli.run_store import RunStore

log = logging.getLogger(__name__)

SECONDS_TO_SAY_TOO = 5
"""For rank 0 to log a warning that all processes have, before it is logged as that of another."""
SECONDS_TO_FLUSH = 2
FLUSH = b"\n"
LONGEST = 600
"""Characters of a warning: what is longer may not get through a pipe in one piece."""


class WarningsToRank0(logging.Handler):
    """Handler that writes each warning, once, to a file `descriptor`, as a line of JSON. Loader workers, which inherit
    it, may use it too."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(PlainFormatter("%(message)s"))
        self._descriptor = descriptor
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)[:LONGEST]
        if text in self._said or len(self._said) >= MOST_WARNINGS:
            return
        self._said.add(text)
        with suppress(OSError):
            os.write(self._descriptor, json.dumps({"warning": text}).encode() + b"\n")


def warnings_in(lines: Iterable[str | bytes]) -> Iterator[str]:
    """The warnings in lines that `WarningsToRank0` has written, perhaps among others."""
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            yield json.loads(line)["warning"]


class StoredWarnings:
    """Warnings in the store of a launch, by which rank 0 gets those of the other processes."""

    def __init__(self, store: "RunStore") -> None:
        self._store = store
        self._read = 0
        self._pipe = -1
        self._flushed = threading.Event()

    def send_from(self, rank: int) -> int:
        """Send what is written to the pipe whose descriptor is returned; a loader worker cannot use the store itself,
        since it would share the connection with this process."""
        source, self._pipe = os.pipe()

        def send() -> None:
            with os.fdopen(source, "rb") as lines:
                for line in lines:
                    for text in warnings_in([line]):
                        with suppress(RuntimeError):  # the store is gone, and the run has ended
                            self._store.write(f"warning/{self._store.count('warnings', 1)}", json.dumps([rank, text]))
                    if line == FLUSH:
                        self._flushed.set()

        threading.Thread(target=send, daemon=True).start()
        return self._pipe

    def flush(self) -> None:
        """Wait until what was written to the pipe has been sent."""
        self._flushed.clear()
        os.write(self._pipe, FLUSH)
        self._flushed.wait(SECONDS_TO_FLUSH)

    def receive(self) -> list[tuple[int, str]]:
        """Rank and text of each warning that has come since the last call."""
        new: list[tuple[int, str]] = []
        with suppress(RuntimeError):
            count = self._store.count("warnings")
            while self._read < count and (text := self._store.read(f"warning/{self._read + 1}")) is not None:
                rank, warning = json.loads(text)
                new.append((rank, warning))
                self._read += 1
        return new


class RankWarnings:
    """Logs the warnings of other processes that `receive` returns (rank and text), unless rank 0 warns of it too."""

    def __init__(self, receive: Callable[[], list[tuple[int, str]]]) -> None:
        self._receive = receive
        self._waiting: list[tuple[float, int, str]] = []
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def log_new(self, own: Sequence[str], hurry: bool = False) -> None:
        """Log those that are new, and not among rank 0's `own`: after a while, or at once if in a `hurry`."""
        with self._lock:
            self._waiting += [(time.monotonic(), rank, text) for rank, text in self._receive()]
            before = float("inf") if hurry else time.monotonic() - SECONDS_TO_SAY_TOO
            due = [(rank, text) for came, rank, text in self._waiting if came <= before]
            self._waiting = [entry for entry in self._waiting if entry[0] > before]
            for rank, text in due:
                if _sentence(text) not in {*map(_sentence, own), *self._said}:
                    self._said.add(_sentence(text))
                    log.warning("[rank %d] %s", rank, text)

    @contextmanager
    def logged(self, own: Sequence[str]) -> Iterator[None]:
        """Inside, warnings are logged as they come; those that wait are logged at the end."""
        try:
            with repeated(partial(self.log_new, own), 1):
                yield
        finally:
            self.log_new(own, hurry=True)


def _sentence(text: str) -> str:
    """The warning without percentages and seconds, which each process measures by itself."""
    return re.sub(r"[\d.]+(?= ?(%|s\b))", "", text)

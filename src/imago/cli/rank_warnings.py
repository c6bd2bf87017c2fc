"""Warnings of the other processes of a launch, in the log of rank 0."""

import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from imago.cli.run_store import RunStore
from imago.run.logs import MOST_WARNINGS, PlainFormatter

log = logging.getLogger(__name__)

SECONDS_TO_SAY_TOO = 5
"""For rank 0 to log a warning that all processes have, before it is logged as that of another."""


class WarningsToRank0(logging.Handler):
    """Handler that sends each warning, once, to rank 0."""

    def __init__(self, store: RunStore, rank: int) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(PlainFormatter("%(message)s"))
        self._store = store
        self._rank = rank
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text in self._said or len(self._said) >= MOST_WARNINGS:
            return
        self._said.add(text)
        with suppress(RuntimeError):  # the store is gone, and the run has ended
            self._store.write(f"warning/{self._store.count('warnings', 1)}", json.dumps([self._rank, text]))


class RankWarnings:
    """Logs what other processes warn of, with their rank, unless rank 0 warns of it too."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._read = 0
        self._waiting: list[tuple[float, int, str]] = []
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def log_new(self, own: Sequence[str], hurry: bool = False) -> None:
        """Log those that are new, and not among rank 0's `own`: after a while, or at once if in a `hurry`."""
        with self._lock, suppress(RuntimeError):
            self._receive()
            before = float("inf") if hurry else time.monotonic() - SECONDS_TO_SAY_TOO
            due = [(rank, text) for came, rank, text in self._waiting if came <= before]
            self._waiting = [entry for entry in self._waiting if entry[0] > before]
            for rank, text in due:
                if _sentence(text) not in {*map(_sentence, own), *self._said}:
                    self._said.add(_sentence(text))
                    log.warning("[rank %d] %s", rank, text)

    def _receive(self) -> None:
        count = self._store.count("warnings")
        while self._read < count and (text := self._store.read(f"warning/{self._read + 1}")) is not None:
            self._waiting.append((time.monotonic(), *json.loads(text)))
            self._read += 1


def _sentence(text: str) -> str:
    """The warning without percentages and seconds, which each process measures by itself."""
    return re.sub(r"[\d.]+(?= ?(%|s\b))", "", text)

"""Signals of schedulers, and of terminals that are closed, which end a command."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from imago.definitions import STOPPING, TERMINATED


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, the signals of schedulers end the run as SystemExit(TERMINATED), but for those that were ignored before,
    as SIGHUP is below `nohup`.

    While a network is trained, callbacks/last_checkpoint.py answers them: it saves first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPPING)}
    for number in STOPPING:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set in Python


def _terminate(*_: Any) -> NoReturn:
    raise SystemExit(TERMINATED)

"""Rank 1 and up of the processes that torchrun or srun has started for one command: it does what rank 0 orders."""

import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from typing import NoReturn

from imago.cli.environment import read_env_file
from imago.cli.orders import do_order, end, leave_group
from imago.cli.rank_warnings import StoredWarnings, WarningsToRank0
from imago.cli.run_store import LEFT, POLL_SECONDS, RunStore, lost_connection, lost_message, this_machine
from imago.config.launcher import TORCHRUN, Launch
from imago.definitions import INTERRUPTED, STOPPING, TERMINATED
from imago.errors import UserError, message_of

SECONDS_TO_SAY = 2  # for rank 0 to print its error, before another process that ends makes the launcher kill it
SECONDS_TO_ANSWER = 10  # for rank 0 to end the run after an error in this process


class Follower:
    """Rank 1 and up of a launch: silently does what rank 0 orders, and leaves it to rank 0 to say what went wrong."""

    def __init__(self, launch: Launch) -> None:
        self._answer_signals(signal.SIG_DFL)  # no handler would be called while it waits, in C++, for rank 0
        with suppress(UserError):
            read_env_file()
        self._launch = launch
        self._store = RunStore(launch)
        self._store.join()
        self._warnings = StoredWarnings(self._store)
        self._parent = os.getppid()
        self._is_busy = False
        self._using_store = threading.RLock()
        self._pipe = -1

    def work(self) -> NoReturn:
        """Carry out one order after the other: one, or that of each job of a sweep."""
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  rank 0 says what there is to say
        self._pipe = self._warnings.send_from(self._launch.rank)
        warnings.simplefilter("ignore")
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            for job in itertools.count():
                self._wait_for_order(job)
        except RuntimeError:  # the store is gone, and rank 0 with it
            end(1)
        raise AssertionError

    def _wait_for_order(self, job: int) -> None:
        logging.getLogger().handlers = [WarningsToRank0(self._pipe)]  # a new one: each job has a log of its own
        while (text := self._store.read(f"order/{job}")) is None:
            if (status := self._store.read("over")) is not None:
                self._leave(int(status))
            time.sleep(POLL_SECONDS)
        self._answer_signals(signal.SIG_IGN)  # rank 0 answers, and agrees with the others on a step at which all stop
        self._is_busy = True
        try:
            do_order(json.loads(text), self._launch.rank, self._launch)
            self._warnings.flush()
            self._store.count(f"done/{job}", 1)
        except BaseException as error:
            self._fail(error)
        self._is_busy = False
        self._answer_signals(signal.SIG_DFL)

    @staticmethod
    def _answer_signals(handler: signal.Handlers) -> None:
        for number in (signal.SIGINT, *STOPPING):
            signal.signal(number, handler)

    def _fail(self, error: BaseException) -> NoReturn:
        if isinstance(error, SystemExit) and error.code == TERMINATED:  # agreed with rank 0, which says why
            self._leave(0)
        with suppress(RuntimeError):
            self._tell(error)
            with suppress(RuntimeError):  # a group that has broken
                leave_group(abort=True)  # the others may wait for this process
            self._answer_signals(signal.SIG_DFL)
            deadline = time.monotonic() + SECONDS_TO_ANSWER
            while self._store.read("over") is None and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self._leave(1)

    def _tell(self, error: BaseException) -> None:
        """Leave an error for rank 0: the first one, of all processes, is the reason."""
        is_echo = lost_connection(error)
        if is_echo:
            time.sleep(SECONDS_TO_SAY)  # one that failed by itself says more
        self._warnings.flush()
        if self._store.count("errors", 1) == 1:
            said = {"rank": self._launch.rank, "host": socket.gethostname()}
            said |= {"message": lost_message(error) if is_echo else message_of(error)}
            self._store.write("error", json.dumps(said | {"traceback": "".join(traceback.format_exception(error))}))

    def _watch(self) -> None:
        place = f"{os.getpid()} {this_machine()}"
        for beat in itertools.count():
            try:
                with self._using_store:
                    self._store.write(f"beat/{self._launch.rank}", f"{beat} {place}")
                    status = self._store.read("over")
            except RuntimeError:
                end(1)
            if self._launch.launcher == TORCHRUN and os.getppid() != self._parent:
                with suppress(RuntimeError):
                    self._tell(UserError("torchrun, which started this process, has ended."))
                end(1)
            if status is not None and self._is_busy:
                self._leave(int(status))
            time.sleep(1)

    def _leave(self, status: int) -> NoReturn:
        self._using_store.acquire()  # for good: rank 0 may be gone with the store
        with suppress(RuntimeError):
            self._store.write(f"beat/{self._launch.rank}", LEFT)
            self._store.count("left", 1)
        if status in (0, TERMINATED, INTERRUPTED):
            end(0)
        time.sleep(SECONDS_TO_SAY)
        end(1)

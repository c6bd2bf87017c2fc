"""Rank 0 of the processes that torchrun or srun has started for one command.

    torchrun --nproc_per_node=2 src/train.py experiment=digits trainer=ddp_sim

Rank 0 alone composes, checks, claims the run folder, writes and prints. The others (follower.py) wait for its
order, which processes.py carries out. Nothing but the store (run_store.py) connects them before the process group.
"""

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imago.cli.follower import Follower
from imago.cli.orders import end, leave_group, order_of
from imago.cli.processes import SECONDS_TO_END, SECONDS_TO_FAIL_TOO, ProcessError, record_failure
from imago.cli.rank_warnings import RankWarnings, StoredWarnings
from imago.cli.run_store import (
    LEFT,
    POLL_SECONDS,
    SECONDS_TO_MEET,
    RunStore,
    has_ended,
    lost_connection,
    lost_message,
    this_machine,
)
from imago.config.launcher import TORCHRUN, Launch, launch_of
from imago.definitions import INTERRUPTED
from imago.errors import UserError
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

SECONDS_TO_READ = 30  # for the others to see that it is over, where rank 0 serves the store
SECONDS_TO_LOOK = 3  # from look to look at the signs of life
SECONDS_OF_SILENCE = 60  # of a process, after which it is taken for dead: where a machine stops, nothing else tells


@contextmanager
def led(command: str, one_process: bool = False) -> Iterator["Leader | None"]:
    """Inside, rank 0 does what was typed, with a Leader; the other processes of a launch do not get there, and end with
    it. A process that no launcher has started goes in as it is.

    Raises:
        UserError: A launcher has started a command of one process, or says too little.
        SystemExit: One of these, in another process than the first.
    """
    launch = launch_of(command, one_process)
    if launch is None or launch.processes == 1:
        yield None
        return
    if launch.rank:
        Follower(launch).work()
    leader, status = Leader(launch), 1
    try:
        yield leader
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):  # said now: once the others end, their launcher may kill this process
            print(stop.code, file=sys.stderr, flush=True)
            raise SystemExit(1) from None
        raise
    except KeyboardInterrupt:
        status = INTERRUPTED
        raise
    finally:
        leader.close(status)


class Leader:
    """Rank 0 of a launch: has its task done by the others, too, logs their warnings, and ends when one has failed."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._store = RunStore(launch)
        self._store.begin()
        self._parent = os.getppid()
        self._jobs = 0
        self._ordered = 0.0
        self._run: RunFolder | None = None
        self._mark: Path | None = None
        self._error: ProcessError | None = None
        self._over = threading.Event()
        self._sent = StoredWarnings(self._store)
        self._warnings = RankWarnings(self._sent.receive)
        self._beats = _Beats(self._store, launch.processes)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @contextmanager
    def others(self, task: Callable[..., Any], cfg: DictConfig, run: RunFolder) -> Iterator[None]:
        """Inside, the other processes do `task` as this one does.

        Raises:
            ProcessError: One of them failed, with its message, or is gone.
        """
        if self._error is not None:
            raise self._error
        job, self._jobs = self._jobs, self._jobs + 1
        if self.launch.nodes > 1:
            self._mark = _leave_mark(run.path)
        mark = None if self._mark is None else self._mark.name
        self._store.write(f"order/{job}", json.dumps(order_of(task, cfg, run, mark)))
        self._warnings = RankWarnings(self._sent.receive)  # each job of a sweep has a log of its own
        self._run, self._ordered = run, time.monotonic()
        failed = True
        try:
            yield
            self._finish(job)
            failed = False
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if (cause := self._cause(error)) is None:
                raise
            raise cause from error
        finally:
            self._run = None
            self._remove_mark()
            self._warnings.log_new(run.warnings, hurry=True)
            leave_group(abort=failed)

    def close(self, status: int) -> None:
        """Tell the others that it is over. Where this process serves the store, wait until they have read that."""
        self._over.set()
        self._remove_mark()
        if threading.current_thread() is not self._watcher:
            self._watcher.join(SECONDS_TO_FAIL_TOO + 1)
        with suppress(RuntimeError):  # the store is gone, and so are they
            self._store.write("over", str(status))
            deadline = time.monotonic() + (0 if self.launch.has_store else SECONDS_TO_READ)
            while self._store.count("left") < self.launch.processes - 1 and time.monotonic() < deadline:
                if self._beats.all_gone():
                    break
                self._store.answer()
                time.sleep(POLL_SECONDS)

    def _remove_mark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.unlink(missing_ok=True)

    def _finish(self, job: int) -> None:
        deadline = time.monotonic() + SECONDS_TO_END
        while (done := self._store.count(f"done/{job}")) < self.launch.processes - 1:
            if self._error is not None:
                raise self._error
            if time.monotonic() > deadline:
                log.warning("%d of %d processes did not end", self.launch.processes - 1 - done, self.launch.processes)
                return
            time.sleep(POLL_SECONDS)

    def _cause(self, error: BaseException) -> ProcessError | None:
        """The reason for an error, or a signal, of rank 0 that lies in another process: a launcher ends the others
        when one has failed."""
        is_signal = isinstance(error, SystemExit)
        deadline = time.monotonic() + (1 if is_signal else SECONDS_TO_FAIL_TOO)
        while self._error is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._error is None and not is_signal and lost_connection(error):
            return self._lost(error)
        return self._error

    def _lost(self, error: BaseException) -> ProcessError:
        if self._is_abandoned():
            return ProcessError(f"{self.launch.launcher}, which started this process, has ended.")
        return ProcessError(lost_message(error))

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            run = self._run
            if (error := self._look()) is not None:
                self._error = error
                self._end_after(error, run)
                return

    def _end_after(self, error: ProcessError, run: RunFolder | None) -> None:
        """End the run, unless it ends by itself: rank 0 may wait, in C++, for a process that is gone."""
        deadline = time.monotonic() + SECONDS_TO_FAIL_TOO
        while run is not None and self._run is run and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if run is not None and self._run is run:
            self._warnings.log_new(run.warnings, hurry=True)
            record_failure(run, error)
            self.close(1)
            end(1)
        if run is None and self._is_abandoned():
            end(1)

    def _look(self) -> ProcessError | None:
        """Answer, log and look for errors; returns what ends the run."""
        try:
            came = self._store.answer()
            if self._run is not None:
                self._warnings.log_new(self._run.warnings)
            text = self._store.read("error")
        except RuntimeError as error:
            return self._lost(error)
        if text is not None:
            said = json.loads(text)
            log.debug("Process %d failed\n%s", said["rank"], said["traceback"])
            where = f" ({said['host']})" if self.launch.nodes > 1 else ""
            return ProcessError(f"In process {said['rank']} of {self.launch.processes}{where}: {said['message']}")
        return self._missing(came) if not self._is_abandoned() else self._lost(RuntimeError())

    def _missing(self, came: int) -> ProcessError | None:
        """A process that has not come, or is silent."""
        if (dead := self._beats.dead()) is not None:
            return ProcessError(f"Process {dead[0]} of {self.launch.processes} {dead[1]}")
        is_late = self._run is not None and time.monotonic() > self._ordered + SECONDS_TO_MEET
        if is_late and not self.launch.has_store and came < self.launch.processes - 1:
            processes = self.launch.processes
            return ProcessError(
                f"{came + 1} of {processes} processes have come to {self.launch.address}, port {self.launch.port}, "
                f"within {SECONDS_TO_MEET // 60} minutes. Start all of them, with {self.launch.launcher}."
            )
        return None

    def _is_abandoned(self) -> bool:
        return self.launch.launcher == TORCHRUN and os.getppid() != self._parent


def _leave_mark(folder: Path) -> Path | None:
    """A new file, by which processes on other nodes know the run folder; None on a full disk. One that is left over is
    removed when the folder is claimed again."""
    mark = folder / f".{uuid.uuid4().hex}.tmp"
    with suppress(OSError):
        mark.touch()
        return mark
    return None


class _Beats:
    """Signs of life of the other processes."""

    def __init__(self, store: RunStore, processes: int) -> None:
        self._store = store
        self._last = dict.fromkeys(range(1, processes), ("", time.monotonic()))
        self._looked = 0.0
        self._machine = this_machine()

    def all_gone(self) -> bool:
        """Whether all of them are known to have left, or ended."""
        beats = [self._store.read(f"beat/{rank}") or "" for rank in self._last]
        return all(beat == LEFT or self._has_ended(beat) for beat in beats)

    def _has_ended(self, beat: str) -> bool:
        """Whether the process of a beat, with its number and machine, is one of this machine that has ended."""
        number, _, machine = beat.partition(" ")[2].partition(" ")
        return machine == self._machine and has_ended(int(number))

    def dead(self) -> tuple[int, str] | None:
        """A process that has given signs of life, and has ended, or is silent, and words for that."""
        now = time.monotonic()
        if now < self._looked + SECONDS_TO_LOOK:
            return None
        self._looked = now
        for rank, (before, heard) in self._last.items():
            beat = self._store.read(f"beat/{rank}") or ""
            if beat != before:
                self._last[rank] = beat, now
            elif beat == LEFT:
                continue
            elif self._has_ended(beat):
                return rank, "has ended without a message: it was killed, or memory was short."
            elif beat and now > heard + SECONDS_OF_SILENCE:
                seconds = f"{SECONDS_OF_SILENCE} seconds"
                return rank, f"has not been heard of for {seconds}: it was killed, or its machine has stopped."
        return None

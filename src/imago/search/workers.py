"""Trials in other processes than the search: a crash, or memory that runs out, costs one trial.

The processes are forked from a server that has imported what a run imports, so that a trial starts in tenths of a
second and inherits no CUDA. One that has run a short trial may run the next one, too, which finds all that is read
once. Each has a session of its own: Ctrl-C reaches the search alone, which asks its trials to stop and to save. When
the search is killed, its trials end, too. Only the search touches the study: a trial sends its values and waits for the
answer.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from imago.cli.processes import describe_exit
from imago.definitions import STOPPING, TERMINATED
from imago.resources import CORES
from imago.run.search_place import Outcome
from imago.search.trials import MOST_OUTPUT, TrialOrder, folder_of, run_trial

PRELOADED = (
    *("imago.search.workers", "imago.train", "imago.training.build", "imago.training.trainer", "imago.training.fit"),
    *("imago.evaluation.console", "imago.report.page", "sklearn.metrics", "opacus.accountants", "torch._dynamo"),
)
"""Modules that a run imports."""
SHORT_SECONDS = 60
"""Duration of a trial whose process may run another one: in longer ones, the start of a process does not matter."""
SECONDS_TO_SAVE = 25
"""Time for a trial that is asked to stop: below the 30 s after which Slurm kills the search."""
ENDING = (signal.SIGINT, *STOPPING)
"""Signals that end a search."""
STOPPED = "stopped"
"""State of a trial that a signal has stopped, and that can be resumed."""


@dataclass
class Worker:
    """A process that runs a trial."""

    order: TrialOrder
    process: Any
    connection: Connection
    alive: Connection
    output: IO[str]
    path: str
    began: float

    def take(self, order: TrialOrder) -> bool:
        """Run another trial; returns whether the process is there."""
        self.order, self.began = order, time.monotonic()
        try:
            self.connection.send(order)
        except OSError:
            return False
        return self.process.is_alive()

    def close(self) -> None:
        """End the process and its loader workers, if they have not ended."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        for connection in (self.connection, self.alive):
            connection.close()
        self.output.close()
        with suppress(OSError):
            os.unlink(self.path)  # its process has, where it could


class Workers:
    """The processes of the trials that run at the same time; none outlives the block.

    Args:
        reuses: Whether the process of a short trial that did not fail runs further ones.
    """

    def __init__(self, reuses: bool = False) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        self._reuses = reuses
        self._running: dict[int, Worker] = {}
        self._idle: list[Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, order: TrialOrder) -> None:
        """Start a trial, in a process that is idle or in a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.take(order):
                self._running[order.number] = worker
                return
            worker.close()
        self._running[order.number] = self._new(order)

    def _new(self, order: TrialOrder) -> Worker:
        if hasattr(self._context, "set_forkserver_preload"):
            self._context.set_forkserver_preload([*PRELOADED])
        ours, theirs = self._context.Pipe()
        alive, watched = self._context.Pipe()
        handle, name = tempfile.mkstemp(prefix="imago_trial_")
        with _importable():
            process = self._context.Process(target=_main, args=(order, theirs, watched, name), daemon=False)
            process.start()
        output = os.fdopen(handle, errors="replace")
        theirs.close()
        watched.close()
        return Worker(order, process, ours, alive, output, name, time.monotonic())

    def next_end(self, report: Callable[[int, int, float], bool], tick: Callable[[], None]) -> tuple[int, Outcome]:
        """Wait until a trial has ended, and answer what the others report meanwhile."""
        while True:
            workers = self._running.values()
            by_handle = {
                handle: worker for worker in workers for handle in (worker.connection, worker.process.sentinel)
            }
            for ready in wait([*by_handle], timeout=0.5):  # loader workers may keep a connection open
                if (ended := self._answer(by_handle[ready], report)) is not None:
                    return ended
            tick()

    def _answer(self, worker: Worker, report: Callable[[int, int, float], bool]) -> tuple[int, Outcome] | None:
        number = worker.order.number
        if not worker.connection.poll() and worker.process.is_alive():
            return None
        try:
            message = worker.connection.recv() if worker.connection.poll() else self._died(worker)
        except (EOFError, OSError):
            message = self._died(worker)
        if not isinstance(message, Outcome):
            answer = report(number, *message)  # an error of the study is none of the trial
            with suppress(OSError):
                worker.connection.send(answer)
            return None
        del self._running[number]
        is_good = message.state in ("completed", "pruned") and worker.process.is_alive()
        if self._reuses and is_good and message.seconds <= SHORT_SECONDS:
            self._idle.append(worker)
        else:
            worker.close()
        return number, message

    def _died(self, worker: Worker) -> Outcome:
        """Outcome of a trial whose process has ended without one."""
        worker.process.join(10)
        status = worker.process.exitcode
        said = worker.output.read().strip()[-MOST_OUTPUT:]
        how = describe_exit(status if status is not None else -signal.SIGKILL)
        folder = folder_of(Path(worker.order.sweep_dir), worker.order.number)
        name = folder.name if folder is not None else ""
        return Outcome("failed", (), name, 0, time.monotonic() - worker.began, f"{how}\n{said}".strip())

    def stop(self) -> None:
        """Ask all trials to save and stop, and end those that do not."""
        for worker in self._running.values():
            worker.connection.close()  # one that waits for an answer ends
            with suppress(ProcessLookupError, TypeError):
                os.kill(worker.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for worker in self._running.values():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.close()
        for worker in self._idle:
            worker.close()
        self._running.clear()
        self._idle.clear()


@contextmanager
def ended_by_one_signal() -> Iterator[None]:
    """Inside, the first signal of a scheduler ends the search, and further ones do not keep it from waiting for its
    trials to save: `timeout` and Slurm send theirs to the process and to its group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}

    def end(*_: Any) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    yield
    for number, handler in before.items():  # not after a signal: the program ends
        signal.signal(number, handler)


@contextmanager
def _importable() -> Iterator[None]:
    """Inside, a new interpreter finds this package, however it was found here, and is not ended by Ctrl-C and the
    signals of schedulers, which may go to the whole process group: without the server, trials would be taken for dead
    before they have saved. A signal that comes meanwhile waits."""
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # it unblocks SIGTERM where it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    package, before = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [before])])
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _main(order: TrialOrder, connection: Connection, watched: Connection, output: str) -> None:
    """The process of a trial, and of those that it is given after it."""
    if hasattr(os, "setsid"):
        os.setsid()  # its loader workers end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    threading.Thread(target=_end_with_search, args=(watched,), daemon=True).start()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    with suppress(OSError):
        os.unlink(output)  # a search that is killed leaves no file
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.chdir(order.here)
    if order.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.gpus
    import torch

    if order.threads is not None:
        torch.set_num_threads(order.threads)
        os.environ["OMP_NUM_THREADS"] = os.environ[CORES] = str(order.threads)  # of its further processes, too

    def report(step: int, value: float) -> bool:
        try:
            connection.send((step, value))
            return bool(connection.recv())
        except (EOFError, OSError):
            signal.raise_signal(signal.SIGTERM)  # saved at the next step
            return False

    from imago.cli.stop_signals import stopped_by_signals

    try:
        while True:
            with stopped_by_signals():
                outcome = run_trial(order, report)
                connection.send(outcome)
            order = connection.recv()
    except (EOFError, OSError):  # the search needs this process no more, or is gone
        pass
    except SystemExit as error:
        if error.code == TERMINATED:
            with suppress(OSError):
                connection.send(Outcome(STOPPED))
        connection.close()
        sys.stdout.flush()
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()
    os._exit(0)


def _end_with_search(watched: Connection) -> None:
    """End this process when the search has ended in whatever way: nobody would answer, and its folder is free."""
    with suppress(EOFError, OSError):
        watched.recv()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(0, signal.SIGKILL)

"""A run on several devices: the command is rank 0 and starts one more process for each further device.

    python src/train.py trainer=ddp trainer.devices=4

Lightning would start the whole command line again; ours are given the composed config of rank 0 instead, so that a run
has one folder, one bar and one log, and a job of a sweep stays one job. Those of torchrun or srun get the same orders
from a store (leader.py).

`torch.distributed.elastic.multiprocessing.start_processes` is not used: when rank 0 is killed, its processes get a
SIGINT, and those stay that wait in C++, or leave Ctrl-C to rank 0. Here the end of their standard input ends all.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from imago.cli.orders import do_order, end, leave_group, order_of
from imago.cli.rank_warnings import RankWarnings, WarningsToRank0, warnings_in
from imago.definitions import STOPPING, TERMINATED
from imago.errors import KILLED, UserError, message_of
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

MOST_BYTES = 2**22  # of warnings, and of an error with its traceback
SECONDS_TO_END = 60  # after rank 0 is through
SECONDS_TO_FAIL_TOO = 4  # for the others, once rank 0 has failed
SECONDS_TO_RAISE = 15  # for rank 0 to notice by itself that another is gone


class ProcessError(UserError):
    """What went wrong in another process than rank 0."""


def free_port(host: str = "127.0.0.1") -> int:
    """Port of this machine that nobody listens at; an empty `host` stands for all of its addresses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


@contextmanager
def other_processes(task: Callable[..., Any], cfg: DictConfig, run: RunFolder) -> Iterator[None]:
    """Starts ranks 1 and up of `run`, with the same `task` and config; none of them outlives the block.

    Raises:
        ProcessError: One of them failed, with its message.
    """
    if run.processes == 1:
        yield
        return
    ranks: list[_Rank] = []
    sent = RankWarnings(lambda: [(process.rank, text) for process in ranks for text in process.new_warnings()])
    failed_here = True
    try:
        for rank in range(1, run.processes):
            ranks.append(_Rank(task, cfg, run, rank))
        with sent.logged(run.warnings):
            yield
            for process in ranks:
                process.finish()
        failed_here = False
    except Exception as error:
        for process in ranks:
            process.over = True  # this process has noticed by itself
        if isinstance(error, UserError):
            raise
        deadline = time.monotonic() + SECONDS_TO_FAIL_TOO
        for process in ranks:  # rank 0 may only see that the connection broke
            process.wait(max(0.0, deadline - time.monotonic()))
        sent.log_new(run.warnings, hurry=True)
        failed = next((process for process in ranks if process.failed), None)
        if failed is None:
            raise
        raise failed.error() from error
    finally:
        for process in ranks:
            process.kill()
        leave_group(abort=failed_here)


class _Rank:
    """One process; its stdin stays open as long as rank 0 lives, its stdout is a file that brings its warnings and its
    error, as lines of JSON."""

    def __init__(self, task: Callable[..., Any], cfg: DictConfig, run: RunFolder, rank: int) -> None:
        self.run = run
        self.rank = rank
        self.over = False
        self._read = 0
        self.stdout, self.stderr = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "imago.cli.processes"],
            stdin=subprocess.PIPE,
            stdout=self.stdout,
            stderr=self.stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # a group of its own: its loader workers end with it
        )
        assert self.process.stdin is not None
        order = {"rank": rank, **order_of(task, cfg, run)}
        self.process.stdin.write(json.dumps(order) + "\n")  # what is typed here is in no list of processes
        self.process.stdin.flush()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def failed(self) -> bool:
        return self.process.poll() not in (None, 0)

    def wait(self, seconds: float) -> None:
        """Until it has ended, at most `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def finish(self) -> None:
        """Waits for its end; raises ProcessError if that is a bad one."""
        self.wait(SECONDS_TO_END)
        if self.process.poll() is None:
            log.warning("Process %d did not exit and is killed", self.rank)
        elif self.failed:
            raise self.error()

    def error(self) -> ProcessError:
        """The message that it left when it failed; that of a kill, if it could leave none."""
        if (said := error_in(self._lines(0))) is not None:
            message, trace = said["message"], said["traceback"]
        else:
            self.stderr.seek(0)
            last = self.stderr.read().strip()[-500:]
            message, trace = f"{describe_exit(self.process.returncode)}\n{last}".strip(), last
        log.debug("Process %d of %d failed\n%s", self.rank, self.run.processes, trace)
        return ProcessError(f"In process {self.rank} of {self.run.processes}: {message}")

    def new_warnings(self) -> list[str]:
        """Its warnings since the last call."""
        lines = self._lines(self._read)
        self._read += sum(map(len, lines))
        return list(warnings_in(lines))

    def _lines(self, start: int) -> list[bytes]:
        """Whole lines of its stdout, whose position is that of the process, from byte `start` on."""
        written = os.pread(self.stdout.fileno(), MOST_BYTES, start)
        return written[: written.rfind(b"\n") + 1].splitlines(keepends=True)

    def kill(self) -> None:
        """Ends it and its loader workers, if they have not."""
        self.over = True
        self._kill_group()
        self.process.wait()
        assert self.process.stdin is not None
        for file in (self.process.stdin, self.stdout, self.stderr):
            with suppress(OSError):
                file.close()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _watch(self) -> None:
        if self.process.wait() and not self.over:
            self._kill_group()  # workers that outlive it hold its connections, and rank 0 would wait for ever
            timer = threading.Timer(SECONDS_TO_RAISE, self._end_rank_0)
            timer.daemon = True
            timer.start()

    def _end_rank_0(self) -> None:
        """Rank 0 waits, in C++, for one that is gone: no exception reaches it."""
        if self.over:
            return
        record_failure(self.run, self.error())
        end(1)


def record_failure(run: RunFolder, error: Exception) -> None:
    """Log and record an error that cannot be raised, because rank 0 is about to end in the middle of something."""
    message = f"{error}{run.resume_hint(chr(10))}"
    log.error("%s", message)
    run.update(status="failed", error=message)
    logging.shutdown()


def error_in(lines: Sequence[str | bytes]) -> dict[str, str] | None:
    """The error in the lines of JSON of a process; a loader worker may have warned after it."""
    for line in reversed(lines):
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and {"message", "traceback"} <= said.keys():
                return said
    return None


def describe_exit(status: int) -> str:
    """Words for a process that ended without a message."""
    if status >= 0:
        return f"it ended with exit status {status}"
    name = signal.Signals(-status).name
    by = f"it was killed by {name}"
    return KILLED.format(f"{by}: the system sends it") if -status == signal.SIGKILL else by


def main() -> None:
    """Rank 1 and up: does the task that rank 0 writes to stdin, silently; the error, if any, goes to stdout."""
    for number in (signal.SIGINT, *STOPPING):
        signal.signal(number, signal.SIG_IGN)  # rank 0 answers for all
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    to_rank_0, sys.stdout = sys.stdout, sys.stderr  # what is printed here is rank 0's to say
    logging.getLogger().addHandler(WarningsToRank0(to_rank_0.fileno()))
    warnings.simplefilter("ignore")
    try:
        do_order(order, order["rank"])
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:  # agreed with rank 0, which says why
            _exit(to_rank_0, 0)
        said = {"message": message_of(error), "traceback": traceback.format_exc()}
        to_rank_0.write(json.dumps(said) + "\n")
        _exit(to_rank_0, 1)
    _exit(to_rank_0, 0)


def _exit(to_rank_0: Any, code: int) -> NoReturn:
    to_rank_0.flush()
    end(code)


def _end_with_rank_0() -> None:
    # not sys.stdin.read(): it would hold a lock that every loader worker, forked meanwhile, waits for in vain
    while os.read(0, 1024):
        pass
    end(1)


if __name__ == "__main__":
    main()

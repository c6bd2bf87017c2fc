"""Ranks of a run in processes that are forked from one which has imported what a run imports: five seconds less each.

Ranks that are started as users start them: tests/test_processes.py, tests/test_launchers.py, and all runs of
`type_in_subprocess`.
"""

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe, wait
from types import SimpleNamespace
from typing import IO

RANK = ["-P", "-m", "imago.cli.processes"]
IMPORTED_BY_RUNS = (
    *("helpers", "imago.train", "imago.training.build", "imago.training.trainer", "imago.training.fit"),
    *("imago.evaluation.console", "imago.report.page", "sklearn.metrics", "opacus.accountants"),
)


def fork_context() -> multiprocessing.context.ForkServerContext:
    """Its processes are forked from one that has imported the modules of a run, and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED_BY_RUNS])
    return context


class ForkedRank:
    """As much of `subprocess.Popen` as imago/cli/processes.py uses."""

    def __init__(
        self,
        command: list[str],
        stdin: int,
        stdout: IO[str],
        stderr: IO[str],
        text: bool,
        env: dict[str, str],
        start_new_session: bool,
    ) -> None:
        assert (command, stdin, text, start_new_session) == ([sys.executable, *RANK], subprocess.PIPE, True, True)
        read, write = os.pipe()
        self.stdin = os.fdopen(write, "w")
        streams = [Connection(read), *(Connection(os.dup(file.fileno())) for file in (stdout, stderr))]
        leads_group, is_leading = Pipe(duplex=False)
        self._process = fork_context().Process(target=_be_a_rank, args=(streams, env, is_leading))
        self._process.start()
        for connection in (*streams, is_leading):
            connection.close()
        leads_group.poll(None)  # what is sent to its group reaches it from now on
        leads_group.close()
        self.pid = self._process.pid
        self._reading = threading.Lock()  # the exit status can be read once, and a thread waits for it

    @property
    def returncode(self) -> int | None:
        with self._reading:
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(RANK, timeout or 0)
        return self.returncode


SUBPROCESS = SimpleNamespace(Popen=ForkedRank, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
"""Stands in for the module `subprocess` in imago/cli/processes.py."""


def _be_a_rank(streams: list[Connection], environment: dict[str, str], is_leading: Connection) -> None:
    from imago.cli import processes

    os.setsid()
    is_leading.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [*environment["PYTHONPATH"].split(os.pathsep), *(path for path in sys.path if _is_installed(path))]
    for descriptor, stream in enumerate(streams):
        os.dup2(stream.fileno(), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    logging.getLogger().handlers.clear()
    processes.main()


def _is_installed(path: str) -> bool:
    return path.startswith((sys.prefix, sys.base_prefix))

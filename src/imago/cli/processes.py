"""A run on several devices: the command is rank 0 and starts one more process for each further device.

    python src/train.py trainer=ddp trainer.devices=4

Lightning would start the whole command line again; ours are given the composed config of rank 0 instead, so that a run
has one folder, one bar and one log, and a job of a sweep stays one job. Those of torchrun or srun get the same orders
from a store (leader.py). `torch.distributed.elastic.multiprocessing.start_processes` is not used: nothing would end
its processes when rank 0 is killed, as the end of their standard input does here.
"""

import json
import logging
import multiprocessing
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn, cast

from omegaconf import DictConfig, OmegaConf

from imago.cli.hydra_internals import restore_hydra
from imago.config.invocation import Invocation
from imago.config.launcher import Launch
from imago.config.own_code import OWN_CODE, allow_imports
from imago.config.resolvers import register
from imago.definitions import STOPPING, TERMINATED
from imago.errors import KILLED, UserError, message_of
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

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
    failed_here = True
    try:
        for rank in range(1, run.processes):
            ranks.append(_Rank(task, cfg, run, rank))
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
        failed = next((process for process in ranks if process.failed), None)
        if failed is None:
            raise
        raise failed.error() from error
    finally:
        for process in ranks:
            process.kill()
        leave_group(abort=failed_here)


class _Rank:
    """One process; its stdin stays open as long as rank 0 lives, its stdout is a file that brings its error."""

    def __init__(self, task: Callable[..., Any], cfg: DictConfig, run: RunFolder, rank: int) -> None:
        self.run = run
        self.rank = rank
        self.over = False
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
        """What it said when it failed."""
        self.stdout.seek(0)
        try:
            said = json.loads(self.stdout.read())
        except ValueError:  # it could not say anything: killed, or out of memory
            self.stderr.seek(0)
            last = self.stderr.read().strip()[-500:]
            said = {"message": f"{describe_exit(self.process.returncode)}\n{last}".strip(), "traceback": last}
        log.debug("Process %d of %d failed\n%s", self.rank, self.run.processes, said["traceback"])
        return ProcessError(f"In process {self.rank} of {self.run.processes}: {said['message']}")

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
        os._exit(1)


def record_failure(run: RunFolder, error: Exception) -> None:
    """Log and record an error that cannot be raised, because rank 0 is about to end in the middle of something."""
    message = f"{error}{run.resume_hint(chr(10))}"
    log.error("%s", message)
    run.update(status="failed", error=message)
    logging.shutdown()


def describe_exit(status: int) -> str:
    """Words for a process that ended without a message."""
    if status >= 0:
        return f"it ended with exit status {status}"
    name = signal.Signals(-status).name
    by = f"it was killed by {name}"
    return KILLED.format(f"{by}: the system sends it") if -status == signal.SIGKILL else by


def order_of(task: Callable[..., Any], cfg: DictConfig, run: RunFolder) -> dict[str, Any]:
    """Order for another process to do the task of rank 0, in plain types."""
    return {
        "task": _address(task),
        "run": str(run.path),
        "resume_from": str(run.resume_from) if run.resume_from is not None else None,
        "processes": run.processes,
        "port": run.port,
        "config": OmegaConf.to_yaml(cfg),
        "invocation": run.invocation.to_plain(),
        "own_code": {name: str(folder) for name, folder in OWN_CODE.folders.items()},
    }


def do_order(order: dict[str, Any], rank: int, launch: Launch | None = None) -> None:
    """Do the task of rank 0 in this process.

    Raises:
        UserError: This machine does not see the run folder.
    """
    for name, place in order["own_code"].items():
        allow_imports([name], Path(place))
    folder = Path(order["run"])
    if not folder.is_dir():
        raise UserError(
            f"{socket.gethostname()} does not see the run folder {folder}. Type paths.log_dir= (or hydra.run.dir=) "
            "with a folder that all nodes share."
        )
    run = RunFolder(folder, rank=rank, processes=order["processes"], port=order["port"], launch=launch)
    run.resume_from = Path(order["resume_from"]) if order["resume_from"] is not None else None
    run.invocation = Invocation.from_plain(order["invocation"])
    _at(*order["task"])(_restore_config(order["config"], run.invocation.hydra), run)
    leave_group()


def _address(task: Callable[..., Any]) -> tuple[str | None, str, str]:
    """Module (None: a script that was started by its path), file and name of `task`."""
    module = sys.modules[task.__module__]
    if module.__name__ == "__main__":
        spec = module.__spec__
        return (spec.name if spec is not None else None), str(module.__file__), task.__name__
    return module.__name__, str(module.__file__), task.__name__


def _at(module: str | None, file: str, name: str) -> Callable[..., Any]:
    if module is not None:
        return getattr(import_module(module), name)
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return getattr(script, name)


def main() -> None:
    """Rank 1 and up: does the task that rank 0 writes to stdin, silently; the error, if any, goes to stdout."""
    for number in (signal.SIGINT, *STOPPING):
        signal.signal(number, signal.SIG_IGN)  # rank 0 answers for all
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    to_rank_0, sys.stdout = sys.stdout, sys.stderr  # what is printed here is rank 0's to say
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    try:
        do_order(order, order["rank"])
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:  # agreed with rank 0, which says why
            _exit(to_rank_0, 0)
        said = {"message": message_of(error), "traceback": traceback.format_exc()}
        to_rank_0.write(json.dumps(said))
        _exit(to_rank_0, 1)
    _exit(to_rank_0, 0)


def leave_group(abort: bool = False) -> None:
    """Leave the process group, if there is one."""
    if "torch" in sys.modules:  # else there is none, and --help stays light
        from imago.distributed import leave_process_group

        leave_process_group(abort)


def _restore_config(text: str, hydra_settings: str) -> DictConfig:
    """The config of rank 0."""
    restore_hydra(hydra_settings)
    register()
    cfg = cast(DictConfig, OmegaConf.create(text))
    OmegaConf.set_struct(cfg, True)
    return cfg


def _exit(to_rank_0: Any, code: int) -> NoReturn:
    to_rank_0.flush()
    end(code)


def _end_with_rank_0() -> None:
    # not sys.stdin.read(): it would hold a lock that every loader worker, forked meanwhile, waits for in vain
    while os.read(0, 1024):
        pass
    end(1)


def end(code: int) -> NoReturn:
    """End this process at once, with the loader's workers: threads of a broken process group would wait for others."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


if __name__ == "__main__":
    main()

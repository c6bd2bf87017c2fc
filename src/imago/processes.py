"""A run on several devices: the command is rank 0 and starts one more process for each further device.

    python src/train.py trainer=ddp trainer.devices=4

Lightning would start the whole command line again; ours are given the composed config of rank 0 instead, so that a run
has one folder, one bar and one log, and a job of a sweep stays one job.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from imago.config import restore_config
from imago.messages import message_of, raised_by_us
from imago.run_folder import RunFolder

log = logging.getLogger(__name__)

SECONDS_TO_END = 60  # after rank 0 is through
SECONDS_TO_RAISE = 15  # for rank 0 to notice by itself that another is gone


class ProcessError(ValueError):
    """What went wrong in another process than rank 0."""


def process_count(trainer: DictConfig) -> int:
    """How many processes `trainer.devices` asks for, one for each device.

    Raises:
        ValueError: This machine does not have them.
    """
    accelerator, devices = str(trainer.accelerator), trainer.devices
    if accelerator == "cpu":
        return 1 if str(devices) in ("auto", "-1") else len(_device_numbers(devices))
    import torch

    mps = torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps")
    here = 1 if mps else torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    wanted = list(range(max(here, 1))) if str(devices) in ("auto", "-1") else _device_numbers(devices)
    if accelerator in ("gpu", "cuda", "mps") and max(wanted) >= here:
        there = f"this machine has {here}" if here else "there is no GPU here"
        what = f"trainer.accelerator={accelerator}, trainer.devices={devices}"
        raise ValueError(f"{what}: {there}. Type trainer=cpu{f', or trainer.devices={here}' if here else ''}")
    return len(wanted)


def _device_numbers(devices: Any) -> list[int]:
    """`4` -> the first four, `"0,2"` or `[0, 2]` -> these two."""
    try:
        if isinstance(devices, str) and "," in devices:
            numbers = [int(number) for number in devices.split(",") if number.strip()]
        else:
            numbers = list(range(int(devices))) if isinstance(devices, int | str) else [int(each) for each in devices]
    except ValueError:
        numbers = []
    if not numbers:
        raise ValueError(f"trainer.devices={devices}: give a number, 1 or more, a list such as [0,2], or auto.")
    return numbers


@contextmanager
def other_processes(task: Callable[..., Any], run: RunFolder) -> Iterator[None]:
    """Starts ranks 1 and up of `run`, each with the same `task`; none of them outlives the block.

    Raises:
        ProcessError: One of them failed, with its message.
    """
    if run.processes == 1:
        yield
        return
    ranks = [_Rank(task, run, rank) for rank in range(1, run.processes)]
    try:
        yield
        for rank in ranks:
            rank.finish()
    except Exception as error:
        if raised_by_us(error):
            raise
        for rank in ranks:  # rank 0 only sees that the connection broke
            rank.wait(2)
        failed = next((rank for rank in ranks if rank.failed), None)
        if failed is None:
            raise
        raise failed.error() from error
    finally:
        for rank in ranks:
            rank.kill()
        _leave_group()


class _Rank:
    """One process; its stdin stays open as long as rank 0 lives, its stdout brings its error."""

    def __init__(self, task: Callable[..., Any], run: RunFolder, rank: int) -> None:
        self.run = run
        self.rank = rank
        self.over = False
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed in kill
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imago.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self.process.stdin is not None
        order = {"task": [task.__module__, task.__name__], "run": str(run.path), "rank": rank}
        self.process.stdin.write(json.dumps(order | {"processes": run.processes, "port": run.port}) + "\n")
        self.process.stdin.flush()
        self.said = ""
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

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
            log.warning("Process %d did not end: it is stopped", self.rank)
        elif self.failed:
            raise self.error()

    def error(self) -> ProcessError:
        """What it said when it failed."""
        self.watch.join(2)
        try:
            said = json.loads(self.said)
        except ValueError:  # it could not say anything: killed, or out of memory
            self.stderr.seek(0)
            last = self.stderr.read().strip()[-500:]
            said = {"message": f"it ended with exit status {self.process.returncode}. {last}", "traceback": last}
        log.debug("Process %d of %d failed\n%s", self.rank, self.run.processes, said["traceback"])
        return ProcessError(f"In process {self.rank} of {self.run.processes}: {said['message']}")

    def kill(self) -> None:
        """Ends it, if it has not."""
        self.over = True
        self.process.kill()
        self.process.wait()
        self.watch.join(2)
        for file in (self.process.stdin, self.process.stdout, self.stderr):
            assert file is not None
            with suppress(OSError):
                file.close()

    def _watch(self) -> None:
        assert self.process.stdout is not None
        self.said = self.process.stdout.read()
        if self.process.wait() and not self.over:
            timer = threading.Timer(SECONDS_TO_RAISE, self._end_rank_0)
            timer.daemon = True
            timer.start()

    def _end_rank_0(self) -> None:
        """Rank 0 waits, in C++, for one that is gone: no exception reaches it."""
        if self.over:
            return
        error = str(self.error())
        log.error("%s", error)
        self.run.update(status="failed", error=error)
        logging.shutdown()
        os._exit(1)


def _leave_group() -> None:
    """So that the next job of a sweep can make a group of its own."""
    if "torch" in sys.modules:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def main() -> None:
    """Rank 1 and up: does the task that rank 0 writes to stdin, silently; the error, if any, goes to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 answers for all
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    to_rank_0, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    sys.path.append(os.getcwd())
    try:
        folder = Path(order["run"])
        run = RunFolder(folder, rank=order["rank"], processes=order["processes"], port=order["port"])
        module, name = order["task"]
        getattr(import_module(module), name)(restore_config(folder), run)
        _leave_group()
    except BaseException as error:
        said = {"message": message_of(error), "traceback": traceback.format_exc()}
        to_rank_0.write(json.dumps(said))
        _exit(to_rank_0, 1)
    _exit(to_rank_0, 0)


def _exit(to_rank_0: Any, code: int) -> NoReturn:
    to_rank_0.flush()
    os._exit(code)  # at once: threads of a broken process group would wait for their peers


def _end_with_rank_0() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()

"""The store through which rank 0 gives its orders to the processes that a launcher has started beside it."""

import os
import re
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from imago.config.launcher import TORCHRUN, Launch
from imago.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

SECONDS_TO_MEET = 600
"""For the others to reach rank 0, which imports torch first; the nodes of a job may start minutes apart."""
POLL_SECONDS = 0.2
LEFT = "left"
"""Sign of life of a process that ends as it should."""
LOST = re.compile(r"[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|[Ss]ocket|remote process|NCCL error")


def this_machine() -> str:
    """Text that is equal for processes that see each other by their numbers: machine, and PID namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return uuid.uuid4().hex


def has_ended(process: int) -> bool:
    """Whether a process of this machine has ended, though its parent may not have noticed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class RunStore:
    """Texts by key, in a `torch.distributed.TCPStore` and not in a folder: nodes need not share a clock, and a shared
    file system may show a new file late.

    Under torchrun the agent of the first node serves the store (TORCHELASTIC_USE_AGENT_STORE), otherwise rank 0 does,
    at MASTER_PORT. An agent keeps the texts of an attempt when it restarts its processes, and agents of several nodes
    do not count these restarts alike (TORCHELASTIC_RESTART_COUNT): so each rank 0 draws a name for its texts, and the
    others ask for it.
    """

    def __init__(self, launch: Launch) -> None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would show its own stack where a process is gone
        from torch.distributed import PrefixStore, TCPStore

        self._prefix = PrefixStore
        try:
            self._all: Store = TCPStore(
                launch.address,
                launch.port,
                is_master=launch.rank == 0 and not launch.has_store,
                wait_for_workers=False,
                timeout=timedelta(seconds=SECONDS_TO_MEET),
            )
        except RuntimeError as error:
            other = "MASTER_PORT=" if launch.launcher != TORCHRUN else "torchrun --master_port="
            raise UserError(
                f"Process {launch.rank} of {launch.processes} cannot meet the others at {launch.address}, port "
                f"{launch.port}: {str(error).splitlines()[0]}\nIf the port is in use, set another one: {other}"
            ) from error
        self._own: Store = self._all
        self._name = ""
        self._answered = 0

    def begin(self) -> None:
        """Rank 0 begins; what an earlier one has left stays out of sight."""
        self._name = uuid.uuid4().hex
        self._own = self._prefix(self._name, self._all)

    def answer(self) -> int:
        """Rank 0 tells its name to the processes that ask; returns how many have asked."""
        asked = self._all.add("asked", 0)
        while self._answered < asked and (question := self._read(self._all, f"asked/{self._answered + 1}")) is not None:
            self._all.set(question, self._name)
            self._answered += 1
        return self._answered

    def join(self) -> None:
        """Ask for the name of rank 0, as long as it takes: it may look at the data first."""
        question = uuid.uuid4().hex
        self._all.set(f"asked/{self._all.add('asked', 1)}", question)
        while (name := self._read(self._all, question)) is None:
            time.sleep(POLL_SECONDS)
        self._own = self._prefix(name, self._all)

    def write(self, key: str, text: str) -> None:
        """Set a text."""
        self._own.set(key, text)

    def read(self, key: str) -> str | None:
        """The text of a key; None without one."""
        return self._read(self._own, key)

    def count(self, key: str, amount: int = 0) -> int:
        """Add `amount` to a counter, which begins with 0, and return it."""
        return self._own.add(key, amount)

    @staticmethod
    def _read(store: "Store", key: str) -> str | None:
        return store.get(key).decode() if store.check([key]) else None


def lost_connection(error: BaseException) -> bool:
    """Whether an exception is only the echo of what has happened to another process."""
    return isinstance(error, RuntimeError) and not isinstance(error, UserError) and bool(LOST.search(str(error)))


def lost_message(error: BaseException) -> str:
    """Message for a connection that has broken."""
    last = str(error).strip().splitlines()[0][:200]
    return f"Another process is gone without a message: it was killed, or its machine has stopped ({last})."

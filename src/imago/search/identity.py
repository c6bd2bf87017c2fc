"""Whether a search is that for which its study was made, and whether another process searches it."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imago.errors import UserError
from imago.run import lock
from imago.terminal import shortened


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first part in which two searches differ."""
    former, current = before.get("space", {}), now["space"]
    for key in {**former, **current}:
        if former.get(key) != current.get(key):
            return f"it had {key}={former.get(key, 'no values')}, now {key}={current.get(key, 'no values')}"
    for part in ("objectives", "monitor", "overrides"):
        if before.get(part) != now[part]:
            return f"its {part} had {_differing(before.get(part) or [], now[part])}"
    return "its settings were others"


def _differing(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = [word for word in before if word not in now], [word for word in now if word not in before]
    return f"{' '.join(gone) or 'nothing'}, now {' '.join(new) or 'nothing'}"


def is_alive(owner: Mapping[str, Any], folder: Path) -> bool:
    """Whether the process that owns a study searches in another folder, and may not have ended."""
    former = Path(owner["folder"])
    if former == folder:  # this process has its lock
        return False
    if not former.is_dir():  # on another machine's disk, or removed
        return bool(owner["machine"] != socket.gethostname())
    try:
        return lock.is_taken(former)
    except OSError:  # a file system without locks
        return True


def check_trials(folder: Path, study: str, known: int) -> None:
    """Raise UserError if a folder has runs with numbers that are not among the `known` trials of the study: it would
    take them for its own."""
    numbers = {path.parent.name: path.parent.name.partition("_")[0] for path in folder.glob("*/status.json")}
    strange = sorted(name for name, number in numbers.items() if number.isdecimal() and int(number) >= known)
    if strange:
        raise UserError(
            f"{folder} has runs that the study {study} does not know: {shortened(strange)}. They are of another sweep "
            "or study, or theirs is gone or was in memory. Type another hydra.sweep.dir=, or the words that began them."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, the folder of a search belongs to this process.

    Raises:
        UserError: Another search has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not lock.take(folder):
        process, machine = lock.owner(folder) or ("", "a machine")
        raise UserError(
            f"{folder} is searched by process {process} on {machine}. Wait until it has ended, or type another "
            "hydra.sweeper.study_name= or hydra.sweep.dir=. For more trials at the same time type "
            "hydra.sweeper.n_jobs=."
        )
    try:
        yield
    finally:
        lock.release(folder)

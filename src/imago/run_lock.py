"""One process per run folder: a lock that is free again when its owner is gone, however it went.

POSIX record locks belong to a process. Those of `flock` belong to the open file, which loader workers inherit: one that
is left over would keep a dead run's folder locked.
"""

from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there, only the process in status.json is looked for
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
HAS_LOCKS = fcntl is not None
_held: dict[Path, IO[str]] = {}
"""Files that stay open: closing any descriptor of a file ends the locks of this process on it."""


def take(folder: Path) -> bool:
    """Locks `folder` for this process until `release`; False where another process has it."""
    folder = folder.resolve()
    if fcntl is None or folder in _held:
        return True
    file = (folder / FILE).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held[folder] = file
    return True


def release(folder: Path) -> None:
    """Gives the lock back, if this process has it."""
    if (file := _held.pop(folder.resolve(), None)) is not None:
        file.close()


def is_taken(folder: Path) -> bool:
    """Whether some process, this one included, has the lock."""
    if folder.resolve() in _held:
        return True
    if not (folder / FILE).is_file() or not take(folder):
        return (folder / FILE).is_file()
    release(folder)
    return False

"""One process per run folder: a lock that is free again when its owner is gone, however it went.

POSIX record locks belong to a process. Those of `flock` belong to the open file, which loader workers inherit: one that
is left over would keep a dead run's folder locked.
"""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there, only the process in status.json is looked for
    fcntl = None  # type: ignore[assignment]


FILE = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
SECONDS = 0.2  # for ml-status to look
_held: dict[Path, IO[str]] = {}
"""Files that stay open: closing any descriptor of a file ends the locks of this process on it."""


def take(folder: Path) -> bool:
    """Locks `folder` for this process until `release`; False where another process has it. On a disk without locks
    it is not `held` then."""
    folder = folder.resolve()
    if fcntl is None or folder in _held:
        return True
    file = _opened(folder, os.O_RDWR | os.O_CREAT)
    for pause in (SECONDS, 0):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                break
            time.sleep(pause)
        else:
            _held[folder] = file
            return True
    else:
        file.close()
        return False
    file.close()
    return True


def _opened(folder: Path, flags: int) -> IO[str]:
    """The lock file; OSError where it is a link, a pipe or the like, as a stranger may have left there."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(folder / FILE, flags | safe, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{folder / FILE} is not a regular file")
    return open(descriptor, "r+" if flags & os.O_RDWR else "r")


def held(folder: Path) -> bool:
    """Whether this process has the lock."""
    return folder.resolve() in _held


def release(folder: Path) -> None:
    """Gives the lock back, if this process has it."""
    if (file := _held.pop(folder.resolve(), None)) is not None:
        file.close()


def is_taken(folder: Path) -> bool:
    """Whether some process, this one included, has the lock.

    Raises:
        OSError: That cannot be known: a disk without locks, or a file of somebody else's.
    """
    if held(folder):
        return True
    if fcntl is None:
        raise OSError("there are no locks here")
    with suppress(FileNotFoundError), _opened(folder, os.O_RDONLY) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # needs no right to write
        except OSError as error:
            if error.errno in TAKEN:
                return True
            raise
    return False

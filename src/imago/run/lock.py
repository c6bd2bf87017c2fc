"""One process per run folder: a lock that is free again when its owner has ended, in whatever way.

POSIX record locks belong to a process. Those of `flock` belong to the open file, which loader workers inherit: a worker
that is left over would keep a dead run's folder locked.
"""

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: only the process in status.json is checked
    fcntl = None  # type: ignore[assignment]


FILE = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
SECONDS = 0.2  # time for ml-status to look
_held: dict[Path, IO[str]] = {}
"""Files that stay open: closing any descriptor of a file releases the locks of this process on it."""


def take(folder: Path) -> bool:
    """Lock `folder` for this process until `release`; False if another process has it. On a file system without locks
    it is True, but the lock is not `held`."""
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
            _write_owner(file.fileno())
            return True
    else:
        file.close()
        return False
    file.close()
    return True


def _write_owner(descriptor: int) -> None:
    """Say in a locked file whose lock it is: `status.json` may still be that of an earlier process."""
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)


def owner(folder: Path) -> tuple[int, str] | None:
    """Process and machine that last took the lock of `folder`; None if they are not known. Not for a process that has
    the lock, which would lose it."""
    with suppress(OSError, ValueError), _opened(folder, os.O_RDONLY) as file:
        process, machine = file.read(300).split(" ", 1)
        return int(process), machine
    return None


def _opened(folder: Path, flags: int) -> IO[str]:
    """Open the lock file. Raises OSError if it is a link, a pipe or the like, as a stranger may have left there."""
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
    """Release the lock, if this process has it."""
    if (file := _held.pop(folder.resolve(), None)) is not None:
        file.close()


def is_taken(folder: Path) -> bool:
    """Whether any process, including this one, has the lock.

    Raises:
        OSError: It cannot be determined: a file system without locks, or another user's file.
    """
    if held(folder):
        return True
    if fcntl is None:
        raise OSError("file locks are not available here")
    with suppress(FileNotFoundError), _opened(folder, os.O_RDONLY) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # needs no write permission
        except OSError as error:
            if error.errno in TAKEN:
                return True
            raise
    return False

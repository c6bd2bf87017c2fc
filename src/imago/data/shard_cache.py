"""Shards at a URL: whole ones on the local disk, shared by all processes and runs, within a budget."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from imago.data.digests import crc_of
from imago.data.shard_ahead import NoRoomError
from imago.data.shard_download import REPAIR, Remote
from imago.data.shard_files import ShardError
from imago.data.shard_index import DIGESTS, INDEX, MANIFEST, SplitIndex
from imago.errors import DownloadError, UserError

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

GIGABYTE = 10**9
MOST_LISTED = 2**48  # bytes of an index
SHA = re.compile("[0-9a-f]{64}")


class RemotePlace:
    """Shards at a URL of fsspec: `http(s)`, `s3`, `gs` and the like.

    Shards in use are locked, so that no process of any run removes them; of the others, those that were opened longest
    ago make room.

    Args:
        url: Folder with the files of `ml-shard`.
        cache: Folder of all cached shards, of whatever URL.
        budget: Bytes that they may take.
    """

    repair = REPAIR

    def __init__(self, url: str, cache: Path, budget: int) -> None:
        self.remote = Remote(url)
        self.root = self.remote.root
        self.cache = cache
        self.folder = cache / hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.budget = budget
        self._has_warned = False
        self._kept: set[Path] = set()

    def index(self) -> Path:
        """Return the local copy of the index, downloaded where it has changed.

        Raises:
            DownloadError: It cannot be downloaded.
        """
        return self._listed(INDEX)

    def digests(self) -> Path:
        return self._listed(DIGESTS)

    def open(self, index: SplitIndex, number: int) -> int:
        path = self._path(index, number)
        while True:
            with suppress(FileNotFoundError):  # another process may remove it at any time until it is locked
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                with suppress(OSError):  # of a file system without locks
                    if fcntl is not None:
                        fcntl.flock(descriptor, fcntl.LOCK_SH)
                with suppress(OSError):
                    os.utime(path)
                return descriptor
            self.fetch(index, number)

    def fetch(self, index: SplitIndex, number: int, is_urgent: bool = True) -> None:
        """Download a shard to the cache, unless it is there.

        Raises:
            ShardError: It cannot be downloaded or kept.
            NoRoomError: It is not urgent, and those in use leave no room for it.
        """
        path, size, crc = self._path(index, number), int(index.shard_size[number]), int(index.shard_crc[number])
        self._fetch(index.shard_name(number), path, size, lambda part: _crc_of(part) == crc, is_urgent)

    def keep(self, index: SplitIndex, numbers: Sequence[int]) -> None:
        """Keep these shards, and no others: they make room for none that is downloaded ahead, and the last of them at
        the very last for one that is read at once, whichever process needs it."""
        paths = [self._path(index, number) for number in numbers]
        self._kept = {*paths}
        for path in paths:
            with suppress(OSError):  # it is not there
                os.utime(path)

    def drop(self, index: SplitIndex, number: int, descriptor: int) -> bool:
        path = self._path(index, number)
        with suppress(OSError):  # of a disk that is read-only by now, and of a shard that is gone
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else another process has fetched a good one
                path.unlink()
        return True

    def _path(self, index: SplitIndex, number: int) -> Path:
        crc = int(index.shard_crc[number])  # shards that were written again have another name
        return self.folder / f"{index.split}-{number:06d}.{crc:08x}.tar"

    def _listed(self, name: str) -> Path:
        """Return the local copy of a file that the manifest lists."""
        try:
            entry = json.loads(self.remote.small(MANIFEST))[name]
            sha, size = entry["sha256"], entry["size"]
            if not SHA.fullmatch(sha) or not 0 < size < MOST_LISTED:
                raise ValueError
            path = self.folder / f"{sha[:16]}.{name}"
            self._fetch(name, path, size, partial(_has_sha, sha))
        except UserError as error:
            raise DownloadError(f"data.shards={self.root}: {error}.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DownloadError(f"data.shards={self.root}: {MANIFEST} is not one that ml-shard wrote.") from error
        return path

    def _fetch(
        self, name: str, path: Path, size: int, is_whole: Callable[[Path], bool], is_urgent: bool = True
    ) -> None:
        """Download a file, unless another process does so meanwhile.

        Raises:
            ShardError: It is not there, does not arrive whole in any try, or does not fit on the disk.
        """
        if _size_of(path) == size:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):  # of somebody else
                self.cache.chmod(0o700)  # the images may be private, whatever this process's umask is
            with FileLock(f"{path}.lock"):
                if _size_of(path) == size:
                    return
                part = Path(f"{path}.part")
                try:
                    self._make_room(part, size, is_urgent)
                    with part.open("r+b") as file:
                        self.remote.copy(name, file, size, lambda: is_whole(part))
                    os.replace(part, path)
                finally:
                    with suppress(OSError):
                        part.unlink(missing_ok=True)
        except OSError as error:
            raise ShardError(
                f"{name} of {self.root} could not be written to {self.folder}: {error}. Free some space, type a "
                "smaller data.shard_cache_gb=, or another paths.cache_dir="
            ) from error

    def _make_room(self, part: Path, size: int, is_urgent: bool) -> None:
        """Reserve `size` bytes for `part`, in place of shards that were opened longest ago and are in use nowhere; and
        if it is not urgent, not in place of those to `keep`."""
        with FileLock(self.cache / "room.lock"):
            _remove_left_parts(self.cache, part)
            kept = self._kept
            shards = sorted(self.cache.glob("*/*.tar"), key=lambda path: (path in kept, _time_of(path)))
            used = sum(map(_size_of, [*shards, *self.cache.glob("*/*.part")]))
            for path in shards:
                if used + size <= self.budget or (path in kept and not is_urgent):
                    break
                there = _size_of(path)
                used -= there if _is_removed(path) else 0
            if used + size > self.budget:
                if not is_urgent:
                    raise NoRoomError
                level = logging.DEBUG if self._has_warned else logging.WARNING
                self._has_warned = True
                log.log(
                    level,
                    "Shards in use need more than data.shard_cache_gb=%.3g: %s",
                    self.budget / GIGABYTE,
                    self.cache,
                )
            with part.open("wb") as file:
                file.truncate(size)  # so that other processes count it


def default_budget(cache: Path) -> int:
    """Return a quarter of the disk that is free, or taken by cached shards.

    Raises:
        UserError: The folder cannot be made.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise UserError(f"The cache of shards cannot be made: {error}. Type another paths.cache_dir=") from error
    return (free + sum(map(_size_of, cache.glob("*/*.tar")))) // 4


def _remove_left_parts(cache: Path, own: Path) -> None:
    """Remove what processes that were killed have left."""
    for part in cache.glob("*/*.part"):
        if part != own:
            with suppress(Timeout, OSError), FileLock(f"{part.with_suffix('')}.lock", timeout=0):
                part.unlink(missing_ok=True)


def _is_removed(path: Path) -> bool:
    """Remove a shard, unless a process has it open."""
    try:
        with path.open("r+b") as file:  # NFS gives no exclusive lock of a file that is open for reading
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _time_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _crc_of(path: Path) -> int:
    with path.open("rb") as file:
        return crc_of(file)


def _has_sha(expected: str, path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected

"""Shards at a URL: whole ones on the local disk, shared by all processes and runs, within a budget."""

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from imago.data.shard_files import ShardError
from imago.data.shard_index import DIGESTS, INDEX, MANIFEST, SplitIndex
from imago.errors import DownloadError, UserError
from imago.files import DISK_ERRORS

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TRIES = 5
DELAY = 1.0  # seconds before the second try; then twice as many each time
TIMEOUT = 60  # seconds without an answer or a byte
PART = 2**20
GIGABYTE = 10**9
MANIFEST_SIZE = 2**16


class RemotePlace:
    """Shards at a URL of fsspec: `http(s)`, `s3`, `gs` and the like.

    Shards in use are locked, so that no process of any run removes them; of the others, those that were opened longest
    ago make room.

    Args:
        url: Folder with the files of `ml-shard`.
        cache: Folder of all cached shards, of whatever URL.
        budget: Bytes that they may take.
    """

    def __init__(self, url: str, cache: Path, budget: int) -> None:
        self.root = url.rstrip("/")
        self.cache = cache
        self.folder = cache / hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.budget = budget
        self.repair = "Copy it there again, or write the shards again with ml-shard"
        self._connection: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

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
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                with suppress(OSError):
                    os.utime(path)
                return descriptor
            size, crc = int(index.shard_size[number]), int(index.shard_crc[number])
            self._fetch(index.shard_name(number), path, size, partial(_has_crc, crc))

    def drop(self, index: SplitIndex, number: int) -> bool:
        self._path(index, number).unlink(missing_ok=True)
        return True

    def _path(self, index: SplitIndex, number: int) -> Path:
        crc = int(index.shard_crc[number])  # shards that were written again have another name
        return self.folder / f"{index.split}-{number:06d}.{crc:08x}.tar"

    def _listed(self, name: str) -> Path:
        """Return the local copy of a file that the manifest lists."""
        try:
            content = self._retried(MANIFEST, lambda: self._small(MANIFEST))
            sha, size = json.loads(content)[name]["sha256"], int(json.loads(content)[name]["size"])
            path = self.folder / f"{str(sha)[:16]}.{name}"
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise DownloadError(f"data.shards={self.root}: {error}") from error
            raise DownloadError(f"data.shards={self.root}: {MANIFEST} is not one that ml-shard wrote.") from error
        if not path.is_file():
            self._fetch(name, path, size, partial(_has_sha, sha))
        return path

    def _fetch(self, name: str, path: Path, size: int, is_whole: Callable[[Path], bool]) -> None:
        """Download a file, unless another process does so meanwhile.

        Raises:
            ShardError: It is not there, does not arrive whole in any try, or does not fit on the disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache.chmod(0o700)  # the images may be private, whatever this process's umask is
        with FileLock(f"{path}.lock"):
            if path.is_file():
                return
            part = Path(f"{path}.part")
            try:
                self._make_room(part, size)
                self._retried(name, lambda: self._copied(name, part, size, is_whole))
                os.replace(part, path)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                raise ShardError(
                    f"{name} of {self.root} could not be written to {self.folder}: {error}. Free some space, or type a "
                    "smaller data.shard_cache_gb="
                ) from error
            finally:
                part.unlink(missing_ok=True)

    def _retried(self, name: str, attempt: Callable[[], Any]) -> Any:
        """Return what `attempt` does, after failures in up to `TRIES` tries with growing delays."""
        why = ""
        for number in range(TRIES):
            if number:
                time.sleep(DELAY * 2 ** (number - 1))
            try:
                return attempt()
            except FileNotFoundError as error:
                raise ShardError(f"{name} is not at {self.root}. {self.repair}") from error
            except ImportError as error:
                raise UserError(f"data.shards={self.root}: {error}.") from error
            except Exception as error:  # each protocol has exceptions of its own
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                why = str(error) or type(error).__name__
                log.info("Try %d of %d to download %s from %s: %s", number + 1, TRIES, name, self.root, why)
        raise ShardError(
            f"{name} could not be downloaded from {self.root} in {TRIES} tries; the last one: {why}. Make sure "
            "that the server can be reached, and start again"
        )

    def _copied(self, name: str, part: Path, size: int, is_whole: Callable[[Path], bool]) -> None:
        """Download a file to `part`, which has its size already, so that other processes count it."""
        with self._opened(name) as remote, part.open("r+b") as file:
            while (block := remote.read(PART)) and file.tell() + len(block) <= size:
                file.write(block)
            if file.tell() != size or block:
                raise UserError(f"{file.tell() + len(block)} of {size} bytes came")
        if not is_whole(part):
            raise UserError("its bytes are not those that were written")

    def _small(self, name: str) -> bytes:
        with self._opened(name) as remote:
            return remote.read(MANIFEST_SIZE)

    def _opened(self, name: str) -> Any:
        """Open a remote file as a stream, over a connection of this process."""
        if self._connection is None or self._connection[0] != os.getpid():
            from fsspec.core import url_to_fs

            files, folder = url_to_fs(self.root, **_options(self.root), skip_instance_cache=True)
            self._connection = os.getpid(), files, folder
        _, files, folder = self._connection
        stream = {"block_size": 0} if self.root.startswith("http") else {}  # not every server sends parts
        return files.open(f"{folder}/{name}", "rb", **stream)

    def _make_room(self, part: Path, size: int) -> None:
        """Reserve `size` bytes for `part`, in place of shards that were opened longest ago and are in use nowhere."""
        with FileLock(self.cache / "room.lock"):
            _remove_left_parts(self.cache, part)
            shards = sorted(self.cache.glob("*/*.tar"), key=_time_of)
            used = sum(map(_size_of, [*shards, *self.cache.glob("*/*.part")]))
            for path in shards:
                if used + size <= self.budget:
                    break
                there = _size_of(path)
                used -= there if _is_removed(path) else 0
            if used + size > self.budget:
                log.warning(
                    "The shards in use need more than data.shard_cache_gb=%.3g: %s", self.budget / GIGABYTE, self.cache
                )
            with part.open("wb") as file:
                file.truncate(size)


def check_url(url: str) -> None:
    """Raise UserError for a URL with a query or with a password."""
    if "?" in url or "@" in url.partition("://")[2].partition("/")[0]:
        raise UserError(
            "data.shards= must be the URL of a folder, without a query and without a password, which the report would "
            "show. Put a password into ~/.netrc, or where the client of the store looks for it."
        )


def default_budget(cache: Path) -> int:
    """Return a quarter of the disk that is free, or taken by cached shards."""
    cache.mkdir(parents=True, exist_ok=True)
    return (shutil.disk_usage(cache).free + sum(map(_size_of, cache.glob("*/*.tar")))) // 4


def _options(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _remove_left_parts(cache: Path, own: Path) -> None:
    """Remove what processes that were killed have left."""
    for part in cache.glob("*/*.part"):
        if part != own:
            with suppress(Timeout, OSError), FileLock(f"{part.with_suffix('')}.lock", timeout=0):
                part.unlink(missing_ok=True)


def _is_removed(path: Path) -> bool:
    """Remove a shard, unless a process has it open."""
    try:
        with path.open("rb") as file:
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


def _has_crc(expected: int, path: Path) -> bool:
    crc = 0
    with path.open("rb") as file:
        while part := file.read(PART):
            crc = zlib.crc32(part, crc)
    return crc == expected


def _has_sha(expected: str, path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected

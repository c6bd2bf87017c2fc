"""Reading of shards: bytes at a position of a tar, which is opened on first use in each process."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imago.data.decode import BadImageError
from imago.data.shard_index import BLOCK, DIGESTS, SplitIndex
from imago.errors import UserError
from imago.terminal import counted, shortened

MOST_OPEN = 256  # shards that a process keeps open


class ShardError(BadImageError):
    """A shard cannot be read, or does not have the bytes that the index says."""

    lasting = False
    advice = ""


class Place(Protocol):
    """Where the shards are."""

    root: str
    repair: str
    """Sentence on how to restore a damaged shard."""

    def open(self, index: SplitIndex, number: int) -> int:
        """Open a shard for reading; OSError if it cannot be opened."""

    def digests(self) -> Path:
        """Return the local file of the digests."""

    def drop(self, index: SplitIndex, number: int, descriptor: int) -> bool:
        """Remove a damaged copy of a shard, which is open as `descriptor`; whether another one can be had."""


class LocalPlace:
    """Folder of `ml-shard` on this machine, or on a disk that it has mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder)
        self.repair = f"Copy it again, or type ml-shard FOLDER --output {folder}, which writes only what is damaged"

    def open(self, index: SplitIndex, number: int) -> int:
        return os.open(self.folder / index.shard_name(number), os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def digests(self) -> Path:
        return self.folder / DIGESTS

    def drop(self, index: SplitIndex, number: int, descriptor: int) -> bool:
        del index, number, descriptor
        return False

    def check(self, index: SplitIndex) -> None:
        """Raise UserError if shards are missing, or have another size than when they were written."""
        missing, odd = [], []
        for number, size in enumerate(index.shard_size.tolist()):
            name = index.shard_name(number)
            try:
                there = (self.folder / name).stat().st_size
            except FileNotFoundError:
                missing.append(name)
                continue
            if there != size:
                odd.append(f"{name} ({there} of {size} bytes)")
        if missing or odd:
            parts = [f"{counted(len(missing), 'shard')} missing: {shortened(missing)}"] if missing else []
            parts += [f"{counted(len(odd), 'shard')} of another size than written: {shortened(odd)}"] if odd else []
            raise UserError(f"{self.folder} has {'; '.join(parts)}. {self.repair}.")


@dataclass
class _Handle:
    """Descriptor of an open shard, the number of threads that read it, and whether the last of these closes it."""

    descriptor: int
    users: int = 0
    is_dropped: bool = False

    def close_unused(self) -> None:
        if self.is_dropped and not self.users:
            os.close(self.descriptor)


class ShardReader:
    """Reads images from shards and compares their CRC; at most `most_open` shards are open in a process."""

    def __init__(self, place: Place, most_open: int = MOST_OPEN) -> None:
        self.place = place
        self.most_open = most_open
        self._start()

    def close(self) -> None:
        """Close all shards, which others may then remove from a cache; the next read opens them again."""
        with self._lock:
            for key in [*self._handles]:
                self._drop(key)

    def _start(self) -> None:
        self._handles: OrderedDict[tuple[str, int], _Handle] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process == os.getpid():
            self._close_copies()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "most_open": self.most_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, index: SplitIndex, row: int) -> bytes:
        """Read the file of an image.

        Raises:
            ShardError: The shard is missing or truncated, or the bytes are not those of the index.
        """
        number = int(index.shard[row])
        content, why = self._bytes(index, row, number)
        if content is None and self._is_replaced(index, number):
            content, why = self._bytes(index, row, number)
        if content is None:
            raise ShardError(f"{index.shard_name(number)} in {self.place.root} {why}. {self.place.repair}")
        return content

    def _is_replaced(self, index: SplitIndex, number: int) -> bool:
        """Drop a damaged shard; whether another copy can be had."""
        with self._lock:
            handle = self._handles.get((index.split, number))
            if handle is None:  # it cannot be opened, or another thread was faster
                return True
            can_be_had = self.place.drop(index, number, handle.descriptor)
            self._drop((index.split, number))
        return can_be_had

    def _bytes(self, index: SplitIndex, row: int, number: int) -> tuple[bytes | None, str]:
        """Return the bytes of an image, or None and what is wrong with its shard."""
        size, offset = int(index.size[row]), BLOCK * int(index.block[row])
        if offset + size > int(index.shard_size[number]):  # a stranger's index could ask for any amount of memory
            return None, "ends before an image that the index has there"
        try:
            with self._opened(index, number) as descriptor:
                content = read_at(descriptor, size, offset)
        except FileNotFoundError:
            return None, "is missing"
        except OSError as error:
            return None, f"cannot be read ({error.strerror or error})"
        if len(content) < size:
            return None, "is truncated: it ends before the image that the index has there"
        if zlib.crc32(content) != int(index.crc[row]):
            return None, "is damaged: the bytes of an image do not have the checksum (CRC) of the index"
        return content, ""

    @contextmanager
    def _opened(self, index: SplitIndex, number: int) -> Iterator[int]:
        """Yield the descriptor of a shard, which stays open meanwhile."""
        if self._process != os.getpid():  # a fork: the parent's handles would keep its shards in use
            self._close_copies()
        key = (index.split, number)
        handle = self._taken(key)
        if handle is None:
            descriptor = self.place.open(index, number)  # a download may take long, and others may read meanwhile
            with self._lock:
                self._drop(key)  # if another thread was faster
                handle = self._handles[key] = _Handle(descriptor, users=1)
        try:
            yield handle.descriptor
        finally:
            with self._lock:
                handle.users -= 1
                handle.close_unused()

    def _taken(self, key: tuple[str, int]) -> _Handle | None:
        """Return an open shard with one user more; None if it is not open, after making room for it."""
        with self._lock:
            if (handle := self._handles.get(key)) is not None:
                self._handles.move_to_end(key)
                handle.users += 1
                return handle
            while len(self._handles) >= self.most_open:
                self._drop(next(iter(self._handles)))
        return None

    def _drop(self, key: tuple[str, int]) -> None:
        """Close a shard, now or after its last user; the lock is held."""
        if (handle := self._handles.pop(key, None)) is not None:
            handle.is_dropped = True
            handle.close_unused()

    def _close_copies(self) -> None:
        for handle in self._handles.values():
            os.close(handle.descriptor)
        self._start()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes from a position, fewer at the end of the file; threads do not disturb each other."""
    if not hasattr(os, "pread"):  # Windows
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)
    content = os.pread(descriptor, size, offset)
    while 0 < len(content) < size:  # an interrupted read, or one of more than 2 GB
        part = os.pread(descriptor, size - len(content), offset + len(content))
        if not part:
            break
        content += part
    return content


_seeking = threading.Lock()


def missing_index(folder: Path, names: Sequence[str]) -> UserError:
    """Make the error for a folder without an index; `names` are its entries."""
    has_tars = any(name.endswith(".tar") for name in names)
    how = "ml-shard has not finished: type it again, and it continues" if has_tars else "Write shards there"
    return UserError(f"data.shards={folder} has no index.npz. {how}: ml-shard FOLDER --output {folder}")

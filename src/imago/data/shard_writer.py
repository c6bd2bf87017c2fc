"""Writing of shards: tars in the WebDataset convention, each whole or not there."""

import hashlib
import mmap
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from imago.data.digests import crc_of, digest_of
from imago.data.folder_images import FolderImages
from imago.data.shard_index import (
    BLOCK,
    DAMAGE,
    DIGESTS,
    INDEX,
    MANIFEST,
    SplitRows,
    map_arrays,
    shard_name,
    write_arrays,
)
from imago.data.tree import stat_fingerprint
from imago.definitions import SPLITS
from imago.errors import UserError
from imago.files import atomic_write

MEGABYTE = 10**6
RECORD = 20 * BLOCK  # tars are padded to it
WORK = ".ml-shard"
"""Folder with the facts about shards that are finished, until all are."""
ORDER = 0
"""Seed of the order in which the images of train are written."""
LARGEST = 2**32
OWN_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")
OWN_TEMPORARY = re.compile(
    rf"\.({OWN_SHARD.pattern}(\.npz)?|{'|'.join(map(re.escape, (INDEX, DIGESTS, MANIFEST)))})\.\d+\.tmp"
)


@dataclass(frozen=True)
class Plan:
    """Division of a split into shards.

    Args:
        split: Name of the split.
        images: Its images.
        keys: Names in the tars, without suffix.
        sizes: Bytes of each file.
        shards: Indices of the images of each shard, in the order in which they are written.
    """

    split: str
    images: FolderImages
    keys: list[str]
    sizes: np.ndarray
    shards: list[np.ndarray]


def plan(split: str, images: FolderImages, shard_mb: float) -> Plan:
    """Divide a split into shards of about `shard_mb` megabytes. Train is shuffled once, so that shards mix the classes;
    the splits that are only scored keep the order of their paths, in which they are read.

    Raises:
        UserError: A file is gone, or too large.
    """
    sizes = np.array([_size(images, index) for index in range(len(images))], np.int64)
    order = np.arange(len(images))
    if split == "train":
        order = np.random.RandomState(ORDER).permutation(len(images))
    ends = np.cumsum(3 * BLOCK + -(-sizes[order] // BLOCK) * BLOCK)
    shards, first, before = [], 0, 0
    while first < len(order):
        last = max(first + 1, int(np.searchsorted(ends, before + shard_mb * MEGABYTE, side="right")))
        shards.append(order[first:last])
        first, before = last, int(ends[last - 1])
    return Plan(split, images, _keys(images.paths), sizes, shards)


def _size(images: FolderImages, index: int) -> int:
    path = images.root / images.paths[index]
    size = next(iter(stat_fingerprint(path)), None)
    if size is None:
        raise UserError(f"{path} is gone.")
    if size >= LARGEST:
        raise UserError(f"{path} has {size} bytes. Shards hold files below {LARGEST} bytes (4 GiB).")
    return size


def _keys(paths: Sequence[str]) -> list[str]:
    """Return the names of the samples: paths without suffix. Readers cut a name at its first dot, so further dots, and
    the percent sign that escapes them, are escaped; files that differ in their suffix only keep it in the name.

    Raises:
        UserError: A path stands there twice, as in a table.
    """
    keys = [_key(path) for path in paths]
    for index in _doubles(keys).tolist():
        keys[index] = f"{keys[index]}%%{_escaped(PurePosixPath(paths[index]).suffix[1:])}"  # no other has %%
    for index in _doubles(keys).tolist():
        raise UserError(f"{paths[index]} is listed twice. Shards hold an image once: leave one of the lines out.")
    return keys


def _doubles(keys: Sequence[str]) -> np.ndarray:
    """Return the positions of the keys that are not the only one of their kind."""
    hashes = np.array([int.from_bytes(hashlib.blake2b(_raw(key), digest_size=8).digest()) for key in keys], np.uint64)
    _, place, count = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.flatnonzero(count[place] > 1)


def _key(path: str) -> str:
    """Return a path without suffix, as a name in a tar: with escaped dots, and leading to nowhere outside."""
    name = PurePosixPath(path)
    folders = ["%2F" if part == "/" else "%2E%2E" if part == ".." else part for part in name.parts[:-1]]
    return "/".join([*folders, _escaped(name.stem)])


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Shard:
    """Facts about a shard: for each image in the order of the file its position, CRC-32 and digest; and the size and
    CRC-32 of the whole."""

    offset: np.ndarray
    crc: np.ndarray
    digest: np.ndarray
    size: int
    whole: int


class ShardFolder:
    """The folder into which shards are written; a second start keeps what is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / WORK
        self.written = 0
        self.kept = 0

    @property
    def is_ours(self) -> bool:
        """Whether the folder is empty, or one that ml-shard has begun."""
        return self.work.is_dir() or not any(self.folder.iterdir())

    def remove_others(self, plans: Sequence[Plan]) -> None:
        """Remove what an earlier start has left half written, and shards that these plans do not have."""
        names = {shard_name(plan.split, number) for plan in plans for number in range(len(plan.shards))}
        for path in [*self.folder.iterdir(), *self.work.iterdir()]:
            if path.name not in names and (OWN_SHARD.fullmatch(path.name) or OWN_TEMPORARY.fullmatch(path.name)):
                self._withdraw_index()
                path.unlink()

    def _withdraw_index(self) -> None:
        """Remove the index until it fits the shards again."""
        for name in (MANIFEST, INDEX):
            (self.folder / name).unlink(missing_ok=True)

    def write(self, plan: Plan, number: int) -> Shard:
        """Write a shard, unless it is there already, with the bytes of these files.

        Raises:
            DiskError: The disk refuses it.
            UserError: A file has changed meanwhile, or the disk returns other bytes than were written.
        """
        path, facts = self.folder / shard_name(plan.split, number), self.work / f"{shard_name(plan.split, number)}.npz"
        stamp = _stamp(plan, number)
        shard = self._finished(path, facts, stamp)
        if shard is not None:
            self.kept += 1
            return shard
        self._withdraw_index()
        shard = self._write(path, plan, number)
        columns = {"offset": shard.offset, "crc": shard.crc, "digest": shard.digest}
        numbers = {"size": np.array([shard.size]), "whole": np.array([shard.whole]), "stamp": stamp}
        write_arrays(facts, columns | numbers)
        self.written += 1
        return shard

    def _finished(self, path: Path, facts: Path, stamp: np.ndarray) -> Shard | None:
        """Return the facts about a shard that an earlier start has finished, if its bytes are still those."""
        try:
            known = map_arrays(facts)
            if not np.array_equal(known["stamp"], stamp) or path.stat().st_size != known["size"][0]:
                return None
            with path.open("rb") as file:
                is_whole = crc_of(file) == known["whole"][0]
        except DAMAGE:
            return None
        size, whole = int(known["size"][0]), int(known["whole"][0])
        return Shard(known["offset"], known["crc"], known["digest"], size, whole) if is_whole else None

    def _write(self, path: Path, plan: Plan, number: int) -> Shard:
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                offsets, crcs, digests = [], [], []
                for index in plan.shards[number].tolist():
                    content = _content(plan, index)
                    for part in _member(plan, index, content):
                        if part is content:
                            offsets.append(file.tell())
                        file.write(part)
                    crcs.append(zlib.crc32(content))
                    digests.append(digest_of(BytesIO(content), len(content)))
                file.write(bytes(2 * BLOCK + -(file.tell() + 2 * BLOCK) % RECORD))
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            with temporary.open("rb") as file:
                whole = _verified(file, plan.sizes[plan.shards[number]].tolist(), offsets, crcs, path)
        columns = np.array(offsets, np.int64), np.array(crcs, np.uint32), np.array(digests, np.int64)
        return Shard(*columns, size, whole)


def _content(plan: Plan, index: int) -> bytes:
    path = plan.images.root / plan.images.paths[index]
    content = path.read_bytes()
    if len(content) != plan.sizes[index]:
        raise UserError(f"{path} has changed while shards were written. Type the same words again.")
    return content


def _member(plan: Plan, index: int, content: bytes) -> Iterator[bytes]:
    """Yield the parts of a tar for an image: its file and its label, with their headers."""
    suffix = PurePosixPath(plan.images.paths[index]).suffix or ".img"
    label = str(plan.images.labels[index]).encode()
    for name, part in ((f"{plan.keys[index]}{suffix}", content), (f"{plan.keys[index]}.cls", label)):
        info = tarfile.TarInfo(name)
        info.size = len(part)
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        yield part
        yield bytes(-len(part) % BLOCK)


def _verified(file: BinaryIO, sizes: list[int], offsets: list[int], crcs: list[int], path: Path) -> int:
    """Read a shard from the disk again, and return its CRC-32.

    Raises:
        UserError: The bytes of an image are not those that were written.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else memory would answer, not the disk
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        for size, offset, crc in zip(sizes, offsets, crcs, strict=True):
            if zlib.crc32(view[offset : offset + size]) != crc:
                raise UserError(f"{path}: the disk returns other bytes than were written. Type another --output.")
        return zlib.crc32(view)


def _stamp(plan: Plan, number: int) -> np.ndarray:
    """Compute a fingerprint of the files of a shard: names, labels, sizes and times."""
    digest = hashlib.sha256()
    for index in plan.shards[number].tolist():
        path, label = plan.images.paths[index], plan.images.labels[index]
        times = stat_fingerprint(plan.images.root / path)
        digest.update(_raw(f"{path}\0{plan.keys[index]}\0{label}\0{times}\n"))
    return np.frombuffer(digest.digest(), np.uint8)


def rows_of(plan: Plan, shards: Sequence[Shard], groups: Mapping[str, int] | None = None) -> SplitRows:
    """Collect the facts about all shards of a split in the order of its paths; `groups` maps these to the numbers of
    their groups."""
    order = np.concatenate(plan.shards)
    lengths = [len(part) for part in plan.shards]
    numbers = np.repeat(np.arange(len(shards)), lengths)

    def sorted_by_path(column: np.ndarray) -> np.ndarray:
        placed = np.empty(len(order), column.dtype)
        placed[order] = column
        return placed

    offset, crc, digest = (
        sorted_by_path(np.concatenate(columns))
        for columns in zip(*((shard.offset, shard.crc, shard.digest) for shard in shards), strict=True)
    )
    return SplitRows(
        plan.images.paths,
        np.asarray(plan.images.labels),
        sorted_by_path(numbers),
        offset,
        plan.sizes,
        crc,
        digest,
        np.array([shard.size for shard in shards]),
        np.array([shard.whole for shard in shards]),
        np.array([groups[path] for path in plan.images.paths]) if groups else None,
    )


def numbered_groups(groups: Mapping[str, str]) -> dict[str, int]:
    """Map paths to the numbers of their groups, from 1 on; 0 is that of an image without one."""
    numbers = {group: number for number, group in enumerate(sorted({*groups.values()} - {""}), 1)} | {"": 0}
    return {path: numbers[group] for path, group in groups.items()}

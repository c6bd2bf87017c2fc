"""A cache of decoded pixels, in memory or on the disk, so that images are decoded only once."""

import hashlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import simplejpeg
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from imago.data.decode import damaged_files, note_damage
from imago.data.images import Images
from imago.errors import DiskError, UserError
from imago.files import atomic_folder
from imago.resources import free_memory, usable_cores

log = logging.getLogger(__name__)

FOLDER, PIXELS, SIZES, DAMAGED = "pixels", "pixels.bin", "sizes.npy", "damaged.json"
FORMAT = 2  # raise it when the same files decode to other pixels
SHARE = 4  # a cache takes a quarter of the free space
PART = 64  # images decoded at a time
SAMPLE = 32  # images by which the size of all is estimated
GIGABYTE = 10**9


class CachedImages(Images):
    """The images of `source` with pixels that are already decoded.

    Args:
        source: The images, with paths and labels.
        sizes: Heights and widths in pixels, int32 (n, 2).
        pixels: uint8 bytes of all images in a row, (height, width, channels) per image; or the file with these bytes,
            which all processes that open it share.
    """

    def __init__(self, source: Images, sizes: np.ndarray, pixels: Tensor | Path) -> None:
        self.source = source
        self.paths, self.labels, self.channels = source.paths, source.labels, source.channels
        self.numbers, self.total = source.numbers, source.total
        self.sizes = sizes
        self.file = pixels if isinstance(pixels, Path) else None
        self._pixels = pixels if isinstance(pixels, Tensor) else None
        ends = np.cumsum(sizes.astype(np.int64).prod(axis=1) * self.channels)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])
        self._all_equal = len(np.unique(sizes, axis=0)) == 1

    @property
    def pixels(self) -> Tensor:
        """All bytes, uint8 (total,); a file is opened on first use, so that each worker opens it itself."""
        if self._pixels is None:
            self._pixels = torch.from_file(str(self.file), shared=False, size=int(self._starts[-1]), dtype=torch.uint8)
        return self._pixels

    def read(self, index: int) -> Tensor:
        height, width = self.sizes[index].tolist()
        flat = self.pixels[self._starts[index] : self._starts[index + 1]]
        return flat.view(height, width, self.channels).permute(2, 0, 1)

    def read_many(self, indices: Sequence[int]) -> Tensor | None:
        if not self._all_equal:
            return None
        height, width = self.sizes[0].tolist()
        return (
            self.pixels[: self._starts[-1]]
            .view(-1, height, width, self.channels)[torch.tensor(indices)]
            .permute(0, 3, 1, 2)
        )

    def select(self, indices: Sequence[int]) -> Any:
        return self.source.select(indices)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_pixels": None} if self.file is not None else {})


class TooLargeError(UserError):
    """A cache would exceed its budget."""


@dataclass(frozen=True)
class Cache:
    """Settings of the cache for decoded pixels.

    Args:
        kind: `ram`, `disk`, or `auto`: the first of the two in which the pixels fit.
        folder: Parent folder of the caches on the disk.
        budget: Bytes that the pixels of a split may take; None allows a quarter of the free space.
        processes: Number of processes of the run. They do not share memory, so with several `auto` takes the disk.
        is_private: Whether `auto` writes nothing to the disk.
    """

    kind: str
    folder: Path
    budget: int | None = None
    processes: int = 1
    is_private: bool = False

    def keep(self, source: Images, name: str, key: str, decode: Callable[[int], Tensor], build: bool = True) -> Images:
        """Return `source` with its images decoded by `decode`; unchanged where `auto` finds no place for the pixels.

        Without `build`, only a cache that is already on the disk is used.

        Args:
            source: The images.
            name: Description of the images for messages.
            key: What the pixels depend on besides `source.stamp`: their origin and their crop.
            decode: index -> uint8 (channels, height, width).

        Raises:
            TooLargeError: The pixels exceed the budget.
            OSError: The disk cannot hold the pixels.
        """
        kinds = [self.kind] if self.kind != "auto" else ["disk"] if self.processes > 1 else ["ram", "disk"]
        if self.kind == "auto" and self.is_private:
            kinds = ["ram"]
        place = self._place(source, key) if self.kind != "ram" else self.folder
        if self.kind != "ram" and (cached := _opened(source, place)) is not None:
            return cached
        if not build:
            return source
        needed = _estimate(source, decode)
        for kind in kinds:
            try:
                budget = self.budget if self.budget is not None else _free(kind, self.folder) // SHARE
                if needed > budget:
                    continue
                if kind == "ram":
                    return _in_memory(source, name, decode, min(budget, 2 * needed + GIGABYTE))
                return _on_disk(source, name, decode, place, budget)
            except (TooLargeError, OSError) as error:
                if self.kind != "auto":
                    refuse = TooLargeError if isinstance(error, TooLargeError) else DiskError
                    raise refuse(f"data.cache={self.kind}: {error}. Type data.cache=none, or auto.") from error
                log.warning("data.cache=auto: %s is not cached: %s", name, error)
        if self.kind != "auto":
            enough = math.ceil(1.2 * needed / 10**7) / 100
            raise TooLargeError(
                f"data.cache={self.kind}: the decoded images of {name} need about {_size(needed)}, and the limit "
                f"is {_size(budget)}. Type data.cache_gb={enough}, or "
                f"data.cache={'disk, or data.cache=' if self.kind == 'ram' else ''}none."
            )
        log.info("data.cache=auto: %s is not cached: it needs %s", name, _size(needed))
        return source

    def _place(self, source: Images, key: str) -> Path:
        versions = f"{FORMAT} {PIL.__version__} {simplejpeg.__version__} {torch.__version__}"
        stamp = f"{key}\n{source.stamp(times=True)}\n{versions}"
        return self.folder / FOLDER / hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def clean(folder: Path) -> list[tuple[Path, int]]:
    """Remove all caches on the disk except those being built; return their paths and sizes in bytes."""
    removed = []
    for place in sorted((folder / FOLDER).glob("*")):
        if place.suffix == ".lock" or not place.is_dir():
            continue
        name = place.name.removeprefix(".").removesuffix(".tmp")
        with suppress(Timeout), FileLock(place.with_name(f"{name}.lock"), timeout=0):
            size = sum(file.stat().st_size for file in place.glob("*"))
            shutil.rmtree(place)
            removed.append((place, size))
    return removed


def _estimate(source: Images, decode: Callable[[int], Tensor]) -> int:
    """Estimate the bytes of all decoded images from a sample."""
    some = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
    return round(np.mean([decode(int(index)).numel() for index in some]) * len(source))


def _in_memory(source: Images, name: str, decode: Callable[[int], Tensor], most: int) -> CachedImages:
    try:
        pixels = torch.empty(most, dtype=torch.uint8)  # memory is committed only where it is written
    except RuntimeError as error:
        raise TooLargeError(f"{_size(most)} of memory cannot be allocated") from error

    def write(image: np.ndarray, start: int) -> None:
        pixels[start : start + image.size] = torch.from_numpy(image.reshape(-1))

    sizes = _decoded(source, name, decode, write, most, "memory")
    return CachedImages(source, sizes, pixels)


def _on_disk(source: Images, name: str, decode: Callable[[int], Tensor], place: Path, most: int) -> CachedImages:
    """Build the cache on the disk, or take the one that another run has built or is building."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.parent.chmod(0o700)  # the images may be private, whatever this process's umask is
    with FileLock(place.with_name(f"{place.name}.lock")):
        cached = _opened(source, place)
        if cached is not None:
            return cached
        shutil.rmtree(place, ignore_errors=True)
        with atomic_folder(place) as temporary:
            with (temporary / PIXELS).open("wb") as file:
                sizes = _decoded(source, name, decode, lambda image, _: file.write(image.data), most, str(place))
                file.flush()
                os.fsync(file.fileno())
            damaged = damaged_files()
            note_damage(damaged)  # for this run
            (temporary / DAMAGED).write_text(json.dumps(damaged))
            with (temporary / SIZES).open("wb") as file:
                np.save(file, sizes)
                file.flush()
                os.fsync(file.fileno())
    cached = _opened(source, place)
    assert cached is not None
    return cached


def _opened(source: Images, place: Path) -> CachedImages | None:
    """Open the cache at `place`; None if it is missing or incomplete."""
    try:
        images = CachedImages(source, np.load(place / SIZES), place / PIXELS)
        whole = len(images.sizes) == len(source) and (place / PIXELS).stat().st_size == images._starts[-1]
        if whole:
            _ = images.pixels  # opened now: `ml-doctor clean` may come before the first batch
            note_damage(json.loads((place / DAMAGED).read_text()))
    except (OSError, ValueError, EOFError, RuntimeError):  # a file left half written by a power cut
        return None
    return images if whole else None


def _decoded(
    source: Images,
    name: str,
    decode: Callable[[int], Tensor],
    write: Callable[[np.ndarray, int], Any],
    most: int,
    where: str,
) -> np.ndarray:
    """Write the pixels of all images in order; return their heights and widths, int32 (n, 2)."""
    began, used, sizes = time.perf_counter(), 0, np.empty((len(source), 2), np.int32)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for part in _parts(len(source), f"Decoding {name}"):
            for index, image in zip(part, pool.map(decode, part), strict=True):
                if used + image.numel() > most:
                    raise TooLargeError(f"the decoded images of {name} need more than {_size(most)}")
                write(image.permute(1, 2, 0).contiguous().numpy(), used)
                used += image.numel()
                sizes[index] = image.shape[1:]
    seconds = time.perf_counter() - began
    log.info("Cached %s: %d images, %.0f MB, in %.1f s; in %s", name, len(source), used / 1e6, seconds, where)
    return sizes


def _parts(count: int, what: str) -> Iterator[range]:
    from rich.progress import track

    firsts = range(0, count, PART)
    for first in track(firsts, what, disable=not sys.stdout.isatty(), transient=True):
        yield range(first, min(first + PART, count))


def _size(count: int) -> str:
    return f"{count / 10**6:,.1f} MB" if count >= 10**5 else f"{count / 10**3:,.1f} kB" if count else "0"


def _free(kind: str, folder: Path) -> int:
    """Free bytes in memory, or on the disk of `folder`."""
    if kind == "ram":
        return free_memory()
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free

"""Shards against files in a folder, and an index of millions of entries.

The CPU time per image (user and system) of a folder and of its shards, in turns (A B A B …), with equal random orders
and transforms; the time of a random read without decoding. Then an index of `--entries` synthetic entries, which point
to the images of these shards: bytes an entry, time until the first batch, time of an epoch's order, and the memory that
each loader worker does not share (from smaps_rollup), beside that for a hundredth of the entries.

    python benchmarks/shards.py --data_dir PATH/cifar10_small --turns 7
    python benchmarks/shards.py --data_dir PATH/cifar10_small --turns 0 --entries 100000000
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.columns import STEP
from imago.data.crops import CenterBox
from imago.data.dataset import ImageDataset
from imago.data.folders import read_undrawn
from imago.data.images import Images, class_counts
from imago.data.loader import Loader
from imago.data.samplers import TrainBatchSampler
from imago.data.shard_files import LocalPlace, ShardReader
from imago.data.shard_images import ShardImages
from imago.data.shard_index import COLUMNS, PER_IMAGE, map_arrays, read_index
from imago.data.shards import image_sets
from imago.data.transforms import ImageTransform

TRANSFORM = ImageTransform(CenterBox(0.875))
PART = 10**6  # entries of an index that are written at a time


class Clocks:
    """Time since it was made: of the CPU, and on the wall."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def __str__(self) -> str:
        return f"{time.process_time() - self.cpu:.2f} s of CPU ({time.perf_counter() - self.wall:.2f} s)"


def cpu_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def read_all(images: Images, order: Sequence[int], size: int) -> None:
    dataset = ImageDataset(images, TRANSFORM, size, seed=0)
    for index in order:
        dataset[0, index]


def compare(folder: Images, shards: ShardImages, turns: int, size: int, count: int) -> None:
    for index in (0, len(folder) // 2):
        assert torch.equal(folder.read(index), shards.read(index)), "other pixels"
    generator, ratios, times = np.random.default_rng(0), [], []
    for _ in range(turns):
        order = generator.permutation(len(folder))[:count].tolist()
        pair = [cpu_of(lambda images=images, order=order: read_all(images, order, size)) for images in (folder, shards)]
        ratios.append(pair[1] / pair[0])
        times.append([1e6 * seconds / count for seconds in pair])
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"CPU per image of {count} at {size} pixels: folder {ours:.0f} µs, shards {theirs:.0f} µs (median)")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, {turns} turns")
    order = generator.permutation(len(shards))[:count].tolist()
    paths = [folder.root / folder.paths[index] for index in order]  # type: ignore[attr-defined]
    plain = cpu_of(lambda: [path.read_bytes() for path in paths])
    random = cpu_of(lambda: [shards.reader.read(shards.index, index) for index in order])
    print(f"CPU of a random read: file {1e6 * plain / count:.1f} µs, shard with CRC {1e6 * random / count:.1f} µs")


def digits(numbers: np.ndarray, width: int) -> np.ndarray:
    """ASCII digits of numbers, uint8 (n, width)."""
    return (numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def names_of(first: int, last: int, classes: int) -> np.ndarray:
    """Bytes of names of 38 characters, as those of ImageNet, each with a zero byte behind it; with `classes` 0 names of
    nine digits."""
    number = np.arange(first, last)
    zero = np.zeros((len(number), 1), np.uint8)
    if not classes:
        return np.concatenate([digits(number, 9), zero], 1).ravel()
    words = (b"train/n", b"/ILSVRC2012_", b".JPEG")
    start, middle, end = (np.frombuffer(word, np.uint8)[None].repeat(len(number), 0) for word in words)
    return np.concatenate([start, digits(number % classes, 5), middle, digits(number, 9), end, zero], 1).ravel()


def synthetic_index(source: Path, target: Path, entries: int, has_short_names: bool, classes: int = 1000) -> None:
    """Write an index of `entries` entries for the shards of `source`, a part at a time."""
    arrays = map_arrays(source / "index.npz")
    real = {name: arrays[f"train.{name}"] for name in COLUMNS}
    named = 0 if has_short_names else classes
    width, bounds = len(names_of(0, 1, named)), [*range(0, entries, PART), entries]
    parts = list(pairwise(bounds))
    starts = np.append(np.arange(0, entries, STEP), entries).astype(np.uint64) * np.uint64(width)
    meta = {"format": 1, "class_names": [str(n) for n in range(classes)], "digest": "synthetic", "white": 65535}
    with ZipFile(target, "w") as archive:
        write_column(archive, "meta", [np.frombuffer(json.dumps(meta).encode(), np.uint8)])
        for name in ("block", "size", "crc", "shard"):
            kind = np.uint16 if name == "shard" else np.uint32
            column = (real[name][np.arange(*part) % len(real[name])].astype(kind) for part in parts)
            write_column(archive, f"train.{name}", column, kind, entries)
        labels = ((np.arange(*part) % classes).astype(np.uint16) for part in parts)
        write_column(archive, "train.label", labels, np.uint16, entries)
        write_column(archive, "train.names", (names_of(*part, named) for part in parts), np.uint8, width * entries)
        for name, column in {"name_starts": starts, **{n: real[n] for n in ("shard_size", "shard_crc")}}.items():
            write_column(archive, f"train.{name}", [column], column.dtype, len(column))


def write_column(
    archive: ZipFile, name: str, parts: Iterable[np.ndarray], kind: Any = np.uint8, length: int | None = None
) -> None:
    """Write an array of an .npz in parts; the only part says how long it is, if `length` does not."""
    parts = list(parts) if length is None else parts
    length = len(parts[0]) if length is None else length  # type: ignore[index]
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (length,)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for part in parts:
            file.write(part.tobytes())


def opened(index: Path, shards: Path, window: int) -> ShardImages:
    sets = image_sets(read_index(index), ShardReader(LocalPlace(shards)), window)
    class_counts(sets.splits["train"], sets.class_names)
    return sets.splits["train"]  # type: ignore[return-value]


def measure_index(index: Path, shards: Path, workers: int, window: int) -> None:
    clocks = Clocks()
    images = opened(index, shards, window)
    print(f"{len(images):,} entries: index read, classes counted in {clocks}")
    sampler = TrainBatchSampler(images, 64, seed=0)
    first = next(iter(sampler))
    dataset = ImageDataset(images, TRANSFORM, 32, seed=0)
    _ = [dataset[key] for key in first]
    print(f"first batch, with the order of its epoch, after {clocks}")
    sampler.epoch, clocks = 1, Clocks()
    order = sampler._order()
    print(f"order of the next epoch in {clocks}")
    del order
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"resident at most {peak:.2f} GB, of its own now {own_memory(os.getpid()) / 1000:.2f} GB")
    per_entry = sum(getattr(images.index, name).nbytes for name in PER_IMAGE) / len(images)
    names = (images.index.names.nbytes + images.index.name_starts.nbytes) / len(images)
    print(f"{per_entry:.2f} bytes an entry, and {names:.2f} of names")
    loader = Loader(dataset, sampler, workers)
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    for process in multiprocessing.active_children():
        print(f"worker: {own_memory(process.pid):.1f} MB of its own (private), {pss_of(process.pid):.1f} MB PSS")
    loader.close()


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def own_memory(pid: int) -> float:
    memory = _memory(pid)
    return (memory["Private_Clean"] + memory["Private_Dirty"]) / 1000


def pss_of(pid: int) -> float:
    return _memory(pid)["Pss"] / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--short_names", action="store_true", help="nine digits in place of 38 characters")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--window", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        words = [str(options.data_dir), "--output", str(shards), "--shard-mb", "1"]
        subprocess.run([sys.executable, "-c", "from imago.shard import main; main()", *words], check=True)
        if options.turns:
            files = read_undrawn(options.data_dir).splits["train"]
            compare(
                files, opened(shards / "index.npz", shards, options.window), options.turns, options.size, options.count
            )
        for entries in (options.entries // 100, options.entries):
            synthetic_index(shards, Path(folder, "large.npz"), entries, options.short_names)
            measure_index(Path(folder, "large.npz"), shards, options.workers, options.window)


if __name__ == "__main__":
    main()

"""Scan of shards: whether each is whole, and what can be wrong with its images."""

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imago.data.columns import PackedNames
from imago.data.crops import CropPolicy
from imago.data.shard_files import LocalPlace, Place, ShardError, ShardReader
from imago.data.shard_index import ShardIndex, SplitIndex
from imago.data.shards import local_index, remote_index
from imago.inspection.issues import Findings, ImageFacts, Issue
from imago.inspection.scan import conclude, look_at

FEW_OPEN = 2  # shards are read one after the other, and make room in the cache


def find_shard_issues(
    shards: str,
    workers: int,
    cache: Path,
    gigabytes: float | None = None,
    excluded: Container[str] = (),
    box: CropPolicy | None = None,
) -> Findings:
    """Check every shard of `ml-shard` in a folder or at a URL, and every image in it except those that are `excluded`.

    Those of a URL are downloaded to `cache`, which may hold so many `gigabytes`. `box` is the crop of an image that is
    scored.

    Raises:
        FileNotFoundError, ValueError: There is no index of shards.
    """
    place: Place
    if "://" in shards:
        index, place = remote_index(shards, cache, gigabytes)
    else:
        folder = Path(shards).expanduser()
        index, place = local_index(folder), LocalPlace(folder)
    findings, reader = Findings(Path(place.root), name=place.root), ShardReader(place, FEW_OPEN)
    seen: list[ImageFacts] = []
    for columns in index.splits.values():
        paths, order = PackedNames(columns), np.argsort(columns.shard, kind="stable")
        firsts = np.searchsorted(columns.shard, np.arange(len(columns.shard_size) + 1), sorter=order).tolist()
        for number in range(len(columns.shard_size)):
            rows = [row for row in order[firsts[number] : firsts[number + 1]].tolist() if paths[row] not in excluded]
            try:
                seen += _look(reader, index, columns, rows, workers, box)
            except ShardError as error:
                findings.faults.append(Issue("damaged shard", columns.shard_name(number), str(error)))
    names = dict.fromkeys(index.splits, index.class_names)
    conclude(findings, seen, {split: findings.root / split for split in index.splits}, names, {})
    return findings


def _look(
    reader: ShardReader,
    index: ShardIndex,
    columns: SplitIndex,
    rows: Sequence[int],
    workers: int,
    box: CropPolicy | None,
) -> list[ImageFacts]:
    """Look at the images of a shard; ShardError if it is not whole."""
    paths = PackedNames(columns)

    def look(row: int) -> ImageFacts:
        label = index.class_names[int(columns.label[row])]
        return look_at(reader.read(columns, row), box, columns.split, label, paths[row])

    first = [look(row) for row in rows[:1]]  # alone: a shard that cannot be had is not tried for each image
    with ThreadPoolExecutor(workers) as pool:  # decoders and hashes release the GIL
        return first + list(pool.map(look, rows[1:]))

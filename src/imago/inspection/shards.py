"""Scan of shards: whether each is whole, and what can be wrong with its images."""

from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imago.data.columns import PackedNames
from imago.data.crops import CropPolicy
from imago.data.shard_files import LocalPlace, ShardError, ShardReader
from imago.data.shard_index import SplitIndex
from imago.data.shards import local_index
from imago.inspection.issues import Findings, ImageFacts, Issue
from imago.inspection.scan import conclude, look_at


def find_shard_issues(
    folder: Path, workers: int, excluded: Container[str] = (), box: CropPolicy | None = None
) -> Findings:
    """Check every shard of a folder of `ml-shard`, and every image in it except those that are `excluded`.

    `box` is the crop of an image that is scored.

    Raises:
        FileNotFoundError, ValueError: `folder` is no such folder.
    """
    findings, index = Findings(folder), local_index(folder)
    reader, seen = ShardReader(LocalPlace(folder)), []
    for split, columns in index.splits.items():
        paths, damaged = PackedNames(columns), {}

        def look(row: int, split: str = split, columns: SplitIndex = columns, paths: PackedNames = paths) -> ImageFacts:
            label = index.class_names[int(columns.label[row])]
            return look_at(reader.read(columns, row), box, split, label, paths[row])

        for number in range(len(columns.shard_size)):
            rows = [row for row in np.flatnonzero(columns.shard == number).tolist() if paths[row] not in excluded]
            try:
                with ThreadPoolExecutor(workers) as pool:  # decoders and hashes release the GIL
                    seen += list(pool.map(look, rows))
            except ShardError as error:
                damaged[number] = str(error)
        findings.faults += [Issue("damaged shard", columns.shard_name(n), why) for n, why in damaged.items()]
    names = dict.fromkeys(index.splits, index.class_names)
    conclude(findings, seen, {split: folder / split for split in index.splits}, names, {})
    return findings

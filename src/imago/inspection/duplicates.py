"""Exact and near duplicates among images."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from imago.inspection.issues import MOST_BITS, MOST_LEVELS, ORDER, WINDOW, ImageFacts, Issue

NEAR = ("near-duplicate, two labels", "near-leak", "near-duplicate")
BANDS = 4  # of 16 bits: two hashes that differ in 3 bits or fewer agree in one of them
FLAT = 2.0  # standard deviation of grey levels below which there is nothing to compare


def mean_blocks(pixels: Any, rows: int, columns: int) -> Any:
    """Average pixels (72, 72, 3) over a grid to (rows, columns, 3), float; 72 is a multiple of 8 and of 9."""
    return pixels.reshape(rows, 72 // rows, columns, 72 // columns, 3).mean(axis=(1, 3))


def difference_hash(pixels: Any) -> int | None:
    """Hash pixels (72, 72, 3) to 64 bits: whether 8x9 grey fields are lighter than their right neighbours; None for
    an even surface."""
    grey = mean_blocks(pixels, 8, 9).mean(axis=2)
    if grey.std() < FLAT:
        return None
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def exact_duplicates(seen: Iterable[ImageFacts]) -> Iterator[Issue]:
    """Yield issues for files with the same bytes."""
    by_digest: dict[bytes, list[ImageFacts]] = defaultdict(list)
    for image in seen:
        if image.digest:
            by_digest[image.digest].append(image)
    for group in by_digest.values():
        kept = max(group, key=lambda image: ORDER.index(image.split))  # the first of these, if several
        for image in group:
            conflict = next((one for one in group if one.label != image.label), None)
            if conflict is not None and image is not group[0]:
                yield Issue("two labels", image.path, other=conflict.path)
            if image.split != kept.split:
                yield Issue("leak", image.path, other=kept.path)
            elif image is not kept and conflict is None:
                yield Issue("duplicate", image.path, other=kept.path)


def near_duplicates(seen: Iterable[ImageFacts]) -> Iterator[Issue]:
    """Yield issues for images whose hashes differ in few bits, and whose 8x8 colours hardly differ: once per image,
    with one that resembles it.

    The first of identical files stands for all.
    """
    bands: dict[tuple[int, int], list[ImageFacts]] = defaultdict(list)
    for image in {image.digest: image for image in reversed(list(seen)) if image.hash is not None}.values():
        for band in range(BANDS):
            assert image.hash is not None
            bands[band, image.hash >> (16 * band) & 0xFFFF].append(image)
    pairs: list[Issue] = []
    for group in bands.values():
        group.sort(key=lambda image: (image.hash, image.path))
        for first in range(0, max(1, len(group) - WINDOW // 2), WINDOW // 2):
            pairs += _alike_pairs(group[first : first + WINDOW])
    yield from _union_find(pairs)


def _alike_pairs(group: Sequence[ImageFacts]) -> list[Issue]:
    """Return as many pairs as connect similar images, the worst kinds first: thousands may be similar."""
    if len(group) < 2:
        return []
    hashes = np.array([image.hash for image in group], dtype=np.uint64)
    differing = (hashes[:, None] ^ hashes[None, :]).view(np.uint8).reshape(len(group), len(group), 8)
    bits = np.unpackbits(differing, axis=2).sum(axis=2)
    left, right = np.nonzero(np.triu(bits <= MOST_BITS, k=1))
    small = np.stack([image.small for image in group]).astype(np.int16)
    close = np.abs(small[left] - small[right]).mean(axis=(1, 2, 3)) <= MOST_LEVELS
    left, right = left[close], right[close]
    splits, labels = (np.array([getattr(image, name) for image in group]) for name in ("split", "label"))
    rank = np.where(labels[left] != labels[right], 1, np.where(splits[left] != splits[right], 2, 3))  # as in NEAR
    tree = minimum_spanning_tree(coo_array((rank, (left, right)), shape=bits.shape)).tocoo()
    return [_near(group[first], group[second]) for first, second in zip(tree.row, tree.col, strict=True)]


def _near(image: ImageFacts, neighbour: ImageFacts) -> Issue:
    kind = "near-duplicate" if image.split == neighbour.split else "near-leak"
    kind = "near-duplicate, two labels" if image.label != neighbour.label else kind
    first, second = sorted((image, neighbour), key=lambda facts: (ORDER.index(facts.split), facts.path))
    return Issue(kind, first.path, other=second.path)


def _union_find(pairs: Iterable[Issue]) -> list[Issue]:
    """Reduce the pairs of several windows to as many as connect similar images, the worst kinds first."""
    group_of: dict[str, str] = {}

    def group(path: str) -> str:
        while (up := group_of.get(path, path)) != path:
            group_of[path] = path = group_of.get(up, up)
        return path

    kept = []
    for fault in sorted(pairs, key=lambda fault: (NEAR.index(fault.kind), fault.path, fault.other)):
        first, second = group(fault.path), group(fault.other)
        if first != second:
            group_of[first] = second
            kept.append(fault)
    return kept

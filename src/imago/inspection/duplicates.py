"""Images that are the same, or nearly so."""

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
    """Means of (72, 72, 3) over a grid; 72 is a multiple of 8 and of 9."""
    return pixels.reshape(rows, 72 // rows, columns, 72 // columns, 3).mean(axis=(1, 3))


def difference_hash(pixels: Any) -> int | None:
    """64 bits: whether each of 8x9 grey fields is lighter than its right neighbour; None of an even surface."""
    grey = mean_blocks(pixels, 8, 9).mean(axis=2)
    if grey.std() < FLAT:
        return None
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def exact_duplicates(seen: Iterable[ImageFacts]) -> Iterator[Issue]:
    """Issues for files with the same bytes."""
    by_digest: dict[bytes, list[ImageFacts]] = defaultdict(list)
    for each in seen:
        if each.digest:
            by_digest[each.digest].append(each)
    for group in by_digest.values():
        kept = max(group, key=lambda each: ORDER.index(each.split))  # the first one of them
        for each in group:
            other = next((one for one in group if one.label != each.label), None)
            if other is not None and each is not group[0]:
                yield Issue("two labels", each.path, other=other.path)
            if each.split != kept.split:
                yield Issue("leak", each.path, other=kept.path)
            elif each is not kept and other is None:
                yield Issue("duplicate", each.path, other=kept.path)


def near_duplicates(seen: Iterable[ImageFacts]) -> Iterator[Issue]:
    """Images whose hashes differ in few bits, and whose 8x8 colours hardly differ: each once, with one that it is like.

    Of files that are the same, the first one stands for all.
    """
    bands: dict[tuple[int, int], list[ImageFacts]] = defaultdict(list)
    for each in {each.digest: each for each in reversed(list(seen)) if each.hash is not None}.values():
        for band in range(BANDS):
            assert each.hash is not None
            bands[band, each.hash >> (16 * band) & 0xFFFF].append(each)
    found: list[Issue] = []
    for group in bands.values():
        group.sort(key=lambda each: (each.hash, each.path))
        for first in range(0, max(1, len(group) - WINDOW // 2), WINDOW // 2):
            found += _alike_pairs(group[first : first + WINDOW])
    yield from _union_find(found)


def _alike_pairs(group: Sequence[ImageFacts]) -> list[Issue]:
    """As many pairs as hold together what is alike, the worst kinds first: thousands of pictures may be."""
    if len(group) < 2:
        return []
    hashes = np.array([each.hash for each in group], dtype=np.uint64)
    differing = (hashes[:, None] ^ hashes[None, :]).view(np.uint8).reshape(len(group), len(group), 8)
    bits = np.unpackbits(differing, axis=2).sum(axis=2)
    ones, others = np.nonzero(np.triu(bits <= MOST_BITS, k=1))
    small = np.stack([each.small for each in group]).astype(np.int16)
    close = np.abs(small[ones] - small[others]).mean(axis=(1, 2, 3)) <= MOST_LEVELS
    ones, others = ones[close], others[close]
    splits, labels = (np.array([getattr(each, name) for each in group]) for name in ("split", "label"))
    rank = np.where(labels[ones] != labels[others], 1, np.where(splits[ones] != splits[others], 2, 3))  # as in NEAR
    tree = minimum_spanning_tree(coo_array((rank, (ones, others)), shape=bits.shape)).tocoo()
    return [_near(group[one], group[other]) for one, other in zip(tree.row, tree.col, strict=True)]


def _near(one: ImageFacts, other: ImageFacts) -> Issue:
    kind = "near-duplicate" if one.split == other.split else "near-leak"
    kind = "near-duplicate, two labels" if one.label != other.label else kind
    first, second = sorted((one, other), key=lambda each: (ORDER.index(each.split), each.path))
    return Issue(kind, first.path, other=second.path)


def _union_find(pairs: Iterable[Issue]) -> list[Issue]:
    """The same for pairs of several windows."""
    group_of: dict[str, str] = {}

    def group(path: str) -> str:
        while (up := group_of.get(path, path)) != path:
            group_of[path] = path = group_of.get(up, up)
        return path

    kept = []
    for fault in sorted(pairs, key=lambda fault: (NEAR.index(fault.kind), fault.path, fault.other)):
        one, other = group(fault.path), group(fault.other)
        if one != other:
            group_of[one] = other
            kept.append(fault)
    return kept

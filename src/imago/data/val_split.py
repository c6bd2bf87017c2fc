"""Stratified random splits, drawn by seed and path."""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import numpy as np

MOST_OF_TRAIN = 0.5
"""Greatest fraction of train that may become val."""
NUMBER = re.compile(r"\d+(?!.*\d)", re.DOTALL)  # the last one in a path
BLOCK_OF_NUMBERS, GOLDEN = 64, 0x9E3779B97F4A7C15
LEAST_DRAWN = 2
"""Least number of images in a drawn split, if classes have two or more."""


def draw_sides(
    paths: Sequence[str],
    labels: Sequence[int],
    shares: Mapping[str, float],
    seed: int,
    taken: Collection[int] = (),
    from_end: bool = False,
) -> dict[str, list[int]]:
    """Draw splits: name in `shares` -> sorted indices of about that fraction of every class.

    The side of an image is a function of `seed` and its path, so that images added later do not move any other image.
    No side has more than half of a class, and train has at least one image. A class whose fraction amounts to one image
    or more gives one even if none was drawn; only images of such small classes can change sides when the class grows.

    Indices that are `taken` belong to a split that was drawn before: they count as members of their class, and are not
    drawn. With `from_end`, images are drawn from the other end of the range of places, so that neither fraction of two
    such draws affects the other draw.
    """
    places = np.array([_place(seed, path) for path in paths])
    if from_end:
        places = 1 - places
    edges = np.cumsum([0.0, *shares.values()])
    classes = np.array(labels)
    sides: dict[str, list[int]] = {name: [] for name in shares}
    absent: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in shares}
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        free = members if not taken else members[[index not in taken for index in members.tolist()]]
        free = free[np.argsort(places[free], kind="stable")]
        side = np.searchsorted(edges, places[free], side="right") - 1
        of_class = {name: free[side == number].tolist() for number, name in enumerate(shares)}
        rest = free[side == len(shares)].tolist()
        for indices in of_class.values():
            while len(indices) > len(members) // 2:
                rest.insert(0, indices.pop())
        if not rest and len(free):
            rest.append(max(of_class.values(), key=len).pop())
        for name, indices in of_class.items():
            sides[name] += indices
            if not indices and len(rest) > 1 and shares[name]:
                if shares[name] * len(members) >= 1:
                    sides[name].append(rest.pop(0))
                else:
                    absent[name].append((-len(members), rest))
    for name, rests in absent.items():
        rests.sort(key=lambda entry: entry[0])
        sides[name] += [rest.pop(0) for _, rest in rests[: max(0, LEAST_DRAWN - len(sides[name]))] if len(rest) > 1]
    return {name: sorted(indices) for name, indices in sides.items()}


def _place(seed: int, path: str) -> float:
    """Map an image to [0, 1). Numbered files are spread evenly, in blocks, so that a fraction of few of them is close
    to the requested one: consecutive numbers are a golden ratio apart (Knuth's Fibonacci hashing)."""
    path = unicodedata.normalize("NFC", path)
    number = NUMBER.search(path)
    name, count = (path, 0) if number is None else (path[: number.start()] + path[number.end() :], int(number.group()))
    block, within = divmod(count, BLOCK_OF_NUMBERS)
    text = f"{seed}\n{name}\n{block}".encode("utf-8", "surrogateescape")
    offset = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return (offset + within * GOLDEN) % 2**64 / 2**64

"""Stratified random splits, drawn by seed and path."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imago.terminal import shortened

MOST_OF_TRAIN = 0.5
"""Greatest fraction of train that may become val or test."""
NUMBER = re.compile(r"\d+(?!.*\d)", re.DOTALL)  # the last one in a path
BLOCK_OF_NUMBERS, GOLDEN = 64, 0x9E3779B97F4A7C15
LEAST_DRAWN = 2
"""Least number of images in a drawn split, if classes have two or more."""
MOST_CLASSES = 10  # of which a message has the counts
BY_RATIO, BY_PLACE = "ratio", "path"
"""How a split was drawn, as checkpoints record it. Versions before 0.3.0 drew by place."""

Places = Mapping[int, NDArray[np.float64]]
"""Label -> sorted places of the images of the class that may be drawn."""
Rule = Callable[[Places, Mapping[int, int], float], dict[int, int]]
"""Places, label -> images of the class, and ratio -> how many images of each class are drawn."""


class Draw(NamedTuple):
    """Sorted indices of the drawn images, and label -> place of the last one that was drawn of the class."""

    indices: list[int]
    edges: dict[int, float]


def by_ratio(places: Places, sizes: Mapping[int, int], ratio: float) -> dict[int, int]:
    """Draw `ratio` of all images, and of each class within one image: the largest remainders are rounded up.

    No split gets more than half of a class, and train keeps an image of each.
    """
    room = {label: min(size // 2, len(places[label]) - 1) for label, size in sizes.items()}
    share = {label: ratio * size + 1e-9 for label, size in sizes.items()}  # 0.29 * 100 is 28.999999999999996
    counts = {label: max(0, min(int(share[label]), room[label])) for label in sizes}
    total = max(round(sum(min(share[label], max(0, room[label])) for label in sizes)), LEAST_DRAWN)
    open_to_more = [label for label in sizes if counts[label] < min(room[label], int(share[label]) + 1)]
    open_to_more.sort(key=lambda label: (-round(share[label] % 1, 6), -sizes[label], places[label][0]))
    for label in open_to_more[: max(0, total - sum(counts.values()))]:
        counts[label] += 1
    return counts


def by_place(places: Places, sizes: Mapping[int, int], ratio: float) -> dict[int, int]:
    """Draw the images below the place `ratio`, as earlier versions of Imago did: about `ratio` of each class, with a
    standard deviation of sqrt(ratio * (1 - ratio) * size). Kept for their checkpoints."""
    room = {label: min(size // 2, len(places[label]) - 1) for label, size in sizes.items()}
    counts = {label: max(0, min(int(np.searchsorted(places[label], ratio)), room[label])) for label in sizes}
    empty = sorted((label for label in sizes if not counts[label] and room[label] > 0), key=lambda label: -sizes[label])
    counts |= {label: 1 for label in empty if ratio * sizes[label] >= 1}
    missing = max(0, LEAST_DRAWN - sum(counts.values()))
    return counts | dict.fromkeys([label for label in empty if not counts[label]][:missing], 1)


def up_to(edges: Mapping[int, float]) -> Rule:
    """Draw the images up to the recorded places: all that were drawn then, and of those added since about as many."""

    def rule(places: Places, sizes: Mapping[int, int], ratio: float) -> dict[int, int]:
        del ratio
        drawn = {label: int(np.searchsorted(places[label], edges.get(label, -1.0), side="right")) for label in sizes}
        return {label: max(0, min(count, len(places[label]) - 1)) for label, count in drawn.items()}

    return rule


def draw_split(
    paths: Iterable[str],
    labels: Sequence[int] | NDArray[Any],
    ratio: float,
    seed: int,
    taken: Collection[int] = (),
    from_end: bool = False,
    rule: Rule = by_ratio,
) -> Draw:
    """Draw a stratified fraction of the images: those of each class with the lowest places in an order that `seed` and
    paths determine. `rule` counts how many.

    Indices that are `taken` belong to a split that was drawn before: they count as members of their class, and are not
    drawn. With `from_end`, the highest places are drawn, so that two such draws hardly affect each other.
    """
    classes = np.asarray(labels)
    place = places_of(paths, seed)
    if from_end:
        place = 1 - place
    free, sizes = {}, {}
    for label in np.unique(classes).tolist():
        members = np.flatnonzero(classes == label)
        sizes[label] = len(members)
        members = members if not taken else members[[index not in taken for index in members.tolist()]]
        free[label] = members[np.argsort(place[members], kind="stable")]
    counts = rule({label: place[indices] for label, indices in free.items()}, sizes, ratio)
    drawn = {label: free[label][:count] for label, count in counts.items() if count}
    edges = {label: float(place[indices[-1]]) for label, indices in drawn.items()}
    return Draw(sorted(index for indices in drawn.values() for index in indices.tolist()), edges)


def is_repeatable(recorded: Mapping[str, Any] | None, record: Mapping[str, Any]) -> bool:
    """Whether the draw that a checkpoint recorded has the ratio and the seed of `record`."""
    if recorded is None or any(recorded.get(key) != value for key, value in record.items()):
        return False
    return recorded.get("by") == BY_PLACE or (recorded.get("by") == BY_RATIO and "edges" in recorded)


def describe_draw(
    split: str, source: str, record: Mapping[str, Any], counts: Mapping[str, tuple[int, int]], is_repeated: bool
) -> tuple[str, str | None]:
    """Describe a draw from the split `source` by `counts`, class name -> drawn images and all of the class: how many of
    each, and which classes are far from the ratio; classes without any are not named, because every split lists them.
    """
    ratio = record[f"{split}_ratio"]
    drawn, size = sum(n for n, _ in counts.values()), sum(n for _, n in counts.values())
    how = "as the checkpoint records" if is_repeated else "stratified"
    note = (
        f"{drawn} of the {size} {source} images ({drawn / size:.0%}) were drawn as the {split} split "
        f"(data.{split}_ratio={ratio}, {how}, by seed {record['seed']} and path): {_listed(counts)}"
    )
    odd = {name: (n, of) for name, (n, of) in counts.items() if n and abs(n / of - ratio) > ratio / 2 + 1e-9}
    if not odd:
        return note, None
    are = "class differs" if len(odd) == 1 else "classes differ"
    return note, (
        f"the share of {len(odd)} {are} from data.{split}_ratio={ratio} by more than half of it: {_listed(odd)}"
    )


def _listed(counts: Mapping[str, tuple[int, int]]) -> str:
    return shortened((f"{name} {drawn} of {size}" for name, (drawn, size) in counts.items()), MOST_CLASSES)


def recorded_rule(record: Mapping[str, Any] | None, class_names: Sequence[str]) -> Rule:
    """Rule that repeats a draw, as a checkpoint records it; `by_ratio` without a record."""
    if record is None:
        return by_ratio
    if record["by"] == BY_PLACE:
        return by_place
    return up_to({label: record["edges"][name] for label, name in enumerate(class_names) if name in record["edges"]})


def places_of(paths: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Map each path to its place in [0, 1), float64 (n,): the order in which the images of a class are drawn."""
    return np.fromiter((_place(seed, path) for path in paths), np.float64)


def _place(seed: int, path: str) -> float:
    """Map an image to [0, 1). Numbered files are spread evenly, in blocks, so that consecutive ones (of one recording)
    are in train and val alike: they are a golden ratio apart (Knuth's Fibonacci hashing)."""
    path = unicodedata.normalize("NFC", path)
    number = NUMBER.search(path)
    name, count = (path, 0) if number is None else (path[: number.start()] + path[number.end() :], int(number.group()))
    block, within = divmod(count, BLOCK_OF_NUMBERS)
    text = f"{seed}\n{name}\n{block}".encode("utf-8", "surrogateescape")
    offset = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return (offset + within * GOLDEN) % 2**64 / 2**64

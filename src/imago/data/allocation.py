"""Stratified allocation of images to splits or folds, in units that stay together: groups, and equal images.

scikit-learn's StratifiedGroupKFold has neither a held-out part nor images that have a place already.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

UNPLACED = -1

Numbers = NDArray[np.int64]


def units_of(count: int, links: Iterable[Sequence[int]]) -> Numbers:
    """Number the units of `count` images, int64 (n,): images that `links` connect, each a list of images that belong
    together, are one unit, and so are chains of them."""
    pairs = [(first, index) for first, *rest in links for index in rest]
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def linked(values: Iterable[Hashable | None]) -> list[list[int]]:
    """List the positions of equal values, except None, where there are several."""
    positions: dict[Hashable, list[int]] = {}
    for index, value in enumerate(values):
        if value is not None:
            positions.setdefault(value, []).append(index)
    return [group for group in positions.values() if len(group) > 1]


@dataclass
class Allocation:
    """Images on their way to parts: splits or folds.

    Args:
        fractions: Part -> fraction of all images that it should have; their sum is 1.
        labels: Labels of the images, int64 (n,).
        units: Numbers of their units, int64 (n,).
        places: Their places in a random order, float64 (n,).
    """

    fractions: Mapping[str, float]
    labels: Numbers
    units: Numbers
    places: NDArray[np.float64]

    def __post_init__(self) -> None:
        self.parts = list(self.fractions)
        sizes = np.bincount(self.labels)
        self._shares = np.array(list(self.fractions.values()))
        self._wanted = self._shares[:, None] * sizes
        self._counts = np.zeros_like(self._wanted)
        self._weights = 1 / np.maximum(sizes, 1)

    def of_all(self, known: Sequence[str | None]) -> tuple[list[str], list[int]]:
        """Allocate all images; those with a `known` part keep it, and other images of their units follow them.

        Returns:
            The part of each image, and the images of units that were in several parts before.
        """
        number = {part: index for index, part in enumerate(self.parts)}
        chosen = np.array([UNPLACED if part is None else number[part] for part in known], dtype=np.int64)
        placed = chosen != UNPLACED
        np.add.at(self._counts, (chosen[placed], self.labels[placed]), 1)
        shared = np.flatnonzero(np.bincount(self.units)[self.units] > 1)
        shared = shared[np.argsort(self.units[shared], kind="stable")]
        members = np.split(shared, np.flatnonzero(np.diff(self.units[shared])) + 1)
        torn: list[int] = []
        several: list[Numbers] = []
        for unit in (unit for unit in members if len(unit)):
            before = chosen[unit][chosen[unit] != UNPLACED]
            torn += unit.tolist() if len({*before.tolist()}) > 1 else []
            if len(before):
                self._place(chosen, unit[chosen[unit] == UNPLACED], int(np.bincount(before).argmax()))
            else:
                several.append(unit)
        several.sort(key=lambda unit: (-len(unit), self.places[unit].min()))
        for unit in several:
            self._place(chosen, unit, self._emptiest(unit))
        for label in range(len(self._weights)):
            self._place_singles(chosen, np.flatnonzero((chosen == UNPLACED) & (self.labels == label)))
        return [self.parts[index] for index in chosen.tolist()], torn

    def _emptiest(self, unit: Numbers) -> int:
        """Part that lacks most of what a unit has; rare classes weigh as much as frequent ones."""
        own = np.bincount(self.labels[unit], minlength=len(self._weights)) * self._weights
        return int(np.argmin(np.round((self._counts - self._wanted) @ own, 9)))

    def _place(self, chosen: Numbers, images: Numbers, part: int) -> None:
        chosen[images] = part
        np.add.at(self._counts[part], self.labels[images], 1)

    def _place_singles(self, chosen: Numbers, images: Numbers) -> None:
        """Place images of one class, each a unit of its own, by what the parts lack of it. The largest remainders are
        rounded up; of equal ones those of the parts that lack most images."""
        if not len(images):
            return
        label = self.labels[images[0]]
        lacking = np.clip(self._wanted[:, label] - self._counts[:, label], 0, None)
        shares = lacking / lacking.sum() if lacking.sum() > 0 else self._shares
        exact = shares * len(images)
        sizes: Numbers = np.floor(exact + 1e-9).astype(np.int64)
        in_all = (self._wanted - self._counts).sum(axis=1)
        order = sorted(range(len(sizes)), key=lambda part: (-round(float(exact[part] - sizes[part]), 6), -in_all[part]))
        for part in order[: len(images) - sizes.sum()]:
            sizes[part] += 1
        ordered = images[np.argsort(self.places[images], kind="stable")]
        for part, members in enumerate(np.split(ordered, np.cumsum(sizes)[:-1])):
            self._place(chosen, members, part)

"""Order and groups of classes by how often they are confused with each other."""

import numpy as np
from numpy.typing import NDArray

MUTUAL = 0.05
"""Mean share of images that go astray between two clusters, from which on they are one group."""
WELL_ORDERED = 200  # classes up to which the order within the tree is optimised, in a second


def shares_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fractions of each true class, (classes, classes); rows of classes without an image are 0."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def clustered_order(counts: NDArray[np.int64]) -> list[int]:
    """Order of the classes in which those that are confused stand side by side.

    `counts[i, j]` is the number of images of class i that were taken for j. The clustering is hierarchical with
    average linkage; the similarity of two classes is the mean of the shares that are taken for the other one.
    """
    from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering

    if len(counts) < 3:
        return list(range(len(counts)))
    distances = _distances(counts)
    tree = _tree(distances)
    if len(counts) <= WELL_ORDERED:
        tree = optimal_leaf_ordering(tree, distances)
    return leaves_list(tree).tolist()


def confused_groups(counts: NDArray[np.int64]) -> list[list[int]]:
    """Groups of two classes or more that are confused with each other, those with the most mistakes inside first."""
    from scipy.cluster.hierarchy import fcluster

    if len(counts) < 3:
        return []
    members: dict[int, list[int]] = {}
    for index, group in enumerate(fcluster(_tree(_distances(counts)), 1 - MUTUAL, "distance").tolist()):
        members.setdefault(group, []).append(index)

    def mistakes(group: list[int]) -> int:
        inside = counts[np.ix_(group, group)]
        return int(inside.sum() - np.trace(inside))

    return sorted((group for group in members.values() if len(group) > 1), key=mistakes, reverse=True)


def _distances(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 - similarity of all pairs of classes, as scipy condenses them."""
    from scipy.spatial.distance import squareform

    shares = shares_of(counts)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    return squareform(distances, checks=False)


def _tree(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.cluster.hierarchy import linkage

    return linkage(distances, "average")

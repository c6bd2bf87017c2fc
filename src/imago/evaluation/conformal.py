"""Conformal prediction sets that hold the true class as often as they should, for the images of each class."""

import math

import numpy as np

from imago.evaluation.temperature import Floats, Ints


def least_images(coverage: float) -> int:
    """Number of images from which on a class has a threshold of its own: 9 for a coverage of 0.9, 19 for 0.95."""
    return math.ceil(1 / (1 - coverage) - 1e-9) - 1


def set_thresholds(calibrated: Floats, labels: Ints, coverage: float) -> Floats:
    """Least probability of each class, float64 (classes,), with which it belongs to the set of an image.

    The split-conformal quantile of the images of the class (Vovk 2012, Sadinle et al. 2019). Classes with fewer than
    `least_images` share that of their images together, whose coverage holds on average over these classes; 0, with
    which each of them is in every set, if these are fewer than `least_images` as well. The quantile of all images would
    not do: large classes, which do not use it, would have made it too high.
    """
    own, classes = np.exp(calibrated[np.arange(len(labels)), labels]), calibrated.shape[1]
    small = [*small_classes(labels, classes, coverage)]
    shared = _threshold(own[np.isin(labels, small)], coverage)
    return np.array(
        [shared if label in small else _threshold(own[labels == label], coverage) for label in range(classes)]
    )


def small_classes(labels: Ints, classes: int, coverage: float) -> dict[int, int]:
    """Label -> number of images, for the classes without a threshold of their own."""
    counts = np.bincount(labels, minlength=classes).tolist()
    return {label: count for label, count in enumerate(counts) if count < least_images(coverage)}


def _threshold(probabilities: Floats, coverage: float) -> float:
    """The probability of rank floor((n + 1) * (1 - coverage)) from below; 0 if n is too small."""
    rank = len(probabilities) + 1 - math.ceil((len(probabilities) + 1) * coverage - 1e-9)
    return float(np.sort(probabilities)[rank - 1]) if rank >= 1 else 0.0

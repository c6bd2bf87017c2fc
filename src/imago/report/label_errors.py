"""Images whose label may be wrong, by what a network says of them (confident learning, Northcutt et al. 2021)."""

import numpy as np
from numpy.typing import NDArray


def self_confidence(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each image's label (n,), divided by its mean over the images of that class: wrong labels are low.

    The mean of the class keeps classes that the network finds hard from filling the list: it is the threshold of
    Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021).
    """
    of_label = np.exp(log_probabilities[np.arange(len(labels)), labels])
    return of_label / _thresholds(labels, log_probabilities)[labels]


def confident_errors(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether another class is at least as probable as it is, on average, for the images that have it as their label
    (n,): the off-diagonal of the confident joint in the same paper."""
    is_confident = np.exp(log_probabilities) >= _thresholds(labels, log_probabilities)
    is_confident[np.arange(len(labels)), labels] = False
    return np.asarray(is_confident.any(axis=1))


def _thresholds(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean probability of the label in each class (classes,). The mean of all images counts as one more image of each,
    so that the only image of a class is not compared with itself."""
    of_label = np.exp(log_probabilities[np.arange(len(labels)), labels])
    classes = log_probabilities.shape[1]
    sums, counts = np.bincount(labels, of_label, classes), np.bincount(labels, minlength=classes)
    return np.asarray(np.maximum((sums + of_label.mean()) / (counts + 1), np.finfo(np.float64).tiny))

"""Images whose label may be wrong, by what a network says of them (confident learning).

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021), compare the
probability of a class with its mean over the images that have it as their label. That keeps classes which a network
finds hard from filling the list.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

HELD_OUT = "reports/held_out_train.npz"
LEAST_KNOWLEDGE = 0.4
"""Fraction of the way from the majority-class baseline to an accuracy of 1 from which a network may doubt labels.

With 2% wrong labels in 2, 3, 5 or 10 classes of digits (6 networks each, after 1 to 599 steps, on train and val), the
area under the ROC curve of `label_margin` is 0.89 to 1 on average in each tenth from here on, 0.77 to 1 from 0.2 to
0.4, and 0.6 below 0.1, where guessing gives 0.5.
"""


def knows_enough(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> bool:
    """Whether a network is right often enough to doubt a label. The list of a weaker one is noise."""
    baseline = np.bincount(labels).max() / len(labels)
    accuracy = (log_probabilities.argmax(axis=1) == labels).mean()
    return bool(accuracy > baseline and accuracy - baseline >= LEAST_KNOWLEDGE * (1 - baseline))


def label_margin(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probability of each image's label (n,) less that of the likeliest other class, each relative to the mean of
    its class. Wrong labels are low.

    Of 25 wrong labels among the 1,257 digits of train, 24 or 25 were in the first 48 for five networks (with train
    accuracies of 0.98, 0.95, 0.94, 0.92 and 0.84). By loss, these were 25, 25, 24, 23 and 19. For the weakest network
    28 of its 48 had one label, and 11 by this margin.
    """
    relative = log_probabilities - _log_means(labels, log_probabilities)
    image = np.arange(len(labels))
    of_label = relative[image, labels]
    relative[image, labels] = -np.inf
    return np.asarray(of_label - relative.max(axis=1))


def confident_errors(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether another class is at least as probable as it is, on average, for the images that have it as their label
    (n,): the off-diagonal of the confident joint of the paper. None are, if it would be more than half of the images:
    then it is the network that knows too little."""
    is_confident = log_probabilities >= _log_means(labels, log_probabilities)
    is_confident[np.arange(len(labels)), labels] = False
    errors = np.asarray(is_confident.any(axis=1))
    return errors if 2 * errors.sum() <= len(labels) else np.zeros_like(errors)


def possible_label_errors(
    labels: NDArray[np.int64], log_probabilities: NDArray[np.float64], least: int, most: int
) -> NDArray[np.int64]:
    """Indices of the images in which a person may look for wrong labels, by `label_margin`.

    These are all `confident_errors`, and the lowest margins up to a fifth of the images and `least`; `most` in all. An
    image is left out if the network gives its label and is as sure as it is, on average, of this class. One that it is
    less sure of is listed: a network learns wrong labels, too. After 200 epochs of a dense network on the digits with
    25 wrong labels, 24.8 of them were its answers, and the first 48 had 22.6 of them (mean of 5 seeds).
    """
    image = np.arange(len(labels))
    is_sure = log_probabilities[image, labels] >= _log_means(labels, log_probabilities)[labels]
    is_confident = confident_errors(labels, log_probabilities)
    is_candidate = is_confident | ~(is_sure & (log_probabilities.argmax(axis=1) == labels))
    margin = label_margin(labels, log_probabilities)
    by_rank = np.lexsort((margin, ~is_confident, ~is_candidate))
    listed = min(most, max(least, len(labels) // 5, int(is_confident.sum())), int(is_candidate.sum()))
    chosen = by_rank[:listed]
    return np.asarray(chosen[np.argsort(margin[chosen], kind="stable")])


def likeliest_other(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Class (n,) that is likeliest, relative to the mean of its class, beside each image's label."""
    relative = log_probabilities - _log_means(labels, log_probabilities)
    relative[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(relative.argmax(axis=1))


def _log_means(labels: NDArray[np.int64], log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the mean probability of the label in each class (classes,). The mean of all images counts as one
    more image of each, so that the only image of a class is not compared with itself."""
    of_label = np.exp(log_probabilities[np.arange(len(labels)), labels])
    classes = log_probabilities.shape[1]
    sums, counts = np.bincount(labels, of_label, classes), np.bincount(labels, minlength=classes)
    means = (sums + of_label.mean()) / (counts + 1)
    return np.asarray(np.log(np.maximum(means, np.finfo(np.float64).tiny)))


def write_held_out(folder: Path, log_probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    """Keep log-probabilities (n, classes) of all train images, by heads that were fitted without them, with the run."""
    (folder / HELD_OUT).parent.mkdir(exist_ok=True)
    np.savez(folder / HELD_OUT, log_probabilities=log_probabilities, labels=labels)


def read_held_out(folder: Path, chosen: list[int], labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Log-probabilities of the `chosen` images that `write_held_out` has kept, (n, classes); None for other labels.

    A network has learned the labels that it was trained on, wrong ones too, and contradicts few of them. Of 24 wrong
    labels among 243 ants and bees, heads on features of efficientnet_lite0 contradicted 18.1 held out, and 0.4 right
    ones, but 4.6 of those that they were fitted to (mean of 10 draws). After two epochs of fine-tuning it was 2.
    """
    try:
        with np.load(folder / HELD_OUT, allow_pickle=False) as kept:
            known, of_labels = kept["log_probabilities"], kept["labels"]
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    is_same = max(chosen, default=0) < len(of_labels) == len(known) and np.array_equal(of_labels[chosen], labels)
    return np.asarray(known[chosen], np.float64) if is_same else None

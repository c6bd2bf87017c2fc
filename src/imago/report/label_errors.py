"""Images whose label may be wrong, by what a network says of them (confident learning).

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021), compare the
probability of a class with its mean over the images that have it as their label. That keeps classes which a network
finds hard from filling the list.
"""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from imago.files import atomic_write

HELD_OUT, MARGINS = "reports/held_out_train.npz", "label_margins.npz"
AT_ONCE = 64
"""Images whose neighbours are looked for at once."""
LEAST_KNOWLEDGE = 0.4
"""Fraction of the way from the majority-class baseline to an accuracy of 1 from which a network may doubt labels.

With 2% wrong labels in 2, 3, 5 or 10 classes of digits (6 networks each, after 1 to 599 steps, on train and val), the
area under the ROC curve of `label_margin` is 0.89 to 1 on average in each tenth from here on, 0.77 to 1 from 0.2 to
0.4, and 0.6 below 0.1, where guessing gives 0.5.
"""


LEAST_WITH_MARGINS = 0.2
"""That fraction where margins of the training vote, too. With 40% of the labels of 9,000 images of CIFAR-10 flipped to
any other class, a network that ended at 0.22 ranked wrong labels with an area under the ROC curve of 0.83."""


def knows_enough(
    labels: NDArray[np.int64], log_probabilities: NDArray[np.float64], margins: NDArray[np.float64] | None = None
) -> bool:
    """Whether a network is right often enough to doubt a label. The list of a weaker one is noise."""
    baseline = np.bincount(labels).max() / len(labels)
    accuracy = (log_probabilities.argmax(axis=1) == labels).mean()
    least = LEAST_KNOWLEDGE if margins is None else LEAST_WITH_MARGINS
    return bool(accuracy > baseline and accuracy - baseline >= least * (1 - baseline))


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


def suspicion(
    labels: NDArray[np.int64], log_probabilities: NDArray[np.float64], margins: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Order of the images (n,), in which wrong labels are low.

    Without `margins` from training it is that of `label_margin`. With them it is the mean of two ranks: that of the
    margin, less the mean of its class, and that of the probability of the label. An image without a margin (NaN) has
    the second alone. Of the votes that were tried, this one found at least as many labels that were flipped to any
    class as the probability alone, and more that were flipped to a similar class (benchmarks/label_errors.py).
    """
    if margins is None:
        return label_margin(labels, log_probabilities)
    second = _ranks(log_probabilities[np.arange(len(labels)), labels])
    is_known = ~np.isnan(margins)
    first = second.copy()
    if is_known.any():
        sums, counts = (np.bincount(labels[is_known], weights) for weights in (margins[is_known], None))
        first[is_known] = _ranks(margins[is_known] - (sums / np.maximum(counts, 1))[labels[is_known]])
    return np.asarray(first + second)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0 to 1."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values)) / max(len(values) - 1, 1)
    return ranks


def possible_label_errors(
    labels: NDArray[np.int64],
    log_probabilities: NDArray[np.float64],
    least: int,
    most: int,
    margins: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Indices of the images in which a person may look for wrong labels, by `suspicion`.

    These are all `confident_errors`, and the lowest margins up to a fifth of the images and `least`; `most` in all. An
    image is left out if the network gives its label and is as sure as it is, on average, of this class. One that it is
    less sure of is listed: a network learns wrong labels, too. After 200 epochs of a dense network on the digits with
    25 wrong labels, 24.8 of them were its answers, and the first 48 had 22.6 of them (mean of 5 seeds).
    """
    image = np.arange(len(labels))
    is_sure = log_probabilities[image, labels] >= _log_means(labels, log_probabilities)[labels]
    is_confident = confident_errors(labels, log_probabilities)
    is_candidate = is_confident | ~(is_sure & (log_probabilities.argmax(axis=1) == labels))
    margin = suspicion(labels, log_probabilities, margins)
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


def nearest(features: NDArray[np.float32], chosen: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of the images that are most similar to the `chosen` ones, (chosen, count), nearest first: by the cosine
    of their features (n, d) less the mean."""
    centred = features - features.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    count = min(count, len(features) - 1)
    parts = [np.zeros((0, count), np.int64)]
    for start in range(0, len(chosen), AT_ONCE):
        some = chosen[start : start + AT_ONCE]
        similarity = centred[some] @ centred.T
        similarity[np.arange(len(some)), some] = -np.inf
        best = np.argpartition(-similarity, range(count), axis=1)[:, :count] if count else parts[0][: len(some)]
        parts.append(best)
    return np.concatenate(parts)


def write_margins(file: Path, margins: NDArray[np.float64], labels: Sequence[int]) -> None:
    """Keep the mean margins of all train images, (n,), with the labels that they are of."""
    with atomic_write(file) as temporary, temporary.open("wb") as content:
        np.savez(content, margins=margins.astype(np.float32), labels=np.asarray(labels, np.int32))


def read_margins(folder: Path, chosen: list[int], labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Margins of the `chosen` images that `write_margins` has kept with the run; None for other labels."""
    return _kept(folder / "reports" / MARGINS, "margins", chosen, labels)


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
    return _kept(folder / HELD_OUT, "log_probabilities", chosen, labels)


def _kept(file: Path, name: str, chosen: list[int], labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Rows of the array `name`, which has one for each train image, with these `labels`; None without."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            known, of_labels = kept[name], kept["labels"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    is_same = max(chosen, default=0) < len(of_labels) == len(known) and np.array_equal(of_labels[chosen], labels)
    return np.asarray(known[chosen], np.float64) if is_same else None

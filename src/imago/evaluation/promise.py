"""The threshold from which on predictions are accepted, with a promise of how many of them are right.

Learn then test (Angelopoulos et al. 2021), with fixed-sequence testing over a fixed grid of thresholds.
docs/evaluation.md says what is promised, and why it holds.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtrin
from scipy.stats import binom

from imago.evaluation.temperature import Floats, Ints

STEPS, STEPS_OF_TEN = 120, 20
GRID = np.array([round(1 - float(f"{10 ** (-step / STEPS_OF_TEN):.2e}"), 15) for step in range(STEPS, -1, -1)])
"""Thresholds, the strictest first: 1 - 1e-6, ..., 0.99, 0.9888, ..., 0. With the last one all images are accepted.
Above the first one, a float32 probability, as exported files return it, could not be told from 1."""
MOST_WRONG = 1000
"""Greatest number of mistakes among the accepted images for which a number of images is suggested."""
UNLUCKY = 1.5
"""Factor for the number of images where another threshold than those that were tested would have passed."""


@dataclass(frozen=True)
class Promise:
    """Threshold that keeps the promise; None if none could be shown to.

    At the threshold, or at the first that was tested if it is None, `accepted` images are accepted, and `wrong` of
    these are wrong. `needed` is about the number of images with which there would be one; None if there would not.
    """

    threshold: float | None
    accepted: int
    wrong: int
    needed: int | None = None

    @property
    def evidence(self) -> dict[str, int | None]:
        """The numbers, by their names; `needed` only without a threshold."""
        needed = {"needed": self.needed} if self.threshold is None else {}
        return {"accepted": self.accepted, "wrong": self.wrong, **needed}


def first_threshold(calibrated: Floats, labels: Ints, images: int, target: float, confidence: float) -> int:
    """Position in `GRID` of the threshold to test first: that which will most probably pass on `images` others.

    It is learned from images that the test does not use, so that any choice is valid. Passing allows a number of
    mistakes; the mistakes to expect have a mean and, because the error rate is an estimate from few, a deviation.
    """
    accepted, wrong = _counts(calibrated, labels)
    rate, tested = (wrong + 0.5) / (accepted + 1), np.round(images * accepted / len(labels))
    allowed = binom.ppf(1 - confidence, tested, 1 - target)
    allowed -= bdtr(allowed, tested.astype(int), 1 - target) > 1 - confidence
    mean = tested * rate
    deviation = np.sqrt(mean * (1 + tested / (accepted + 1)))
    return int(np.argmax(np.where(tested > 0, (allowed + 0.5 - mean) / np.maximum(deviation, 1e-9), -np.inf)))


def promised_threshold(calibrated: Floats, labels: Ints, first: int, target: float, confidence: float) -> Promise:
    """Test the thresholds of `GRID` from position `first` on, and stop before the first that fails.

    A threshold passes if so few of the accepted images are wrong that this had a probability of at most 1 -
    `confidence` if fewer than `target` of all accepted images were right: the exact binomial test, by which the lower
    limit of Clopper and Pearson is at least `target`. Without accepted images the p-value is 1.
    """
    accepted, wrong = _counts(calibrated, labels)
    has_passed = bdtr(wrong[first:], accepted[first:], 1 - target) <= 1 - confidence
    passed = len(has_passed) if has_passed.all() else int(np.argmin(has_passed))
    if not passed:
        needed = _needed(accepted, wrong, target, confidence)
        return Promise(None, int(accepted[first]), int(wrong[first]), needed)
    last = first + passed - 1
    return Promise(float(GRID[last]), int(accepted[last]), int(wrong[last]))


def estimated_threshold(calibrated: Floats, labels: Ints, target: float) -> float | None:
    """Least confidence above which a fraction `target` of the answers is right, at most the strictest of `GRID`; None
    if there is none. It promises nothing: on new images the fraction is smaller as often as not."""
    confidence = np.minimum(np.exp(calibrated.max(axis=1)), GRID[0])
    correct = calibrated.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    accuracy = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    last_of_equals = np.append(confidence[order][1:] != confidence[order][:-1], True)
    reached = np.flatnonzero((accuracy >= target) & last_of_equals)
    return float(confidence[order][reached[-1]]) if len(reached) else None


def _counts(calibrated: Floats, labels: Ints) -> tuple[Ints, Ints]:
    """Number of images that each threshold of `GRID` accepts, and of those among them that are wrong."""
    confidence, is_wrong = np.exp(calibrated.max(axis=1)), calibrated.argmax(axis=1) != labels
    order = np.argsort(-confidence, kind="stable")
    accepted = np.searchsorted(-confidence[order], -GRID, side="right")
    return accepted, np.append(0, np.cumsum(is_wrong[order]))[accepted]


def _needed(accepted: Ints, wrong: Ints, target: float, confidence: float) -> int | None:
    """About the number of images with which a threshold passes, if as many of them are accepted, and wrong; rounded up
    to two digits. Without mistakes, log(1 - confidence) / log(target) have to be accepted."""
    mistakes, images = np.arange(MOST_WRONG + 1), accepted[-1]
    least = np.ceil(bdtrin(mistakes, 1 - confidence, 1 - target))
    enough = (wrong / np.maximum(accepted, 1))[:, None] * least <= mistakes
    is_possible = enough.any(axis=1) & (accepted > 0)
    if not is_possible.any():
        return None
    needed = least[enough.argmax(axis=1)[is_possible]] * images / accepted[is_possible]
    number = needed.min() if needed.min() > images else UNLUCKY * images
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit

"""Tests and intervals of the difference of two trainings, in numbers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imago.comparison.paired import (
    LEVEL,
    Counts,
    bootstrap_interval,
    difference_interval,
    equivalence,
    images_needed,
    mcnemar,
)
from imago.comparison.repeated import (
    LEAST_PAIRS,
    least_p,
    pairs_needed,
    sign_flip,
    sign_flip_interval,
    t_test,
    win_probability,
)

BOOTSTRAP_DISCORDANT = 20
"""Fewest discordant images with which the bootstrap's interval is shown: with fewer it is too short."""
DIGITS = 12
"""Decimals of a difference of accuracies."""


class Claims:
    """What p-values say of a difference."""

    p: float
    equivalence: float | None

    @property
    def is_claimed(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p <= LEVEL

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is below the margin."""
        return self.equivalence is not None and self.equivalence <= LEVEL


@dataclass(frozen=True)
class PairResult(Claims):
    """Two runs on the same images. Intervals are of the difference, B minus A, as a fraction of the images.

    Args:
        counts: Images by who is right.
        p: Of the exact McNemar test.
        low: Lower end of the 95% interval.
        high: Its upper end.
        bootstrap: Interval of the paired bootstrap; None with too few discordant images.
        needed: Images with which the test would claim the seen difference with 80% probability.
        margin: Difference below which two runs count as equivalent; None if none was typed.
        equivalence: P-value of the two one-sided tests with this margin.
    """

    counts: Counts
    p: float
    low: float
    high: float
    bootstrap: tuple[float, float] | None
    needed: int | None
    margin: float | None = None
    equivalence: float | None = None

    def swapped(self) -> "PairResult":
        """The result with A and B exchanged."""
        bootstrap = None if self.bootstrap is None else (-self.bootstrap[1], -self.bootstrap[0])
        ends = {"low": -self.high, "high": -self.low, "bootstrap": bootstrap}
        return PairResult(**{**vars(self), "counts": self.counts.swapped(), **ends})

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain types for JSON."""
        return asdict(self) | {"n": self.counts.n, "right_a": self.counts.right_a, "right_b": self.counts.right_b}


def compare_pair(counts: Counts, margin: float | None = None, seed: int = 0) -> PairResult:
    """Compute all tests of two runs."""
    n, a, b = counts.n, counts.only_a, counts.only_b
    p = float(mcnemar(a, b))
    low, high = (float(end) for end in difference_interval(n, a, b))
    has_enough = counts.discordant >= BOOTSTRAP_DISCORDANT
    return PairResult(
        counts,
        p,
        low,
        high,
        bootstrap_interval(counts, seed) if has_enough else None,
        images_needed(counts) if p > LEVEL else None,
        margin,
        float(equivalence(n, a, b, margin)) if margin is not None else None,
    )


@dataclass(frozen=True)
class RepeatedResult(Claims):
    """Two trainings, each run with several seeds or folds. Accuracies and differences are fractions, run by run.

    Args:
        pairs: What the two runs of each pair have in common, such as `seed 1`.
        a: Accuracy of A in each pair.
        b: Accuracy of B in each pair.
        overlap: Test images over train images, for folds; 0 for seeds.
        p: Of the sign-flip test, or, for folds, of the corrected resampled t test.
        low: Lower end of the 95% interval.
        high: Its upper end.
        is_normal: Whether the interval assumes normally distributed differences, where the test assumes nothing.
        wins: Probability that B has the greater accuracy in a pair, with its 95% interval.
        needed: Pairs that would do.
        margin: Difference below which the two count as equivalent; None if none was typed.
        equivalence: P-value of the two one-sided t tests with this margin.
    """

    pairs: list[str]
    a: list[float]
    b: list[float]
    overlap: float
    p: float
    low: float
    high: float
    is_normal: bool
    wins: tuple[float, float, float]
    needed: int | None
    margin: float | None = None
    equivalence: float | None = None

    @property
    def differences(self) -> list[float]:
        """B minus A in each pair."""
        return _differences(self.a, self.b)

    @property
    def mean(self) -> float:
        """Mean difference."""
        return round(statistics.fmean(self.differences), DIGITS)

    @property
    def least_p(self) -> float:
        """Smallest p-value that this test can have with so many pairs."""
        return 0.0 if self.overlap else least_p(len(self.pairs))

    def swapped(self) -> "RepeatedResult":
        """The result with A and B exchanged."""
        wins, low, high = self.wins
        ends = {"a": self.b, "b": self.a, "low": -self.high, "high": -self.low, "wins": (1 - wins, 1 - high, 1 - low)}
        return RepeatedResult(**{**vars(self), **ends})

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain types for JSON."""
        return asdict(self) | {"differences": self.differences, "mean": self.mean, "least_p": self.least_p}


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """B minus A in each pair, without the noise of binary fractions: 0.9 - 0.8 is less than 0.8 - 0.7."""
    return [round(y - x, DIGITS) for x, y in zip(a, b, strict=True)]


def compare_repeated(
    pairs: Sequence[str],
    a: Sequence[float],
    b: Sequence[float],
    overlap: float = 0.0,
    margin: float | None = None,
    step: float = 0.0,
) -> RepeatedResult:
    """Compute all tests of two trainings with two or more pairs of runs. `step` is that of their accuracies, 1 over
    the number of images."""
    differences = _differences(a, b)
    p, low, high = (float(value) for value in t_test(differences, overlap, step))
    is_normal = True
    if not overlap:
        exact = sign_flip_interval(differences)
        p, is_normal = float(sign_flip(differences)), exact is None
        if exact is not None:
            low, high = (float(end) for end in exact)
        elif len(differences) >= LEAST_PAIRS and p > LEVEL:  # very many pairs: the interval does not contradict
            low, high = min(low, 0.0), max(high, 0.0)
    mean = round(statistics.fmean(differences), DIGITS)
    won, tied = sum(d > 0 for d in differences), sum(d == 0 for d in differences)
    return RepeatedResult(
        list(pairs),
        list(a),
        list(b),
        overlap,
        p,
        low,
        high,
        is_normal,
        win_probability(won, tied, len(differences)),
        pairs_needed(mean, max(statistics.stdev(differences), step / math.sqrt(12)), overlap),
        margin,
        _repeated_equivalence(differences, overlap, margin, step) if margin is not None else None,
    )


def _repeated_equivalence(differences: Sequence[float], overlap: float, margin: float, step: float) -> float:
    """P-value of two one-sided t tests: half the two-sided p where the mean is on the right side of the margin."""
    worst = 0.0
    for sign in (1, -1):
        shifted = [margin + sign * d for d in differences]
        p = float(t_test(shifted, overlap, step)[0]) / 2
        worst = max(worst, p if statistics.fmean(shifted) > 0 else 1 - p)
    return worst

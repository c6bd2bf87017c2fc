"""Tests and intervals of the difference of two trainings, in numbers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imago.comparison.paired import (
    LEAST_DISCORDANT,
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
from imago.terminal import counted

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
        needed: Images with which the test would claim the seen difference with 80% probability; None for fewer than 6
            discordant images, of which it can claim nothing.
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
    bootstrap = bootstrap_interval(counts, seed) if counts.discordant >= BOOTSTRAP_DISCORDANT else None
    return PairResult(
        counts,
        p,
        low,
        high,
        bootstrap if bootstrap is not None and bootstrap[0] < bootstrap[1] else None,
        images_needed(counts) if p > LEVEL and counts.discordant >= LEAST_DISCORDANT else None,
        margin,
        float(equivalence(n, a, b, margin)) if margin is not None else None,
    )


@dataclass(frozen=True)
class RepeatedResult(Claims):
    """Two trainings, each run with several seeds or folds. Accuracies and differences are fractions, run by run.

    Args:
        pairs: What the two runs of each pair have in common, such as `seed 1`.
        over: The pairs in words: `6 seeds`, `5 folds`, or `6 runs (2 seeds, 3 folds)`.
        a: Accuracy of A in each pair.
        b: Accuracy of B in each pair.
        overlap: Scored images over train images, where each pair has images of its own (folds); 0 where all pairs have
            the same ones.
        p: Of the sign-flip test, or, with an overlap, of the corrected resampled t test.
        low: Lower end of the 95% interval.
        high: Its upper end.
        is_normal: Whether the interval assumes normally distributed differences.
        wins: Probability that B has the greater accuracy in a pair, with its 95% interval.
        needed: Pairs with which the test would claim the seen difference with 80% probability.
        margin: Difference below which the two count as equivalent; None if none was typed.
        equivalence: P-value of the two one-sided tests with this margin; None for fewer than 6 seeds.
    """

    pairs: list[str]
    over: str
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
        """Convert to plain types for JSON, where `a` and `b` are the names of the trainings."""
        content = asdict(self)
        accuracies = {"accuracies_a": content.pop("a"), "accuracies_b": content.pop("b")}
        return accuracies | content | {"differences": self.differences, "mean": self.mean, "least_p": self.least_p}


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
    over: str = "",
) -> RepeatedResult:
    """Compute all tests of two trainings with two or more pairs of runs. `step` is that of their accuracies, 1 over
    the number of images; `over` names the pairs, by default as seeds or folds."""
    differences = _differences(a, b)
    p, low, high = (float(value) for value in t_test(differences, overlap, step))
    exact = sign_flip_interval(differences) if not overlap else None
    if not overlap:
        p = float(sign_flip(differences))
    if exact is not None:
        low, high = (round(float(end), DIGITS) for end in exact)
        spare = step / 2 if low == high else 0.0  # equal differences: they are known to half a step
        low, high = low - spare, high + spare
    mean = round(statistics.fmean(differences), DIGITS)
    won, tied = sum(d > 0 for d in differences), sum(d == 0 for d in differences)
    return RepeatedResult(
        list(pairs),
        over or counted(len(differences), "fold" if overlap else "seed"),
        list(a),
        list(b),
        overlap,
        p,
        low,
        high,
        exact is None,
        win_probability(won, tied, len(differences)),
        pairs_needed(mean, max(statistics.stdev(differences), step / math.sqrt(12)), overlap) if p > LEVEL else None,
        margin,
        _repeated_equivalence(differences, overlap, margin, step) if margin is not None else None,
    )


def _repeated_equivalence(differences: Sequence[float], overlap: float, margin: float, step: float) -> float | None:
    """P-value of two one-sided tests: half the two-sided p where the mean is on the right side of the margin."""
    if not overlap and len(differences) < LEAST_PAIRS:
        return None
    worst = 0.0
    for sign in (1, -1):
        shifted = [margin + sign * d for d in differences]
        p = float(t_test(shifted, overlap, step)[0] if overlap else sign_flip(shifted)) / 2
        worst = max(worst, p if statistics.fmean(shifted) > 0 else 1 - p)
    return worst

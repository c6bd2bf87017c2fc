"""Two trainings, each repeated with k seeds or folds: tests and intervals of their mean difference.

Differences are those of the pairs, run by run, in the last axis of an array: (k,), or (..., k) for many at once.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, nctdtr, stdtr, stdtrit

from imago.comparison.paired import LEVEL, POWER

Floats = NDArray[np.float64]

LEAST_PAIRS = 6
"""Fewest pairs with which the sign-flip test can claim a difference at 5%: the least p of k pairs is 2 / 2^k."""
MOST_EXACT = 16
"""With more pairs than this, signs are drawn in place of all being listed."""
DRAWS = 100_000
MOST_PAIRS = 10_000
NEARLY = 1e-9
"""Relative difference below which two means count as equal: rounding must not decide a test."""


def least_p(pairs: int) -> float:
    """Smallest p-value that the sign-flip test of so many pairs can have."""
    return min(1.0, 2.0 ** (1 - pairs))


def sign_flip(differences: ArrayLike, seed: int = 0) -> Any:
    """Two-sided p-value of the sign-flip permutation test that the mean difference is 0.

    Fisher 1935, The Design of Experiments, section 21. If the two trainings are equal, each difference is as likely
    with the opposite sign, and p is the fraction of all 2^k signs whose mean is at least as far from 0. Exact for any k
    and any distribution: at most 5% false claims. With fewer than 6 pairs p cannot reach 5%. With more than 16, 100,000
    signs are drawn, and the seen ones are counted with them (Phipson and Smyth 2010).
    """
    values = np.asarray(differences, dtype=float)
    signs = _signs(values.shape[-1]) if values.shape[-1] <= MOST_EXACT else _drawn_signs(values.shape[-1], seed)
    seen = np.abs(values.sum(axis=-1))[..., None]
    allowance = NEARLY * np.abs(values).sum(axis=-1)[..., None]
    return (np.abs(values @ signs.T) >= seen - allowance).mean(axis=-1)


@cache
def _signs(pairs: int) -> Floats:
    """All signs, (2^(k - 1), k), up to a change of every sign, which changes no distance from 0."""
    numbers = np.arange(2 ** (pairs - 1))[:, None]
    return np.asarray(1 - 2 * (numbers >> np.arange(pairs) & 1), dtype=np.float64)


def _drawn_signs(pairs: int, seed: int) -> Floats:
    drawn: Floats = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, pairs)).astype(np.float64)
    drawn[0] = 1  # those that were seen
    return drawn


def sign_flip_interval(differences: ArrayLike) -> Floats | None:
    """Interval of the mean difference with at least 95% confidence, (2, ...); None for fewer than 6 or more than 16
    pairs.

    Hartigan 1969, JASA 64, 1303-1317: the means of all 2^k - 1 subsets of the differences divide the line into 2^k
    parts that hold the centre of any symmetric distribution with equal probability. It is the set of centres that the
    sign-flip test does not reject.
    """
    values = np.asarray(differences, dtype=float)
    pairs = values.shape[-1]
    if not LEAST_PAIRS <= pairs <= MOST_EXACT:
        return None
    subsets = (np.arange(1, 2**pairs)[:, None] >> np.arange(pairs) & 1).astype(float)
    means = np.sort(values @ (subsets / subsets.sum(axis=1, keepdims=True)).T, axis=-1)
    left_out = int(LEVEL / 2 * 2**pairs)
    return np.stack([means[..., left_out - 1], means[..., -left_out]])


def t_test(differences: ArrayLike, overlap: float = 0.0, step: float = 0.0) -> tuple[Any, Any, Any]:
    """P-value and 95% interval of the mean of k normally distributed differences: `(p, low, high)`.

    With an `overlap` of 0 it is Student's paired t test, for independent differences. For folds it is the number of
    test images over that of train images, and the test is the corrected resampled t test: the folds train on the same
    images, so that their differences vary together (Nadeau and Bengio 2003, Machine Learning 52, 239-281, equation 9).
    It needs 2 differences. Accuracies are multiples of a `step`, 1/n: equal differences need not be free of variance,
    so that it counts as at least step^2 / 12, that of rounding (Sheppard 1898). Without a step the interval of equal
    differences has the length 0, and p is 0, or 1 if they are 0.
    """
    values = np.asarray(differences, dtype=float)
    pairs, mean = values.shape[-1], values.mean(axis=-1)
    error = np.sqrt(np.maximum(values.var(axis=-1, ddof=1), step**2 / 12) * (1 / pairs + overlap))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(mean == 0, 1.0, 2 * stdtr(pairs - 1, -np.abs(mean / error)))
    half = stdtrit(pairs - 1, 1 - LEVEL / 2) * error
    return p, mean - half, mean + half


def win_probability(wins: int, ties: int, pairs: int) -> tuple[float, float, float]:
    """Probability that a pair is won, with its exact 95% interval: `(estimate, low, high)`.

    A tie is half a win (Bouthillier et al. 2021, Accounting for Variance in Machine Learning Benchmarks). The interval
    is that of Clopper and Pearson 1934, with ties lost for its lower end, and won for its upper one.
    """
    won = wins + ties
    low = float(betaincinv(wins, pairs - wins + 1, LEVEL / 2)) if wins else 0.0
    high = float(betaincinv(won + 1, pairs - won, 1 - LEVEL / 2)) if won < pairs else 1.0
    return (wins + ties / 2) / pairs, low, high


def pairs_needed(mean: float, deviation: float, overlap: float = 0.0, least: int = LEAST_PAIRS) -> int | None:
    """Number of pairs with which a t test would claim this mean difference with 80% probability, at least `least`; None
    without a difference, with an `overlap`, under which more folds do not help, and for more than 10,000.

    From the noncentral t distribution (Cohen 1988, chapter 2). The sign-flip test needs about as many.
    """
    if not mean or overlap:
        return None
    pairs = least
    while pairs <= MOST_PAIRS:
        if not deviation:
            return pairs
        shift, limit = math.sqrt(pairs) * abs(mean) / deviation, stdtrit(pairs - 1, 1 - LEVEL / 2)
        if 1 - nctdtr(pairs - 1, shift, limit) >= POWER:
            return pairs
        pairs += max(1, pairs // 50)
    return None

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
SIMULATED, LEAST_T_POWER = 1000, 12
"""Draws for the power of the sign-flip test, and pairs from which on it has that of the t test."""
NEARLY = 1e-9
"""Relative difference below which two means count as equal: rounding must not decide a test."""


def least_p(pairs: int) -> float:
    """Smallest p-value that the sign-flip test of so many pairs can have."""
    return min(1.0, 2.0 ** (1 - pairs))


def sign_flip(differences: ArrayLike) -> Any:
    """Two-sided p-value of the sign-flip permutation test that the mean difference is 0.

    Fisher 1935, The Design of Experiments, section 21. If the two trainings are equal, each difference is as likely
    with the opposite sign, and p is the fraction of all 2^k signs whose mean is at least as far from 0. Exact for any k
    and any distribution: at most 5% false claims. With fewer than 6 pairs p cannot reach 5%. With more than 16, 100,000
    signs are drawn, and the seen ones are counted with them (Phipson and Smyth 2010).
    """
    values = np.asarray(differences, dtype=float)
    signs = _signs(values.shape[-1])
    seen = np.abs(values.sum(axis=-1))[..., None]
    allowance = NEARLY * np.abs(values).sum(axis=-1)[..., None]
    return (np.abs(values @ signs.T) >= seen - allowance).mean(axis=-1)


@cache
def _signs(pairs: int) -> Floats:
    """All signs, (2^(k - 1), k), up to a change of every sign, which changes no distance from 0; of more than 16 pairs,
    drawn ones, always the same."""
    if pairs <= MOST_EXACT:
        numbers = np.arange(2 ** (pairs - 1))[:, None]
        return np.asarray(1 - 2 * (numbers >> np.arange(pairs) & 1), dtype=np.float64)
    drawn: Floats = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, pairs)).astype(np.float64)
    drawn[0] = 1  # those that were seen
    return drawn


def sign_flip_interval(differences: ArrayLike) -> Floats | None:
    """Interval of the mean difference with at least 95% confidence, (2, ...); None for fewer than 6 pairs.

    It is the set of centres that the sign-flip test does not reject, with the signs of that test, so that the two never
    contradict each other. A vector of signs counts against a centre unless this lies between the mean of the
    differences that keep their sign and the mean of the others. With all signs it is the interval of Hartigan 1969,
    JASA 64, 1303-1317, which holds the centre of any symmetric distribution.
    """
    values = np.asarray(differences, dtype=float)
    pairs = values.shape[-1]
    if pairs < LEAST_PAIRS:
        return None
    signs = _signs(pairs)
    signs = signs[np.abs(signs.sum(axis=1)) < pairs]  # those that change no sign, or all, reject no centre
    balance, total, flipped = signs.sum(axis=1), values.sum(axis=-1)[..., None], values @ signs.T
    means = np.stack([(total + flipped) / (pairs + balance), (total - flipped) / (pairs - balance)])
    left_out = int(LEVEL * len(_signs(pairs))) - (len(_signs(pairs)) - len(signs))
    low = np.partition(means.min(axis=0), left_out, axis=-1)[..., left_out]
    high = np.partition(means.max(axis=0), -left_out - 1, axis=-1)[..., -left_out - 1]
    return np.stack([low, high])


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


def pairs_needed(mean: float, deviation: float, overlap: float = 0.0) -> int | None:
    """Number of pairs with which the sign-flip test would claim this mean difference with 80% probability, at least 6;
    None without a difference, with an `overlap`, under which more folds do not help, and for more than 10,000."""
    if not mean or overlap:
        return None
    pairs = LEAST_PAIRS
    while deviation and pairs <= MOST_PAIRS and sign_flip_power(pairs, abs(mean) / deviation) < POWER:
        pairs += max(1, pairs // 50)
    return pairs if pairs <= MOST_PAIRS else None


def sign_flip_power(pairs: int, effect: float) -> float:
    """Probability that the sign-flip test claims normally distributed differences whose mean is `effect` standard
    deviations from 0.

    Simulated with 1,000 draws where it is well below that of the t test (0.63 against 0.8 with 6 pairs); with 12 pairs
    or more that of the t test, from the noncentral t distribution (Cohen 1988, chapter 2).
    """
    if pairs < LEAST_T_POWER:
        drawn = np.random.default_rng(0).standard_normal((SIMULATED, pairs)) + effect
        return float((sign_flip(drawn) <= LEVEL).mean())
    limit = stdtrit(pairs - 1, 1 - LEVEL / 2)
    return float(1 - nctdtr(pairs - 1, math.sqrt(pairs) * effect, limit))

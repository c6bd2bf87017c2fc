"""Two classifiers on the same n images: tests and intervals of the difference of their accuracies.

They depend on n and two counts: the images that only A has right, and those that only B has right. The functions take
whole numbers or arrays of them, which broadcast. A difference is that of B minus A, as a fraction of the images.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrik, gammaln, ndtr, ndtri, xlog1py, xlogy

Floats = NDArray[np.float64]

LEVEL = 0.05
"""A difference is claimed if p is at most this."""
WIDER = 0.955
"""Nominal confidence at which the real one is 95%, or little below, also for few images."""
POWER = 0.8
LEAST_DISCORDANT = 6
"""Fewest discordant images with which the exact test can claim a difference: 2 / 2^6 is below 5%, 2 / 2^5 is not."""
RESAMPLES = 10_000
MOST_IMAGES = 10**7
"""Greatest number of images that `images_needed` names."""
STEPS = 60
"""Bisections of an interval of length 2: to the last bit."""


@dataclass(frozen=True)
class Counts:
    """Images by who is right; `same` have the same answer of both, right or wrong."""

    both: int
    only_a: int
    only_b: int
    neither: int
    same: int = 0

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def right_a(self) -> int:
        """Images that A has right."""
        return self.both + self.only_a

    @property
    def right_b(self) -> int:
        """Images that B has right."""
        return self.both + self.only_b

    @property
    def gain(self) -> int:
        """How many more images B has right than A."""
        return self.only_b - self.only_a

    @property
    def discordant(self) -> int:
        """Images that one of the two has right."""
        return self.only_a + self.only_b

    def swapped(self) -> "Counts":
        """The counts with A and B exchanged."""
        return Counts(self.both, self.only_b, self.only_a, self.neither, self.same)


def mcnemar(only_a: ArrayLike, only_b: ArrayLike) -> Any:
    """Two-sided p-value of the exact McNemar test: twice the smaller tail of Binomial(discordant, 1/2), at most 1.

    McNemar 1947, Psychometrika 12, 153-157; in this exact form Fagerland, Lydersen and Laake 2013, BMC Medical Research
    Methodology 13:91, equation 3. Valid for all counts: whatever n is, at most 5% of networks that are equally
    often right have p <= 0.05, and far fewer where few images are discordant.
    """
    a, b = np.asarray(only_a), np.asarray(only_b)
    return np.minimum(1.0, 2 * bdtr(np.minimum(a, b).astype(float), a + b, 0.5))


def score_statistic(n: ArrayLike, only_a: ArrayLike, only_b: ArrayLike, difference: ArrayLike) -> Any:
    """Score statistic of the hypothesis that the difference is `difference`; about standard normal if it is.

    Tango 1998, Statistics in Medicine 17, 891-908: the variance is that of the most likely probabilities with this
    difference. At 0 its square is McNemar's statistic. Valid for differences above -1 and below 1.
    """
    n, a, b, d = (np.asarray(value, dtype=float) for value in (n, only_a, only_b, difference))
    linear, constant = (2 * n - b + a) * d - a - b, -a * d * (1 - d)
    only_a_fraction = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * only_a_fraction + d * (1 - d))
    return (b - a - n * d) / np.sqrt(np.maximum(variance, 1e-12))


def score_interval(n: ArrayLike, only_a: ArrayLike, only_b: ArrayLike, confidence: float = 0.95) -> Floats:
    """Score interval of the difference (Tango 1998), (2, ...): the differences that the score test does not reject.

    Never empty, and sensible without discordant images (n = 153: from -0.024 to 0.024), where the Wald interval and the
    bootstrap have the length 0.
    """
    n, a, b = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in (n, only_a, only_b)))
    z, seen = float(ndtri((1 + confidence) / 2)), (b - a) / n
    limits = []
    for sign, edge in ((1, -1.0), (-1, 1.0)):
        inside, outside = seen.copy(), np.full_like(seen, edge)
        for _ in range(STEPS):
            middle = (inside + outside) / 2
            is_rejected = sign * score_statistic(n, a, b, middle) > z
            inside, outside = np.where(is_rejected, inside, middle), np.where(is_rejected, middle, outside)
        limits.append(inside)
    return np.stack(limits)


def difference_interval(n: ArrayLike, only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """95% interval of the difference, (2, ...): Tango's, stretched to 0 where the exact McNemar test claims nothing.

    It never contradicts the test: 0 is outside if and only if the test claims a difference. Tango's is taken at 95.5%,
    because at 95% its coverage fell to 92.8% for 40 images; with both, it was 94.1% in the worst of 1,680 cases in
    which at most 60% of the images are discordant (docs/compare.md).
    """
    low, high = score_interval(n, only_a, only_b, WIDER)
    narrow_low, narrow_high = score_interval(n, only_a, only_b)
    is_claimed = mcnemar(only_a, only_b) <= LEVEL
    contradicts = is_claimed & (low <= 0) & (high >= 0)  # with 500 discordant images or more
    low, high = np.where(contradicts, narrow_low, low), np.where(contradicts, narrow_high, high)
    return np.stack([np.where(is_claimed, low, np.minimum(low, 0)), np.where(is_claimed, high, np.maximum(high, 0))])


def equivalence(n: ArrayLike, only_a: ArrayLike, only_b: ArrayLike, margin: float) -> Any:
    """P-value of two one-sided tests (TOST): of the hypothesis that the difference is `margin` or more, either way.

    Schuirmann 1987, with the score test (Nam 1997; Liu et al. 2002, Statistics in Medicine 21, 231-245) and a
    continuity correction of half an image. Without it, more than 5% of pairs that differ by the margin were
    called equivalent where few images are discordant.
    """
    n, a, b = (np.asarray(value, dtype=float) for value in (n, only_a, only_b))
    worst = np.zeros(np.broadcast(n, a, b).shape)
    for first, second in ((a, b), (b, a)):
        shortfall = score_statistic(n, first, second, -margin)  # large if `second` is not worse by the margin
        scale = (second - first + n * margin) / np.where(shortfall == 0, np.inf, shortfall)
        corrected = (second - first + n * margin - 0.5) / np.maximum(scale, 1e-12)
        worst = np.maximum(worst, 1 - ndtr(np.where(shortfall > 0, corrected, -np.inf)))
    return worst


def bootstrap_interval(counts: Counts, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval of the difference over paired resamples of the images (Efron and Tibshirani 1993, 13.3).

    To draw n images with replacement is to draw their three counts from a multinomial distribution. With few discordant
    images the interval is too short, and without any its length is 0.
    """
    fractions = np.array([counts.only_a, counts.only_b, counts.both + counts.neither]) / counts.n
    drawn = np.random.default_rng(seed).multinomial(counts.n, fractions, resamples)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / counts.n, [0.025, 0.975])
    return float(low), float(high)


def mcnemar_power(n: int, discordance: float, difference: float) -> float:
    """Probability that the exact McNemar test claims a difference with n images, of which the fraction `discordance` is
    discordant on average, if the true difference is `difference`.

    The sum over the numbers of discordant images (Duffy 1984, Biometrics 40, 1005-1015), within 8 standard deviations.
    """
    spread = 8 * math.sqrt(n * discordance * (1 - discordance)) + 8
    least, most = max(0, math.floor(n * discordance - spread)), min(n, math.ceil(n * discordance + spread))
    m = np.arange(least, most + 1)
    weights = np.exp(
        gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1) + xlogy(m, discordance) + xlog1py(n - m, -discordance)
    )
    of_b = (1 + difference / discordance) / 2
    critical = _critical(m)
    tails = sum(np.where(critical >= 0, bdtr(np.maximum(critical, 0.0), m, p), 0.0) for p in (of_b, 1 - of_b))
    return float(np.sum(weights * tails))


def _critical(discordant: NDArray[np.int64]) -> Floats:
    """Greatest smaller count with which the exact test claims a difference; -1 if there is none."""
    with np.errstate(invalid="ignore"):
        guess = np.floor(np.nan_to_num(bdtrik(LEVEL / 2, discordant, 0.5), nan=0.0))
    critical = np.full(discordant.shape, -1.0)
    for k in (guess - 1, guess, guess + 1):  # the inverse is continuous, and rounds
        is_claimed = (k >= 0) & (2 * bdtr(np.maximum(k, 0.0), discordant, 0.5) <= LEVEL)
        critical = np.where(is_claimed, k, critical)
    return critical


def images_needed(counts: Counts, power: float = POWER) -> int | None:
    """Number of images with which the exact McNemar test would claim a difference as large as the one that was seen,
    with this probability, if as large a fraction of them is discordant. None without a difference, and for more than
    ten million images.

    It starts from n = (z_0.975 sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2, where psi is the discordant fraction and d
    the difference (Connor 1987, Biometrics 43, 207-211), and then takes the first n with the power of the exact test,
    which needs some more. The seen difference is itself uncertain, and so is this number.
    """
    psi, d = counts.discordant / counts.n, abs(counts.gain) / counts.n
    if not d:
        return None
    root = float(ndtri(1 - LEVEL / 2)) * math.sqrt(psi) + float(ndtri(power)) * math.sqrt(max(psi - d * d, 0))
    enough = max(1, math.ceil(root**2 / d**2))
    least = 0
    while enough <= MOST_IMAGES and mcnemar_power(enough, psi, d) < power:
        least, enough = enough, math.ceil(1.25 * enough) + 1
    if enough > MOST_IMAGES:
        return None
    while enough - least > 1:
        middle = (least + enough) // 2
        if mcnemar_power(middle, psi, d) >= power:
            enough = middle
        else:
            least = middle
    return max(enough, counts.n + 1)

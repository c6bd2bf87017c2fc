"""The tables of docs/compare.md: how often ml-compare claims what is not so, what its intervals cover, and its power.

All are sums of probabilities; nothing is simulated.

python benchmarks/compare.py
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, stdtr, stdtrit, xlogy

from imago.comparison.paired import LEVEL, difference_interval, mcnemar_power, score_interval
from imago.comparison.repeated import least_p

Array = NDArray[np.float64]
SIZES, DISCORDANCES = (20, 150, 2000), (0.04, 0.2, 0.5)
SPARE = 1e-12


def counts(n: int, rates: tuple[float, float] | None = None) -> tuple[Array, Array]:
    """Images that only A, and only B, has right: all pairs of numbers, or those within 8 deviations of `rates`."""
    ranges = [np.arange(n + 1), np.arange(n + 1)]
    for place, rate in enumerate(rates or ()):
        spread = 8 * math.sqrt(n * rate * (1 - rate)) + 8
        ranges[place] = np.arange(max(0, math.floor(n * rate - spread)), min(n, math.ceil(n * rate + spread)) + 1)
    a, b = (values.ravel().astype(float) for values in np.meshgrid(*ranges))
    return a[a + b <= n], b[a + b <= n]


def coverage(n: int, a: Array, b: Array, interval: Array, discordance: float, difference: float) -> float:
    """Probability that the interval of these counts contains the true difference."""
    only_a, only_b, rest = (discordance - difference) / 2, (discordance + difference) / 2, n - a - b
    ways = gammaln(n + 1) - gammaln(a + 1) - gammaln(b + 1) - gammaln(rest + 1)
    weights = np.exp(ways + xlogy(a, only_a) + xlogy(b, only_b) + xlogy(rest, 1 - discordance))
    low, high = interval
    return float(weights[(low <= difference + SPARE) & (high >= difference - SPARE)].sum())


def worst_coverage(interval_of: Callable[[int, Array, Array], Array]) -> str:
    """The worst of many cases with 10 to 150 images, of which at most 60% are discordant."""
    cases = []
    for n in (10, 20, 30, 40, 60, 80, 150):
        a, b = counts(n)
        interval = interval_of(n, a, b)
        for discordance in np.linspace(0.02, 0.6, 30):
            for share in (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1):
                covers = coverage(n, a, b, interval, discordance, share * discordance)
                cases.append(
                    (covers, f"{n} images, {discordance:.0%} discordant, difference {share * discordance:.1%}")
                )
    return f"{min(cases)[0]:.1%} in the worst of {len(cases):,} cases ({min(cases)[1]})"


def seed_claims(n: int, discordance: float, deviation: float) -> float:
    """Probability that two networks of one training are called different, if accuracies over all images have this
    standard deviation over seeds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    differences = np.clip(nodes * deviation * math.sqrt(2), -0.999 * discordance, 0.999 * discordance)
    powers = [mcnemar_power(n, discordance, float(difference)) for difference in differences]
    return float(np.dot(weights / weights.sum(), powers))


def fold_claims(folds: int, correction: float) -> float:
    """Probability that a t test calls equal trainings different, whose differences have a correlation of 1/k."""
    mean_variance = (1 + (folds - 1) / folds) / folds
    assumed = (1 - 1 / folds) * (1 / folds + correction)
    limit = stdtrit(folds - 1, 1 - LEVEL / 2) * math.sqrt(assumed / mean_variance)
    return float(2 * stdtr(folds - 1, -limit))


def main() -> None:
    print("| images | discordant | exact McNemar claims | interval covers 0 | and a difference of half of that |")
    for n in SIZES:
        for discordance in DISCORDANCES:
            claims, difference = mcnemar_power(n, discordance, 0.0), discordance / 2
            a, b = counts(n, (difference / 2, 3 * difference / 2))
            covers = coverage(n, a, b, difference_interval(n, a, b), discordance, difference)
            print(f"| {n:,} | {discordance:.0%} | {claims:.1%} | {1 - claims:.1%} | {covers:.1%} |")
    print(f"Tango at 95% covers {worst_coverage(score_interval)}")
    print(f"the interval of ml-compare covers {worst_coverage(difference_interval)}")
    print("\n| images | sd over seeds 0.25% | 0.5% | 1% |   two seeds of one training, 10% discordant")
    for n in (150, 2000, 10000):
        rates = [f"{seed_claims(n, 0.1, deviation):.0%}" for deviation in (0.0025, 0.005, 0.01)]
        print(f"| {n:,} | {' | '.join(rates)} |")
    for seeds in (3, 5, 6, 10, 16):
        print(f"{seeds} seeds: {math.floor(LEVEL / least_p(seeds)) * least_p(seeds):.1%}")
    for folds in (5, 10):
        corrected, plain = fold_claims(folds, 1 / (folds - 1)), fold_claims(folds, 0.0)
        print(f"{folds} folds: {corrected:.1%}, plain t {plain:.1%}")
    print("\n| images | discordant | difference 1% | 2% | 5% | 10% |")
    for n in (150, 500, 2000, 10000):
        for discordance in (0.1, 0.2):
            powers = [f"{mcnemar_power(n, discordance, difference):.0%}" for difference in (0.01, 0.02, 0.05, 0.1)]
            print(f"| {n:,} | {discordance:.0%} | {' | '.join(powers)} |")


if __name__ == "__main__":
    main()

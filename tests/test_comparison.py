"""Tests and intervals of comparisons do not lie: A against A is rarely called a difference, and intervals cover.

Tolerance of a simulated rate: with 1,000 pairs and a true rate of 5%, more than 7% are seen with a probability of 0.3%
(binomial), and every count here is drawn with a fixed seed, so that a test that passes once always passes.
"""

import numpy as np
import pytest
from scipy.special import gammaln, xlogy
from scipy.stats import binom, ttest_1samp

from imago.comparison.paired import (
    Counts,
    bootstrap_interval,
    difference_interval,
    equivalence,
    images_needed,
    mcnemar,
    mcnemar_power,
    score_interval,
)
from imago.comparison.repeated import pairs_needed, sign_flip, sign_flip_interval, t_test, win_probability
from imago.comparison.results import BOOTSTRAP_DISCORDANT, compare_pair, compare_repeated
from imago.comparison.sentences import describe, describe_several, p_text
from imago.comparison.several import holm
from imago.comparison.summary import summary

PAIRS, MOST = 1000, 0.07
SIZES = (20, 150, 2000)
DISCORDANCES = (0.04, 0.2, 0.5)  # of accuracies near 98%, near 85% and near 50%
rng = np.random.default_rng(0)


def drawn_pairs(n: int, discordance: float, difference: float = 0.0, pairs: int = PAIRS) -> tuple[np.ndarray, ...]:
    """Images that only A, and that only B, has right."""
    fractions = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    drawn = rng.multinomial(n, fractions, pairs)
    return drawn[:, 0], drawn[:, 1]


def all_counts(n: int, only_a: float, only_b: float) -> tuple[np.ndarray, ...]:
    """Every pair of counts with its probability."""
    a, b = (counts.ravel() for counts in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    a, b = a[a + b <= n], b[a + b <= n]
    rest = n - a - b
    ways = gammaln(n + 1) - gammaln(a + 1) - gammaln(b + 1) - gammaln(rest + 1)
    return a, b, np.exp(ways + xlogy(a, only_a) + xlogy(b, only_b) + xlogy(rest, 1 - only_a - only_b))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("discordance", DISCORDANCES)
def test_equal_classifiers_are_rarely_called_different(n, discordance):
    a, b = drawn_pairs(n, discordance)
    claims, (low, high) = mcnemar(a, b) <= 0.05, difference_interval(n, a, b)
    assert np.array_equal(claims, (low > 0) | (high < 0))  # the sentence never contradicts itself
    assert ((low <= 0) & (high >= 0)).mean() >= 1 - MOST


def test_the_exact_test_claims_at_most_five_percent():
    """Of any number of discordant images, and so of any number of images, whatever fraction is discordant."""
    for discordant in range(1, 301):
        only_a = np.arange(discordant + 1)
        claims = binom.pmf(only_a, discordant, 0.5)[mcnemar(only_a, discordant - only_a) <= 0.05]
        assert claims.sum() <= 0.05
    assert mcnemar_power(2000, 0.2, 0.0) == pytest.approx(0.0448, abs=5e-4)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_classifiers_that_differ_by_the_margin_are_rarely_called_equivalent(n, margin):
    for discordance in (margin, 2 * margin, 0.5):
        a, b = drawn_pairs(n, discordance, margin)
        assert (equivalence(n, a, b, margin) <= 0.05).mean() <= MOST
        assert (equivalence(n, b, a, margin) <= 0.05).mean() <= MOST
    a, b = drawn_pairs(2000, 0.02)
    assert (equivalence(2000, a, b, 0.02) <= 0.05).mean() > 0.99  # and equal ones are, with enough images


def test_intervals_cover_the_true_difference():
    """Exact coverage for few images: at least 94% with at most 60% discordant ones, and not much more where there are
    many."""
    for n in (10, 40, 80):
        a, b, _ = all_counts(n, 0.1, 0.1)
        low, high = difference_interval(n, a, b)
        for discordance in (0.03, 0.08, 0.2, 0.45, 0.6):
            for difference in (0.0, 0.4 * discordance, discordance):
                weights = all_counts(n, (discordance - difference) / 2, (discordance + difference) / 2)[2]
                covers = (low <= difference + 1e-12) & (high >= difference - 1e-12)
                assert weights[covers].sum() >= 0.94, (n, discordance, difference)
    a, b = drawn_pairs(2000, 0.3, 0.1, 4000)
    low, high = difference_interval(2000, a, b)
    assert 0.94 <= ((low <= 0.1) & (high >= 0.1)).mean() <= 0.97


def test_the_bootstrap_is_seeded_and_agrees_where_many_images_are_discordant():
    counts = Counts(1500, 100, 160, 240)
    assert bootstrap_interval(counts, 3) == bootstrap_interval(counts, 3) != bootstrap_interval(counts, 4)
    np.testing.assert_allclose(bootstrap_interval(counts), score_interval(2000, 100, 160), atol=0.001)
    assert compare_pair(Counts(140, 3, BOOTSTRAP_DISCORDANT - 4, 0)).bootstrap is None


def test_published_values():
    assert mcnemar(1, 7) == pytest.approx(0.0703125)  # twice the tail of Binomial(8, 1/2)
    np.testing.assert_allclose(score_interval(54, 0, 1), [-0.0508, 0.0970], atol=5e-3)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    differences = [0.02, 0.01, 0.03, 0.015, -0.01]
    p, low, high = t_test(differences)
    expected = ttest_1samp(differences, 0)
    assert p == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("pairs", [3, 5, 6, 10])
def test_equal_trainings_are_rarely_called_different(pairs):
    """Differences of equal trainings are symmetric about 0, whatever their distribution."""
    a, b = rng.standard_exponential((2, PAIRS, pairs))
    claims = sign_flip(a - b) <= 0.05
    assert claims.mean() <= MOST
    if pairs < 6:
        assert not claims.any()
        return
    low, high = sign_flip_interval(a - b)
    assert 1 - MOST <= ((low <= 0) & (high >= 0)).mean() <= 0.985
    assert np.array_equal(claims, (low > 0) | (high < 0))


@pytest.mark.parametrize("pairs", [6, 16, 17, 25])
def test_the_interval_of_seeds_never_contradicts_their_test(pairs):
    skewed = [[0.001] * (pairs - 1) + [0.5], [0.01] * (pairs - 2) + [0.3, 0.4]]  # Student's interval contains 0
    counts = rng.integers(-2, 4, (5, pairs)) / 40  # few values, with ties
    for row in [*skewed, *counts]:
        result = compare_repeated(["seed"] * pairs, [0.4] * pairs, [0.4 + d for d in row], step=1 / 1000)
        assert result.is_claimed == (result.low > 0 or result.high < 0)
        assert result.low <= result.mean <= result.high
        assert not result.is_normal


def test_equal_differences_have_an_interval_of_a_step():
    names, a = ["seed"] * 6, [0.5, 0.52, 0.54, 0.56, 0.58, 0.6]
    result = compare_repeated(names, a, [rate + 0.02 for rate in a], step=0.01)
    assert (result.p, result.low, result.high) == pytest.approx((0.03125, 0.015, 0.025))
    equal = compare_repeated(names, a, a, margin=0.02, step=0.01)
    assert (equal.low, equal.high, equal.is_equivalent) == (-0.005, 0.005, True)


@pytest.mark.parametrize("effect", [1.4, 2.0])
def test_as_many_seeds_as_are_named_would_do(effect):
    needed = pairs_needed(effect, 1.0)
    drawn = rng.standard_normal((2000, needed)) + effect
    assert (sign_flip(drawn) <= 0.05).mean() >= 0.77
    assert needed == 6 or (sign_flip(drawn[:, :-1]) <= 0.05).mean() < 0.83


@pytest.mark.parametrize("folds", [5, 10])
def test_equal_trainings_are_rarely_called_different_by_folds(folds):
    """Folds train on the same images: their differences have a correlation of 1/k, which the plain t test ignores."""
    shared, own = rng.standard_normal((PAIRS, 1)), rng.standard_normal((PAIRS, folds))
    differences = np.sqrt(1 / folds) * shared + np.sqrt(1 - 1 / folds) * own
    p, low, high = t_test(differences, overlap=1 / (folds - 1))
    assert (p <= 0.05).mean() <= MOST
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97
    assert (t_test(differences)[0] <= 0.05).mean() > 0.1


@pytest.mark.parametrize(("pairs", "overlap"), [(6, 0.0), (5, 0.25)])
def test_trainings_that_differ_by_the_margin_are_rarely_called_equivalent(pairs, overlap):
    shared, own = rng.standard_normal((PAIRS, 1)), rng.standard_normal((PAIRS, pairs))
    correlation = overlap / (1 + overlap)  # of folds, as Nadeau and Bengio take it
    differences = 0.02 + 0.01 * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    names = [str(number) for number in range(pairs)]
    results = [compare_repeated(names, [0.5] * pairs, list(0.5 + row), overlap, margin=0.02) for row in differences]
    assert np.mean([result.is_equivalent for result in results]) <= MOST


@pytest.mark.parametrize("folds", [2, 3])
@pytest.mark.parametrize("discordant", [1, 3, 8])
def test_equal_trainings_with_few_discordant_images_are_rarely_called_different(folds, discordant):
    """Counts are often equal in all folds, which says nothing of their variance."""
    n = 60
    wrong = rng.binomial(n // folds, [discordant / n] * 2, (PAIRS, folds, 2))
    rates = 1 - wrong / (n // folds)
    names = [str(fold) for fold in range(folds)]
    results = [
        compare_repeated(names, list(a), list(b), 1 / (folds - 1), step=folds / n)
        for a, b in zip(rates[..., 0], rates[..., 1], strict=True)
    ]
    assert np.mean([result.is_claimed for result in results]) <= MOST
    assert all(result.low < result.high for result in results)


def test_no_difference_of_two_seeds_is_not_taken_for_equivalence():
    result = compare_repeated(["1", "2"], [0.9, 0.9], [0.9, 0.9], margin=0.02, step=1 / 40)
    assert not result.is_equivalent
    assert describe(result).endswith("; that they are equivalent within 2% takes 6 seeds to show")


def test_intervals_of_a_mean_are_those_of_independent_values():
    assert summary([0.8, 0.9]).keys() == {"mean", "n", "sd", "low", "high"}
    assert summary([0.8, 0.9], are_folds=True).keys() == {"mean", "n", "sd"}
    assert summary([0.8, 0.8]) == {"mean": 0.8, "n": 2, "sd": 0.0}


def test_the_probability_of_a_win_covers():
    for chance in (0.2, 0.5, 0.8):
        wins = rng.binomial(10, chance, PAIRS)
        ends = np.array([win_probability(int(won), 0, 10)[1:] for won in wins])
        assert ((ends[:, 0] <= chance) & (ends[:, 1] >= chance)).mean() >= 0.94
    assert win_probability(1, 2, 3) == pytest.approx((2 / 3, 0.0084, 1.0), abs=1e-4)


def test_several_equal_trainings_are_rarely_called_different():
    shown = 0
    for a, b, c in rng.random((PAIRS, 3, 150)) < 0.8:
        p_values = [float(mcnemar((x & ~y).sum(), (y & ~x).sum())) for x, y in ((a, b), (a, c), (b, c))]
        shown += min(holm(p_values)) <= 0.05
    assert shown / PAIRS <= MOST


@pytest.mark.parametrize(("n", "discordance", "difference"), [(150, 0.2, 0.06), (500, 0.1, 0.03), (2000, 0.1, 0.03)])
def test_the_power_is_the_one_that_is_seen(n, discordance, difference):
    a, b = drawn_pairs(n, discordance, difference, 4000)
    assert mcnemar_power(n, discordance, difference) == pytest.approx((mcnemar(a, b) <= 0.05).mean(), abs=0.025)


def test_as_many_images_as_are_named_would_do():
    counts = Counts(120, 8, 17, 8)
    needed = images_needed(counts)
    discordance, difference = counts.discordant / counts.n, counts.gain / counts.n
    assert mcnemar_power(needed, discordance, difference) >= 0.8 > mcnemar_power(needed - 1, discordance, difference)
    a, b = drawn_pairs(needed, discordance, difference, 4000)
    assert (mcnemar(a, b) <= 0.05).mean() == pytest.approx(0.8, abs=0.025)
    assert images_needed(Counts(140, 5, 5, 3)) is None


@pytest.mark.parametrize(
    ("counts", "margin", "said"),
    [
        (
            Counts(120, 8, 17, 8),
            None,
            "B is right on 9 more of 153 images (95%: -1 to +20); that cannot be told from chance; if the difference "
            "is as large as seen, about 400 images would do (80% power)",
        ),
        (
            Counts(120, 17, 8, 8),
            None,
            "A is right on 9 more of 153 images (95%: -1 to +20); that cannot be told from chance; if the difference "
            "is as large as seen, about 400 images would do (80% power)",
        ),
        (
            Counts(100, 3, 33, 17),
            0.02,
            "B is right on 30 more of 153 images (95%: +19 to +42); that is more than chance (p < 0.0001); that they "
            "are equivalent within 2% is not shown (p = 1)",
        ),
        (
            Counts(140, 0, 0, 13, same=153),
            None,
            "A and B give the same answer on all of 153 images, and are right on 140 (95%: -4 to +4 for B)",
        ),
        (
            Counts(140, 0, 0, 13, same=150),
            None,
            "A and B are right on the same 140 of 153 images (95%: -4 to +4 for B)",
        ),
        (
            Counts(1900, 5, 5, 90, same=1950),
            0.02,
            "A and B are both right on 1905 of 2000 images (95%: -7 to +7 for B), not on the same ones; there is no "
            "difference that more images could show; they are equivalent within 2% (p < 0.0001)",
        ),
        (
            Counts(0, 0, 1, 0),
            None,
            "B is right on 1 more of 1 image (95%: -1 to +1); that cannot be told from chance",
        ),
    ],
)
def test_the_sentence_of_two_runs(counts, margin, said):
    assert describe(compare_pair(counts, margin)) == said


def test_the_sentence_of_seeds_and_folds():
    def said(differences, overlap=0.0, margin=None):
        pairs = [f"seed {number}" for number in range(len(differences))]
        b = [0.5 + difference for difference in differences]
        return describe(compare_repeated(pairs, [0.5] * len(b), b, overlap, margin))

    assert said([0.01, 0.02, 0.03]) == (
        "B is right on 2.0% more of these images, on average over 3 seeds (95%: -0.48% to +4.5%, if the differences "
        "are normally distributed); 3 seeds cannot decide at 5%: the least p is 0.25; if the difference is as large as "
        "seen, 6 seeds would do (80% power)"
    )
    noisy = compare_repeated(["1", "2"], [0.8, 0.8], [0.9, 0.7])
    assert sum(b - a for a, b in zip(noisy.a, noisy.b, strict=True)) != 0
    assert describe(noisy) == (
        "A and B are right equally often on these images, on average over 2 seeds (95% for B: -127.1% to +127.1%, if "
        "the differences are normally distributed); 2 seeds cannot decide at 5%: the least p is 0.5; 6 could"
    )
    assert said([0.1, -0.099999]).endswith("if the difference is as large as seen, even 10,000 seeds would not do")
    assert said([-0.01, -0.02, -0.03, -0.02, -0.01, -0.015]) == (
        "A is right on 1.8% more of these images, on average over 6 seeds (95%: +1.0% to +3.0%); that is more than "
        "chance (p = 0.031)"
    )
    assert "over 5 folds (95%: -0.72% to +3.5%); that cannot be told" in said([0.01, 0.02, 0.03, 0, 0.01], 0.25)
    assert said([0.001, -0.001] * 4, margin=0.02).endswith("; they are equivalent within 2% (p = 0.0039)")
    assert describe_several("ABC", [0.7, 0.9, 0.89], {(0, 1): 0.01, (0, 2): 0.02, (1, 2): 0.9}) == (
        "B has the best accuracy, 90.0%; after Holm's correction for 3 comparisons, it is better than A, and cannot be "
        "told from C"
    )
    assert describe_several("ABC", [0.9, 0.9, 0.8], {(0, 1): 1, (0, 2): 0.06, (1, 2): 0.06}) == (
        "A and B share the best accuracy, 90.0%; after Holm's correction for 3 comparisons, A cannot be told from B "
        "and C"
    )
    assert [p_text(p) for p in (0.04986, 0.0502, 0.2)] == ["p = 0.0499", "p = 0.0502", "p = 0.2"]

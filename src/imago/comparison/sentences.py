"""The sentences that say what a comparison shows, and what it cannot show."""

import math
from collections.abc import Sequence

from imago.comparison.paired import LEAST_DISCORDANT, LEVEL, POWER
from imago.comparison.repeated import LEAST_PAIRS, MOST_PAIRS
from imago.comparison.results import PairResult, RepeatedResult
from imago.terminal import counted, shortened

MOST_NAMES = 5
CHANCE = "that cannot be told from chance"
AS_SEEN, WITH_POWER = "if the difference is as large as seen", f"({POWER:.0%} power)"


def describe(result: PairResult | RepeatedResult, a: str = "A", b: str = "B") -> str:
    """Sentence about two trainings."""
    return describe_pair(result, a, b) if isinstance(result, PairResult) else describe_repeated(result, a, b)


def describe_pair(result: PairResult, a: str = "A", b: str = "B") -> str:
    """Sentence about two runs: `B is right on 9 more of 153 images (95%: -1 to +20); that cannot be told from chance;
    if the difference is as large as seen, about 400 images would do (80% power)`."""
    if result.counts.gain < 0:
        return describe_pair(result.swapped(), b, a)
    counts, n = result.counts, counted(result.counts.n, "image")
    interval = f"95%: {_images(result.low * counts.n)} to {_images(result.high * counts.n)}"
    if counts.same == counts.n:
        said = [f"{a} and {b} give the same answer on all of {n}, and are right on {counts.both} ({interval} for {b})"]
    elif not counts.discordant:
        said = [f"{a} and {b} are right on the same {counts.both} of {n} ({interval} for {b})"]
    elif not counts.gain:
        said = [f"{a} and {b} are both right on {counts.right_a} of {n} ({interval} for {b}), not on the same ones"]
        said.append("there is no difference that more images could show")
    else:
        said = [f"{b} is right on {counts.gain} more of {n} ({interval})"]
        said.append(f"that is more than chance ({p_text(result.p)})" if result.is_claimed else CHANCE)
        if not result.is_claimed and result.needed is not None:
            said.append(f"{AS_SEEN}, about {about(result.needed)} images would do {WITH_POWER}")
        elif not result.is_claimed and counts.discordant >= LEAST_DISCORDANT:
            said.append(f"{AS_SEEN}, even ten million images would not do")
    return "; ".join([*said, *_equivalence(result)])


def describe_repeated(result: RepeatedResult, a: str = "A", b: str = "B") -> str:
    """Sentence about two trainings with several seeds or folds."""
    if result.mean < 0:
        return describe_repeated(result.swapped(), b, a)
    images, on_them = ("the images", "") if result.overlap else ("these images", " on these images")
    assumed = ", if the differences are normally distributed" if result.is_normal and not result.overlap else ""
    ends = f"{_points(result.low)} to {_points(result.high)}{assumed}"
    if not result.mean:
        said = [f"{a} and {b} are right equally often{on_them}, on average over {result.over} (95% for {b}: {ends})"]
    else:
        said = [
            f"{b} is right on {_percent(result.mean)} more of {images}, on average over {result.over} (95%: {ends})"
        ]
    if result.is_claimed:
        said.append(f"that is more than chance ({p_text(result.p)})")
    elif result.least_p > LEVEL:
        said.append(f"{result.over} cannot decide at 5%: the least p is {result.least_p:.2g}")
        said.append(_seeds_that_would_do(result) or f"{LEAST_PAIRS} could")
    else:
        said += [CHANCE, *filter(None, [_seeds_that_would_do(result)])]
    return "; ".join([*said, *_equivalence(result)])


def _seeds_that_would_do(result: RepeatedResult) -> str:
    """Say how many seeds would do; empty for folds, without a difference, and where there are as many."""
    if not result.mean or result.overlap:
        return ""
    if result.needed is None:
        return f"{AS_SEEN}, even {MOST_PAIRS:,} seeds would not do"
    if result.needed <= len(result.pairs):
        return ""
    number = "" if result.needed == LEAST_PAIRS else "about "
    return f"{AS_SEEN}, {number}{about(result.needed)} seeds would do {WITH_POWER}"


def describe_several(names: Sequence[str], right: Sequence[float], p_values: dict[tuple[int, int], float]) -> str:
    """Sentence about three or more trainings: the best one, and those that it is better than.

    `right` are their accuracies on the same images and over the same seeds, and `p_values` of each two of them, by
    their places, are adjusted.
    """
    best = max(range(len(names)), key=lambda place: right[place])
    equal = [name for name, rate in zip(names, right, strict=True) if math.isclose(rate, right[best], rel_tol=1e-9)]
    beaten = [
        names[place]
        for place in range(len(names))
        if names[place] not in equal and p_values[min(best, place), max(best, place)] <= LEVEL
    ]
    rest = [name for place, name in enumerate(names) if place != best and name not in beaten]
    head, subject = f"{names[best]} has the best accuracy", "it"
    if len(equal) > 1:
        head, subject = f"{_listed(equal)} share the best accuracy", names[best]
    said = [f"is better than {_listed(beaten)}"] if beaten else []
    said += [f"cannot be told from {_listed(rest)}"] if rest else []
    corrected = f"after Holm's correction for {len(p_values)} comparisons"
    return f"{head}, {right[best]:.1%}; {corrected}, {subject} {', and '.join(said)}"


def describe_undecided(results: Sequence[PairResult | RepeatedResult]) -> str:
    """Sentence that says so if no p-value of several trainings can be 5% after Holm's correction; empty otherwise."""
    repeated = [result for result in results if isinstance(result, RepeatedResult)]
    least = min((result.least_p for result in repeated), default=0.0) * len(results)
    if least <= LEVEL:
        return ""
    pairs = max(len(result.pairs) for result in repeated)
    needed = 1 + math.ceil(math.log2(len(results) / LEVEL))
    return (
        f"{pairs} seeds cannot decide between {len(results)} pairs of trainings at 5%: the least p after Holm's "
        f"correction is {min(1.0, least):.2g}. {needed} seeds could"
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        return shortened(names, MOST_NAMES)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _equivalence(result: PairResult | RepeatedResult) -> list[str]:
    if result.margin is None:
        return []
    margin = f"within {100 * result.margin:.3g}%"
    if result.equivalence is None:
        return [f"that they are equivalent {margin} takes {LEAST_PAIRS} seeds to show"]
    if result.is_equivalent and result.is_claimed:
        return [f"the difference is below the margin of {100 * result.margin:.3g}% ({p_text(result.equivalence)})"]
    if result.is_equivalent:
        return [f"they are equivalent {margin} ({p_text(result.equivalence)})"]
    return [f"that they are equivalent {margin} is not shown ({p_text(result.equivalence)})"]


def p_text(p: float) -> str:
    """Show a p-value: `p = 0.036`, `p < 0.0001`."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p_number(p)}"


def p_number(p: float) -> str:
    """Show a p-value with two digits, near 5% with three: `0.036`, `0.0501`."""
    return f"{p:.3g}" if 0.9 * LEVEL <= p <= 1.1 * LEVEL else f"{p:.2g}"


def about(number: int) -> str:
    """Round a number up to two digits: 617 -> `620`, 12345 -> `13,000`."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / unit) * unit:,}"


def _images(number: float) -> str:
    """End of an interval in images, with its sign; a digit where it is not 0 and rounds to it."""
    if abs(number) < 1e-9:
        return "0"
    return f"{number:+.0f}" if abs(number) >= 0.5 else f"{number:+.1g}"


def _points(number: float) -> str:
    """End of an interval in percent, with its sign."""
    return "0%" if abs(number) < 1e-12 else f"{'+' if number > 0 else '-'}{_percent(abs(number))}"


def _percent(number: float) -> str:
    """Percent with two digits, or one decimal: `0.48%`, `2.5%`, `10.0%`."""
    return f"{100 * number:.1f}%" if number >= 0.00995 else f"{100 * number:.2g}%"

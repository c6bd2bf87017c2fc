"""Several comparisons at once: p-values that still hold together."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that, over all the comparisons, a false claim is made with at most 5% probability.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70: the smallest times their number, the next times one fewer,
    and so on, none below an earlier one, at most 1. Valid however the comparisons depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, greatest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = greatest
    return adjusted

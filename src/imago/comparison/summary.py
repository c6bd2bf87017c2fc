"""Mean, deviation and interval of a few numbers."""

import statistics
from collections.abc import Sequence


def summary(values: Sequence[float], are_folds: bool = False) -> dict[str, float]:
    """Mean and number of `values`; of two or more also the sample standard deviation and the 95% interval of the mean
    by Student's t distribution; empty without values.

    There is no interval of folds, which train on the same images, so that it would be too short, nor of equal values,
    where its length would be 0.
    """
    if not values:
        return {}
    known = {"mean": statistics.fmean(values), "n": len(values)}
    if len(values) < 2:
        return known
    known["sd"] = statistics.stdev(values)
    if are_folds or len({*values}) == 1:
        return known
    from imago.comparison.repeated import t_test

    _, low, high = t_test(values)
    return {**known, "low": float(low), "high": float(high)}

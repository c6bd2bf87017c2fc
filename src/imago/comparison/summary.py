"""Mean, deviation and interval of a few numbers."""

import statistics
from collections.abc import Sequence


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and number of `values`; of two or more also the sample standard deviation and the 95% interval of the mean
    by Student's t distribution; empty without values."""
    if not values:
        return {}
    known = {"mean": statistics.fmean(values), "n": len(values)}
    if len(values) < 2:
        return known
    from imago.comparison.repeated import t_test

    _, low, high = t_test(values)
    return {**known, "sd": statistics.stdev(values), "low": float(low), "high": float(high)}

"""Pruners end bad trials early: those of Optuna, and one that looks at the first validation alone."""

import math
from collections.abc import Sequence
from typing import Any

FIRST_SHARE = 0.2
"""Fraction of the trials that continue after their first validation with `first_epoch`."""
FIRST_KEPT = 2
"""Trials that `first_epoch` lets continue whatever their first value, so that there is something to compare with."""


def make_pruner(optuna: Any, name: str, validations: int) -> Any:
    """Optuna's pruner of that name, for trials of at most so many `validations` (0: not known); None for none of its.

    `hyperband` counts validations from 1 in its paper, and Optuna's from 0, as trials report them here.
    """
    pruners = optuna.pruners
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=validations or "auto", reduction_factor=3)
    return pruners.NopPruner()


def stops_after_first(value: float, earlier: Sequence[float], sign: int) -> bool:
    """Whether a trial whose first validation has `value` is ended, given those of the trials before it; `sign` is 1 if
    greater values are better, else -1.

    It continues if it is among the best fifth of all. "Is one epoch all you need for multi-fidelity hyperparameter
    optimization?" (Egele et al. 2023) found that the order after one epoch is nearly that after all of them.
    """
    if not math.isfinite(value):
        return True
    if len(earlier) < FIRST_KEPT:
        return False
    better = sum(sign * first > sign * value for first in earlier)
    return better >= max(1, math.ceil(FIRST_SHARE * (len(earlier) + 1)))

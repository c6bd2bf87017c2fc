"""Whether one training is better than another: tests and intervals, and the sentences that say so."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "paired": ["Counts", "difference_interval", "equivalence", "images_needed", "mcnemar", "mcnemar_power"],
        "repeated": ["sign_flip", "sign_flip_interval", "t_test", "win_probability"],
        "several": ["holm"],
    },
)

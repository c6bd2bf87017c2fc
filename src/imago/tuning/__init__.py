"""Settings that are found by a short trial: `ml-find-lr`."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"range_test": ["RangeTest"], "find_lr": ["find_learning_rate"], "experiment_file": ["write_rate"]}
)

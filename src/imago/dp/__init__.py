"""Differential privacy: `strategy=dp`."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "strategy": ["DifferentialPrivacy"],
        "accounting": ["Ledger", "epsilon", "noise_for"],
        "report": ["privacy_report"],
        "trial": ["try_network"],
    },
)

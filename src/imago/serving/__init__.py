"""Predictions over HTTP: batches, limits, metrics and the page of `ml-serve`."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "limits": ["Limits"],
        "predictor": ["Predictor"],
        "batching": ["Batcher"],
        "server": ["Service", "serve"],
    },
)

"""From the composed config to a trained network."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "build": ["build", "build_to_score"],
        "trainer": ["build_trainer"],
        "fit": ["train"],
        "loggers": ["CSVLogger", "TensorBoardLogger"],
        "replay": ["compare"],
    },
)

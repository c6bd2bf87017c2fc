"""Imago trains, evaluates and ships image classifiers."""

from imago.definitions import __version__, lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "api": ["RunResult", "evaluate", "load_config"],
        "checkpoint.read": ["read_checkpoint"],
        "cli.command": ["TaskError"],
        "errors": ["UserError"],
        "evaluation.loading": ["load_classifier"],
        "evaluation.functions": ["classification_report", "confusion_matrix"],
        "train": [],  # a module that can be called
    },
)
__all__ += ["__version__", "train"]

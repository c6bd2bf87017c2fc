"""Imago trains, evaluates and ships image classifiers."""

import importlib
from typing import Any

__version__ = "0.1.0"

FUNCTIONS = {
    "load_classifier": "imago.classifier",
    "read_checkpoint": "imago.checkpoints",
    "evaluate": "imago.functions",
    "confusion_matrix": "imago.functions",
    "classification_report": "imago.functions",
}
"""What is meant to be called from Python, and where it stands."""


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `import imago` alone stays light."""
    if name in FUNCTIONS:
        return getattr(importlib.import_module(FUNCTIONS[name]), name)
    raise AttributeError(f"module 'imago' has no attribute {name!r}")

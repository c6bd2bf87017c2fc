"""Imago trains, evaluates and ships image classifiers."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`imago.load_classifier`, imported when it is asked for: `import imago` alone stays light."""
    if name == "load_classifier":
        from imago.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module 'imago' has no attribute {name!r}")

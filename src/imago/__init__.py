"""Imago trains, evaluates and ships image classifiers."""

__version__ = "0.1.0"

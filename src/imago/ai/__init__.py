"""Transforms that a language model writes from a signature and a docstring, checked, stored, and run once trusted."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, {"transform": ["AITransformWrapper"], "trusted": ["trust"]})

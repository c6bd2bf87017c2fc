"""State that networks and losses keep besides their weights: banks, running means, lists in a file, generators."""

import random
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "torchvision", "lightning", "imago", "torchmetrics", "timm", "builtins")
"""Libraries whose classes keep nothing of images in themselves, or in their files."""
OWN_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
GENERATOR = "a generator"
"""Placeholder for a generator in a copy."""


def kept_by(parts: Iterable[Any]) -> dict[str, Any]:
    """Copy what modules and losses keep besides parameters, buffers and sub-modules, name -> copy: in themselves, in
    their classes, and in the files that define these, except those of a library."""
    kept: dict[str, Any] = {}
    for number, part in enumerate(parts):
        kind = type(part)
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            if name not in ("_parameters", "_buffers", "_modules"):
                kept[f"{kind.__name__} {number}.{name}"] = copied(value)
        if kind.__module__.partition(".")[0] not in LIBRARIES:
            kept |= _of_file(kind)
    return kept


def _of_file(kind: type) -> dict[str, Any]:
    """Copy what the file of a class keeps: in itself, and in the classes that it defines."""
    file = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    classes = {value for value in file.values() if isinstance(value, type) and value.__module__ == kind.__module__}
    return {
        f"{where}.{name}": copied(value, 1)
        for where, names in ((kind.__module__, file), *((owner.__name__, vars(owner)) for owner in {*classes, kind}))
        for name, value in names.items()
        if not name.startswith("__") and not isinstance(value, type | type(sys) | classmethod | staticmethod)
    }


def copied(value: Any, depth: int = 0) -> Any:
    """Copy tensors, arrays and numbers, alone, in containers and in objects; None for the rest, GENERATOR for
    generators. Whole numbers in objects are left out: many count calls."""
    if isinstance(value, OWN_GENERATORS):
        return GENERATOR
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else None
    if isinstance(value, float) or (isinstance(value, bool | int) and depth == 0):
        return value
    if depth > 4 or isinstance(value, str | bytes | nn.Module | type) or callable(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): copied(entry, depth + 1) for key, entry in value.items()}
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return [copied(entry, depth + 1) for entry in value]
    if type(value).__module__.partition(".")[0] not in LIBRARIES and hasattr(value, "__dict__"):
        return {name: copied(entry, depth + 1) for name, entry in vars(value).items()}
    return None


def leaves(value: Any) -> list[Any]:
    """Return all values in a copy except tensors, with containers flattened."""
    if isinstance(value, dict | list):
        return [leaf for entry in (value.values() if isinstance(value, dict) else value) for leaf in leaves(entry)]
    return [value] if not isinstance(value, Tensor) else []


def same(one: Any, other: Any) -> bool:
    """Whether two copies are bit-identical."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and (one == other or (one != one and other != other))

"""Annotations that say more than `int`: configs are checked against them before anything is made (schema.py)."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class AtLeast:
    """The least value that is valid."""

    least: float


@dataclass(frozen=True)
class AtMost:
    """The greatest value that is valid."""

    most: float


Positive = Annotated[int, AtLeast(1)]
ZeroOrMore = Annotated[int, AtLeast(0)]
ValRatio = Annotated[float, AtLeast(0.0), AtMost(0.5)]
ZeroOrMoreFloat = Annotated[float, AtLeast(0.0)]

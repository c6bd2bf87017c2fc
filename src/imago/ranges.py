"""Annotations that say more than `int`: configs are checked against them before anything is made (schema.py)."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class AtLeast:
    """The least value that is valid."""

    least: float


@dataclass(frozen=True)
class Below:
    """Valid values are below it."""

    bound: float


Positive = Annotated[int, AtLeast(1)]
ZeroOrMore = Annotated[int, AtLeast(0)]
Share = Annotated[float, AtLeast(0.0), Below(1.0)]
ZeroOrMoreFloat = Annotated[float, AtLeast(0.0)]

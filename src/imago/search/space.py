"""The settings that a search varies, read from `hydra.sweeper.params` and from what was typed."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from imago.errors import UserError

PLAIN = (str, int, float, bool, type(None))
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Choice:
    """Some values: value -> how it is typed."""

    texts: Mapping[Any, str]

    def typed(self, value: Any) -> str:
        """The value as it is typed."""
        return self.texts[value]

    def __str__(self) -> str:
        return f"choice({', '.join(self.texts.values())})"


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones if `is_integer`, evenly spaced by a `step`, and drawn by
    their logarithm if `is_log`."""

    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False
    step: float | None = None

    def typed(self, value: Any) -> str:
        """The value as it is typed, with all its digits."""
        return repr(value)

    def __str__(self) -> str:
        step = f", step={self.step:g}" if self.step is not None else ""
        text = f"interval({self.low:g}, {self.high:g}{step})"
        return f"tag(log, {text})" if self.is_log else text


@dataclass(frozen=True)
class Space:
    """The settings in which trials differ, and the overrides that they share.

    Args:
        params: Setting -> its values.
        fixed: Overrides that all trials share, as typed.
    """

    params: Mapping[str, Choice | Interval] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of a trial: those that all share, and its own."""
        return [*self.fixed, *(f"{key}={kind.typed(values[key])}" for key, kind in self.params.items())]

    def describe(self) -> dict[str, str]:
        """Setting -> its values, in words that do not depend on how they were typed."""
        return {key: str(kind) for key, kind in self.params.items()}


def read_space(params: Mapping[str, Any], typed: Sequence[str]) -> Space:
    """The space of a config's `params` and of `typed` overrides, which replace what the config has.

    Raises:
        UserError: Some values cannot be searched, or nothing is.
    """
    parser = OverridesParser.create()
    kinds: dict[str, Choice | Interval] = {}
    fixed: dict[str, list[str]] = {}
    words = [f"{key}={value}" for key, value in params.items()]
    for word, override in zip([*words, *typed], parser.parse_overrides([*words, *typed]), strict=True):
        key = override.get_key_element()
        if override.is_sweep_override():
            kinds[key] = _values_of(override)
            fixed.pop(key, None)
        else:
            kinds.pop(key, None)
            fixed[key] = [*([] if key in params else fixed.get(key, [])), word]
    if not kinds:
        raise UserError(
            "The search has nothing to vary. Type a setting with its values, for example "
            "'model.optimizer.lr=tag(log, interval(0.0001, 0.1))' or 'data.batch_size=choice(32, 64)'."
        )
    return Space(kinds, tuple(word for words in fixed.values() for word in words))


def _values_of(override: Override) -> Choice | Interval:
    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep) and not value.shuffle:
            return _range(value)
        texts = {_plain(text): text for text in override.sweep_string_iterator()}
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error
    if not texts:
        raise UserError(f"{override.input_line} has no values.")
    return Choice(texts)


def _interval(value: IntervalSweep) -> Interval:
    assert value.start is not None
    assert value.end is not None
    is_log = "log" in value.tags
    is_integer = isinstance(value.start, int) and isinstance(value.end, int)
    if not value.start < value.end:
        raise ValueError(f"an interval begins below its end, got {value.start:g} to {value.end:g}.")
    if is_log and value.start <= 0:
        raise ValueError(f"tag(log, …) needs numbers above 0, got {value.start:g}.")
    return Interval(value.start, value.end, is_log, is_integer)


def _range(value: RangeSweep) -> Interval:
    """The numbers that Hydra's `range` stands for, whose end is not one of them."""
    start, stop, step = (0 if number is None else number for number in (value.start, value.stop, value.step))
    count = math.ceil((stop - start) / step - 1e-9) if step else 0
    if count < 1 or step < 0:
        raise ValueError(f"the range from {start} to {stop} in steps of {step} has no numbers, or falls.")
    if "log" in value.tags and step != 1:
        raise ValueError(f"tag(log, range(…)) takes steps of 1, got {step}. Type tag(log, interval({start}, {stop})).")
    is_integer = all(isinstance(number, int) for number in (start, stop, step))
    return Interval(start, start + (count - 1) * step, "log" in value.tags, is_integer, step)


def _plain(text: str) -> Any:
    """The value that a study keeps for a typed one: itself if it is plain, else its text."""
    if EXPONENT.fullmatch(text):  # YAML takes 1e-05 for a word
        return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, PLAIN) and not (isinstance(value, float) and math.isnan(value)) else text

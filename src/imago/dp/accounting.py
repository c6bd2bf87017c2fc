"""Privacy accounting: Opacus' accountants over a ledger of the noisy steps that were taken."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from imago.definitions import rounded_up
from imago.errors import DiskError, UserError

Steps = tuple[float, float, int]  # noise multiplier, sample rate, number of steps
ACCOUNTANTS = ("prv", "rdp")
MOST_POINTS = 2**22
"""Most points that PRV may divide the losses into: these take 3 s and some 500 MB. Noise of 0.4 for 3,000 steps would
need ten times as many."""
EXTREME = (ArithmeticError, MemoryError, RuntimeError, ValueError)
"""Raised by an accountant for which the numbers are too extreme."""
MOST_NOISE = 1e6
RESOLUTION, FINE, FINE_BELOW = 0.01, 0.001, 0.1
"""Amount that PRV adds to the epsilon that it estimates. Where that is little, it adds a tenth, with more points."""
LEAST_DELTA = 1e-10
"""Least delta for which PRV is an upper bound; below it, its rounding shows (7.24 instead of 7.34 at 5e-13)."""


class Ledger:
    """File with a line per noisy step, written before the noise is drawn: a step repeated after a kill has two lines.

    `file` may hold the lines of a run that is resumed. Lines say nothing about the data.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.history: list[Steps] = []
        if file.is_file():
            for line in file.read_bytes().splitlines():
                self._count(*_read(file, line))

    @property
    def steps(self) -> int:
        """Number of all steps that were taken."""
        return sum(count for _, _, count in self.history)

    def begins_with(self, history: Sequence[Steps]) -> bool:
        """Whether the ledger begins with the steps in `history`."""
        own, expected = _each(self.history), _each(history)
        return own[: len(expected)] == expected

    def is_begun_by(self, history: Sequence[Steps]) -> bool:
        """Whether `history` begins with all steps of the ledger."""
        own, longer = _each(self.history), _each(history)
        return longer[: len(own)] == own

    def add(self, noise_multiplier: float, sample_rate: float) -> None:
        """Record a step that is about to be taken.

        Raises:
            OSError: The disk refuses the line; the step must not be taken.
        """
        self.add_all([(noise_multiplier, sample_rate, 1)])

    def add_all(self, history: Iterable[Steps]) -> None:
        """Record the steps of the run from which this one resumes."""
        history = list(history)
        if not history:
            return
        lines = [
            json.dumps({"noise_multiplier": noise, "sample_rate": rate}) + "\n"
            for noise, rate, count in history
            for _ in range(count)
        ]
        content = "".join(lines).encode()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, content) != len(content):
                os.ftruncate(descriptor, size)
                raise DiskError(f"{self.file} could not be written: the disk is full.")
        finally:
            os.close(descriptor)
        for noise, rate, count in history:
            self._count(noise, rate, count)

    def _count(self, noise: float, rate: float, count: int = 1) -> None:
        if self.history and self.history[-1][:2] == (noise, rate):
            count += self.history.pop()[2]
        self.history.append((noise, rate, count))


def _each(history: Iterable[Steps]) -> list[tuple[float, float]]:
    return [(noise, rate) for noise, rate, count in history for _ in range(count)]


def _read(file: Path, line: bytes) -> tuple[float, float]:
    try:
        entry = json.loads(line)
        return float(entry["noise_multiplier"]), float(entry["sample_rate"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({line[:60]!r}): the privacy that was spent is unknown.") from error


def epsilon(history: Sequence[Steps], delta: float, accountant: str) -> float:
    """Return an upper bound of the epsilon that the steps spent, 0 or more; infinite if no accountant has one."""
    return _bound(tuple(history), delta, accountant)[0]


def accountant_of(history: Sequence[Steps], delta: float, accountant: str) -> str:
    """Return the accountant that `epsilon` uses: `rdp` if `prv` would need too much memory, or has no bound."""
    return _bound(tuple(history), delta, accountant)[1]


@lru_cache(maxsize=256)
def _bound(history: tuple[Steps, ...], delta: float, accountant: str) -> tuple[float, str]:
    if not history:
        return 0.0, accountant
    if any(noise == 0 for noise, _, _ in history):
        return math.inf, accountant
    for name in dict.fromkeys((accountant, "rdp") if delta >= LEAST_DELTA else ("rdp",)):
        try:
            value = _accountants()[name](list(history), delta)
        except EXTREME:
            continue
        if name == "prv" and value < FINE_BELOW:
            with suppress(*EXTREME):  # both are upper bounds
                value = min(value, _accountants()["fine prv"](list(history), delta))
        if math.isfinite(value):
            return max(0.0, value), name
    return math.inf, accountant


@cache
def _accountants() -> dict[str, Callable[[list[Steps], float], float]]:
    """Return the accountants of Opacus, which takes 4 s to import; PRV with a limit on the points for the losses, and
    with a finer resolution, for which fewer points are allowed."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    class BoundedPRVAccountant(PRVAccountant):
        most = MOST_POINTS

        def _get_domain(self, *args: Any, **kwargs: Any) -> Any:
            domain = super()._get_domain(*args, **kwargs)
            if domain.size > self.most:
                raise MemoryError(f"{domain.size} points")
            return domain

    class FinePRVAccountant(BoundedPRVAccountant):
        most = MOST_POINTS // 4

    def asked(kind: Any, history: list[Steps], delta: float, **options: float) -> float:
        made = kind()
        made.history = history
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the orders among which the bound was sought
            return float(made.get_epsilon(delta, **options))

    return {
        "prv": partial(asked, BoundedPRVAccountant, eps_error=RESOLUTION),
        "fine prv": partial(asked, FinePRVAccountant, eps_error=FINE),
        "rdp": partial(asked, RDPAccountant),
    }


def noise_for(target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str) -> float:
    """Find the least noise multiplier (to 0.01 of epsilon, or 1% of the target) that keeps `steps` within the target.

    Raises:
        ValueError: There is no such multiplier below a million.
    """
    low, high = 0.0, 20.0

    def spent(noise: float) -> float:
        return epsilon([(noise, sample_rate, steps)], delta, accountant)

    while spent(high) > target_epsilon:
        high *= 2
        if high > MOST_NOISE:
            finest = "" if accountant == "prv" else ", or strategy.accountant=prv"
            raise UserError(
                f"strategy.target_epsilon={target_epsilon:g}: no noise keeps {steps} steps within it, as the "
                f"{accountant} accountant counts. The smallest epsilon that it can reach is "
                f"{rounded_up(spent(MOST_NOISE))} (delta {delta:g}). Type a larger target{finest}"
            )
    tolerance = min(0.01, target_epsilon / 100)
    while target_epsilon - spent(high) > tolerance and high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) < target_epsilon else (middle, high)
    return high


def extended(history: Sequence[Steps], noise: float, rate: float, count: int) -> list[Steps]:
    """Return `history` with `count` further steps."""
    if not count:
        return list(history)
    if history and history[-1][:2] == (noise, rate):
        return [*history[:-1], (noise, rate, history[-1][2] + count)]
    return [*history, (noise, rate, count)]


def steps_within(
    target_epsilon: float, history: Sequence[Steps], noise: float, rate: float, most: int, delta: float, accountant: str
) -> int:
    """Count the steps, `most` at most, that can follow `history` before epsilon exceeds the target."""

    def fits(count: int) -> bool:
        return epsilon(extended(history, noise, rate, count), delta, accountant) <= target_epsilon

    if most < 1 or not fits(1):
        return 0
    few, many = 1, 2
    while many < most and fits(many):  # not `most` first: accountants need memory for many steps
        few, many = many, 2 * many
    if many >= most:
        if fits(most):
            return most
        many = most
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(middle) else (few, middle)
    return few

"""How much privacy is spent: Opacus' accountants over a ledger of the noisy steps that were taken."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

Steps = tuple[float, float, int]  # noise multiplier, sample rate, how many

ACCOUNTANTS = ("prv", "rdp")


class Ledger:
    """A line per noisy step, written before the noise is drawn: a step that is repeated after a kill has two.

    `file` may hold the lines of a run that goes on. Lines say nothing of the data.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.history: list[Steps] = []
        if file.is_file():
            for line in file.read_bytes().splitlines():
                self._count(*_read(file, line))

    @property
    def steps(self) -> int:
        """All that were taken."""
        return sum(count for _, _, count in self.history)

    def begins_with(self, history: Sequence[Steps]) -> bool:
        """Whether its first steps are those."""
        own, other = _each(self.history), _each(history)
        return own[: len(other)] == other

    def is_begun_by(self, history: Sequence[Steps]) -> bool:
        """Whether those begin with all that it has."""
        own, other = _each(self.history), _each(history)
        return other[: len(own)] == own

    def add(self, noise_multiplier: float, sample_rate: float) -> None:
        """Notes a step that is about to be taken.

        Raises:
            OSError: The disk refuses the line: the step must not be taken.
        """
        self.add_all([(noise_multiplier, sample_rate, 1)])

    def add_all(self, history: Iterable[Steps]) -> None:
        """Notes the steps of the run that this one goes on from."""
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
                raise OSError(f"{self.file} could not be written: the disk is full.")
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
        found = json.loads(line)
        return float(found["noise_multiplier"]), float(found["sample_rate"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({line[:60]!r}): without it nobody knows what was spent.") from error


def epsilon(history: Sequence[Steps], delta: float, accountant: str) -> float:
    """What the steps have spent, an upper bound; infinite where one had no noise."""
    return _epsilon(tuple(history), delta, accountant)


@lru_cache(maxsize=256)
def _epsilon(history: tuple[Steps, ...], delta: float, accountant: str) -> float:
    if not history:
        return 0.0
    if any(noise == 0 for noise, _, _ in history):
        return float("inf")
    from opacus.accountants import create_accountant

    made = create_accountant(accountant)
    made.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the orders that the bound was looked for in
        return float(made.get_epsilon(delta))


def noise_for(target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str) -> float:
    """The least noise multiplier (to 0.01 of epsilon) with which so many steps stay within the target.

    Raises:
        ValueError: There is none.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_noise_multiplier(
                target_epsilon=target_epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=min(0.01, target_epsilon / 100),
            )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"strategy.target_epsilon={target_epsilon}: no noise keeps {steps} steps at delta={delta:.2g} within it "
            f"({error}). Type a larger one, or fewer trainer.max_epochs="
        ) from error


def steps_within(
    target_epsilon: float, history: Sequence[Steps], noise: float, rate: float, most: int, delta: float, accountant: str
) -> int:
    """How many steps, `most` at most, can be taken after `history` until epsilon would be above the target."""

    def fits(count: int) -> bool:
        added = [*history, (noise, rate, count)]
        if history and history[-1][:2] == (noise, rate):
            added = [*history[:-1], (noise, rate, history[-1][2] + count)]
        return epsilon(added, delta, accountant) <= target_epsilon

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

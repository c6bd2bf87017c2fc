"""The receipt of pruning: in the end the best pruned trials are finished, as if nobody had pruned them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imago.search.study import TrialRecord
from imago.terminal import counted


@dataclass(frozen=True)
class Receipt:
    """Pruned trials that were finished: number -> value; the values of the completed ones; and the sign of what is
    better: 1 for greater values, else -1."""

    finished: dict[int, float]
    completed: tuple[float, ...]
    sign: int

    @property
    def best(self) -> tuple[int, float]:
        """Number and value of the best of the finished trials."""
        return max(self.finished.items(), key=lambda entry: self.sign * entry[1])

    @property
    def regret(self) -> float:
        """By how much the best of the finished trials is better than the best completed one; 0 if it is not."""
        if not self.finished or not self.completed:
            return 0.0
        return max(0.0, self.sign * self.best[1] - max(self.sign * value for value in self.completed))

    def place(self, value: float) -> int:
        """Place that a finished trial would have among the completed ones, from 1."""
        return 1 + sum(self.sign * done >= self.sign * value for done in self.completed)

    def describe(self, pruned: int) -> str:
        """Sentence that says what pruning cost; `pruned` is the number of pruned trials."""
        number, value = self.best
        what = f"{counted(len(self.finished), 'trial')} of {pruned} pruned ones {_was(len(self.finished))} finished"
        if self.regret:
            return f"Pruning cost {self.regret:.4f}: {what}, and trial {number + 1} is the best of all, {value:.4f}"
        place = f"the best of them ({value:.4f}, trial {number + 1}) would have come {ordinal(self.place(value))}"
        return f"Pruning cost nothing: {what}, and {place}"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def to_finish(records: Sequence[TrialRecord], most: int, sign: int) -> list[TrialRecord]:
    """The pruned trials that are finished: the best by what they had reached, those that went further first."""
    pruned = [record for record in records if record.state == "pruned" and _numbers(record)]
    pruned.sort(
        key=lambda record: (-max(sign * value for value in _numbers(record)), -len(record.reported), record.number)
    )
    return pruned[:most]


def _numbers(record: TrialRecord) -> list[float]:
    return [value for value in record.reported.values() if not math.isnan(value)]


def with_finished(records: Sequence[TrialRecord], finished: Mapping[int, float]) -> list[TrialRecord]:
    """Records in which the pruned trials that were finished have their values."""
    return [
        replace(record, values=(finished[record.number],)) if record.number in finished else record
        for record in records
    ]


def ordinal(number: int) -> str:
    """A place in words: first, second, third, 4th."""
    words = {1: "first", 2: "second", 3: "third"}
    end = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return words.get(number, f"{number}{end}")

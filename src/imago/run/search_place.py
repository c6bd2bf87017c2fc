"""A run's place in a search: plain data, and the way to the process that decides about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Report = Callable[[int, float], bool]
"""Called with the number of a validation, from 0, and the monitored value; returns whether the run is to stop."""


@dataclass(frozen=True)
class Trial:
    """A trial of a search, as its run knows it.

    Args:
        sweep_dir: Folder of the search.
        number: Number of the trial, from 0.
        report: Where values go; None in other processes than the first of a run, which learn the answer from it.
        prunes: Whether values are reported at all.
        typed: Overrides that all trials share, for the name of the run.
        trials: Number of trials, for the digits of the number in the name.
    """

    sweep_dir: str
    number: int = 0
    report: Report | None = None
    prunes: bool = False
    typed: tuple[str, ...] = ()
    trials: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """Value of `${sweep:}` in the config of the run."""
        return {"typed": list(self.typed), "jobs": self.trials, "first": 0}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: `completed`, `pruned`, `failed`, `nan` (the monitored metric was never a number), or `disk` (that is full
            or fails, and the trial can be resumed).
        values: Values of the objectives; empty unless it completed.
        folder: Name of its run folder; empty if there is none.
        epochs: Epochs that it trained, those before a restart included.
        seconds: Duration.
        message: Error of a trial that failed.
    """

    state: str
    values: tuple[float, ...] = ()
    folder: str = ""
    epochs: int = 0
    seconds: float = 0.0
    message: str = ""

"""The table of a search while it runs: live on a terminal, a line for each trial elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imago.callbacks.pace import format_duration
from imago.run.differences import short_names
from imago.search.settings import SearchSettings
from imago.search.study import TrialRecord, best_of
from imago.terminal import console, counted, say

MOST_ROWS = 12
"""Trials that the live table shows: the last ones."""
WORDS = {"completed": "completed", "pruned": "pruned", "failed": "failed", "nan": "NaN", "running": "running"}
STYLES = {"completed": "green", "failed": "red", "nan": "red", "running": "cyan"}


def count_states(records: Sequence[TrialRecord]) -> str:
    """Numbers of trials by state: `12 completed, 30 pruned, 1 failed, 2 NaN`."""
    counts = Counter(record.state for record in records)
    shown = [f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]]
    return ", ".join(shown) or "none"


def format_params(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Settings of a trial by their short names: `lr 0.003, batch_size 32`."""
    return ", ".join(f"{names.get(key, key)} {format_value(value)}" for key, value in params.items())


def format_value(value: Any) -> str:
    """A setting with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Board:
    """The table of a search.

    Args:
        objectives: Names of the values.
        sign: 1 if greater values of the first are better, else -1.
        keys: Settings that are searched.
        trials: Number of trials in all.
        jobs: Trials at the same time.
    """

    def __init__(self, objectives: Sequence[str], sign: int, keys: Sequence[str], trials: int, jobs: int) -> None:
        self.objectives = objectives
        self.sign = sign
        self.names = short_names(keys)
        self.trials = trials
        self.jobs = jobs
        self._seconds: list[float] = []
        self._began = time.monotonic()
        self._live = Live(console=console(), auto_refresh=False) if sys.stdout.isatty() else None

    @property
    def is_live(self) -> bool:
        """Whether the table is on a terminal."""
        return self._live is not None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def note_end(self, records: Sequence[TrialRecord], number: int, seconds: float) -> None:
        """Show that a trial has ended."""
        self._seconds.append(seconds)
        if self._live is None:
            say(self._line(records, records[number], seconds))
        self.show(records)

    def show(self, records: Sequence[TrialRecord]) -> None:
        """Draw the live table again."""
        if self._live is not None:
            self._live.update(self._table(records), refresh=True)

    def _line(self, records: Sequence[TrialRecord], record: TrialRecord, seconds: float) -> str:
        parts = [f"Trial {record.number + 1} of {self.trials}: {self._result(record)}"]
        parts += [format_params(record.params, self.names), format_duration(seconds), self._best(records)]
        return "; ".join(filter(None, [*parts, self._left(records)]))

    def _result(self, record: TrialRecord) -> str:
        if record.values:
            return ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, record.values, strict=True))
        epochs = record.attributes.get("epochs")
        after = f" after {counted(int(epochs), 'epoch')}" if epochs and record.state == "pruned" else ""
        at = f" at {record.last:.4f}" if record.last is not None and record.state == "pruned" else ""
        message = str(record.attributes.get("message") or "").strip().splitlines()
        return f"{WORDS[record.state]}{after}{at}" + (f": {message[0]}" if message else "")

    def _best(self, records: Sequence[TrialRecord]) -> str:
        best = best_of(records, self.sign) if len(self.objectives) == 1 else None
        return f"best {best.values[0]:.4f} in trial {best.number + 1}" if best is not None else ""

    def _left(self, records: Sequence[TrialRecord]) -> str:
        left = self.trials - sum(record.state != "running" for record in records)
        if not left or not self._seconds:
            return ""
        return f"{format_duration(left * sum(self._seconds) / len(self._seconds) / self.jobs)} left"

    def _table(self, records: Sequence[TrialRecord]) -> Table:
        caption = [f"{count_states(records)} of {self.trials}", self._best(records), self._left(records)]
        table = Table(box=box.SIMPLE_HEAD, caption="; ".join(filter(None, caption)), caption_justify="left")
        for name in ("trial", "state", *(self.names.values()), *self.objectives, "epochs"):
            table.add_column(name, no_wrap=True)
        best = best_of(records, self.sign) if len(self.objectives) == 1 else None
        for record in records[-MOST_ROWS:]:
            values = [f"{value:.4f}" for value in record.values] or [
                f"{record.last:.4f}" if record.last is not None else "",
                *[""] * (len(self.objectives) - 1),
            ]
            epochs = record.attributes.get("epochs") or (len(record.reported) or "")
            settings = [format_value(record.params.get(key, "")) for key in self.names]
            style = "bold" if best is not None and record.number == best.number else STYLES.get(record.state, "")
            cells = [str(record.number + 1), WORDS[record.state], *settings, *values, str(epochs)]
            table.add_row(*(Text(cell, style=style) for cell in cells))
        return table


def show_front(records: Sequence[TrialRecord], settings: SearchSettings, names: Mapping[str, str]) -> None:
    """Print the Pareto front: the trials that no other one beats in all objectives, the best of the first on top."""
    table = Table(box=box.SIMPLE_HEAD, title="Pareto front: no other trial is better in all objectives")
    arrows = ["max" if direction == "maximize" else "min" for direction in settings.directions]
    titles = [f"{name} ({arrow})" for name, arrow in zip(settings.objectives, arrows, strict=True)]
    for title in ("trial", *titles, *names.values(), "folder"):
        table.add_column(title, no_wrap=True)
    for record in sorted(records, key=lambda record: -settings.sign * record.values[0]):
        cells = [str(record.number + 1), *map(_format_objective, record.values)]
        cells += [format_value(record.params.get(key, "")) for key in names]
        table.add_row(*map(Text, [*cells, str(record.attributes.get("folder", ""))]))
    console().print(table)


def _format_objective(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.4f}"

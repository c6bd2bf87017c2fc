"""The table of a search while it runs: live on a terminal, a line for each trial elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imago.callbacks.pace import format_duration
from imago.run.differences import short_names
from imago.search.settings import SearchSettings
from imago.search.study import TrialRecord, best_of
from imago.terminal import console, counted, say, shortened

GAP = 3
"""Columns of the terminal between two of a table."""
MOST_ROWS = 12
"""Trials that the live table shows: the last ones."""
WORDS = {"completed": "completed", "pruned": "pruned", "failed": "failed", "nan": "NaN", "running": "running"}
STYLES = {"completed": "green", "failed": "red", "nan": "red", "running": "cyan"}


def count_states(records: Sequence[TrialRecord]) -> str:
    """Numbers of trials by state: `12 completed, 30 pruned, 1 failed, 2 NaN`."""
    counts = Counter(record.state for record in records)
    shown = [f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]]
    return ", ".join(shown) or "none"


def describe_progress(records: Sequence[TrialRecord], trials: int) -> str:
    """Clause with what is done of the `trials` of a search, and what is resumed: 2 of 9 trials are done (2 pruned)."""
    done = [record for record in records if record.state != "running"]
    states = f" ({count_states(done)})" if done else ""
    if len(done) > trials:
        said = f"{counted(len(done), 'trial')} are done{states}, more than hydra.sweeper.n_trials={trials}"
    else:
        said = f"{len(done)} of {trials} trials are done{states}"
    again = len(records) - len(done)
    return said + (f"; {counted(again, 'trial')} that did not end will be resumed" if again else "")


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
        line = self._line(records, records[number], seconds)
        if self._live is None:
            say(line)
        elif records[number].state in ("failed", "nan"):  # why, which the table has no room for
            self._live.console.print(Text(line, style="red"))
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
        said = message[0] if message else ""
        said = said.partition(". ")[0] if record.state == "nan" else said  # not what to type, for each trial
        return f"{WORDS[record.state]}{after}{at}" + (f": {said}" if said else "")

    def _best(self, records: Sequence[TrialRecord]) -> str:
        best = best_of(records, self.sign) if len(self.objectives) == 1 else None
        return f"best {best.values[0]:.4f} in trial {best.number + 1}" if best is not None else ""

    def _left(self, records: Sequence[TrialRecord]) -> str:
        left = self.trials - sum(record.state != "running" for record in records)
        if not left or not self._seconds:
            return ""
        return f"{format_duration(left * sum(self._seconds) / len(self._seconds) / self.jobs)} left"

    def _table(self, records: Sequence[TrialRecord]) -> Group:
        shown, best = records[-MOST_ROWS:], best_of(records, self.sign) if len(self.objectives) == 1 else None
        styles = [
            "bold" if best is not None and record.number == best.number else STYLES.get(record.state, "")
            for record in shown
        ]
        table, left_out = table_of(
            {
                "trial": [str(record.number + 1) for record in shown],
                "state": [WORDS[record.state] for record in shown],
                **{name: [_value_at(record, place) for record in shown] for place, name in enumerate(self.objectives)},
                "epochs": [str(record.attributes.get("epochs") or len(record.reported) or "") for record in shown],
            },
            settings_of(shown, self.names),
            styles,
        )
        counts = f"{count_states(records)} of {self.trials}"
        lines = ["; ".join(filter(None, [counts, self._best(records), self._left(records)])), not_shown(left_out)]
        return Group(table, *(Text(line) for line in lines if line))


def table_of(
    columns: Mapping[str, Sequence[str]], settings: Mapping[str, Sequence[str]], styles: Sequence[str]
) -> tuple[Table, list[str]]:
    """Table of `columns`, and of those of the `settings` for which the terminal has room.

    Args:
        columns: Heading -> cells.
        settings: The same for settings.
        styles: Style of each row.

    Returns:
        The table, and the settings that are left out.
    """
    left = console().width - sum(map(_width, columns.values(), columns))
    shown, left_out = dict(columns), []
    for name, cells in settings.items():
        if (width := _width(cells, name)) > left:
            left_out.append(name)
            continue
        left -= width
        shown[name] = cells
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, cells in shown.items():
        is_number = name != "trial" and all(cell.replace(",", "").lstrip("-")[:1].isdigit() for cell in cells if cell)
        table.add_column(name, no_wrap=True, justify="right" if is_number else "left")
    for style, *cells in zip(styles, *shown.values(), strict=True):
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table, left_out


def _width(cells: Sequence[str], name: str) -> int:
    return max(map(cell_len, [name, *cells])) + GAP


def settings_of(records: Sequence[TrialRecord], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Short name of each setting -> its values in the records."""
    return {name: [format_value(record.params.get(key, "")) for record in records] for key, name in names.items()}


def not_shown(settings: Sequence[str]) -> str:
    """Line for settings for which a table has no room; empty for none."""
    return f"Not shown: {shortened(settings)}" if settings else ""


def _value_at(record: TrialRecord, place: int) -> str:
    """A value of a trial; of one that has none yet, the last value that it reported is that of its first objective."""
    if record.values:
        return _format_objective(record.values[place])
    return f"{record.last:.4f}" if place == 0 and record.last is not None else ""


def show_front(records: Sequence[TrialRecord], settings: SearchSettings, names: Mapping[str, str]) -> None:
    """Print the Pareto front: the trials that no other one beats in all objectives, the best of the first on top."""
    ordered = sorted(records, key=lambda record: -settings.sign * record.values[0])
    columns = {"trial": [str(record.number + 1) for record in ordered]}
    for place, (name, direction) in enumerate(zip(settings.objectives, settings.directions, strict=True)):
        title = f"{name} ({'max' if direction == 'maximize' else 'min'})"
        columns[title] = [_format_objective(record.values[place]) for record in ordered]
    columns["folder"] = [str(record.attributes.get("folder", "")) for record in ordered]
    table, left_out = table_of(columns, settings_of(ordered, names), [""] * len(ordered))
    say("Pareto front: no other trial is better in all objectives")
    console().print(table)
    if left_out:
        say(not_shown(left_out))


def _format_objective(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.4f}"

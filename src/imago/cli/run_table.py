"""Tables of runs: one line for each, as wide as the screen."""

import json
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from imago.cli.run_columns import ERRORS, SHORTEST_ERROR, Column, metric_text
from imago.run.overview import Overview
from imago.terminal import console, counted

WIDTH = 100
"""Width of a table that is printed to no terminal, in characters."""
MOST_SETTINGS = 6
SHORTEST_NAME = 20
"""Length to which the names of runs are cut, if there is no more space for them: that of a date and a time, and `…`."""
SHORTEST_END = 6
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(/\d+)?")
"""Date and time in the name of a run, and the number of a job of a sweep."""
SCORES = ("best", "acc", "loss")
SEED = "${seed}"
"""Value of `data.seed` where nobody sets it."""
ORDER = ("state", "best", "acc", "epoch", "duration", "updated", *ERRORS)
"""Order of the columns of every table."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    runs: Sequence[Overview]

    def cell(self, column: Column) -> Text:
        """Mean and standard deviation of a score, or the setting that the runs have in common."""
        if column.name in SCORES:
            return Text(mean_and_deviation([column.value(run) for run in self.runs]))
        if column.name == "seed":
            return Text(counted(len(self.runs), "seed"))
        return Text("") if column.name in (*ORDER, "error") else column.cell(self.runs[0])


def grouped_by_seed(runs: Sequence[Overview], settings: Sequence[str]) -> list[Group]:
    """Group runs that completed by all `settings` but their seed; nothing if no group has two of them."""
    if "seed" not in settings:
        return []
    groups: dict[str, list[Overview]] = {}
    for run in runs:
        if run.state == "completed" and run.best is not None:
            values = [run.setting(key) for key in settings if key != "seed"]
            groups.setdefault(json.dumps(values, default=str), []).append(run)
    return [Group(group) for group in groups.values()] if any(len(group) > 1 for group in groups.values()) else []


def describe_drawn(groups: Sequence[Group]) -> str:
    """Sentence that says which splits the seeds of `groups` drew anew, and what keeps them; empty without any."""
    drawing = [run for group in groups if len(group.runs) > 1 for run in group.runs if run.setting("data.seed") == SEED]
    splits = [split for split in ("val", "test") if any(split in run.drawn for run in drawing)]
    if not splits:
        return ""
    one = "splits" if len(splits) > 1 else "split"
    return (
        f"Each seed draws its own {' and '.join(splits)} {one}, which is part of the deviation. To keep one draw, type "
        "data.seed=42 (which keeps order and augmentation, too), or write the splits to a file with ml-split"
    )


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Show mean ± sample standard deviation of the known values; of a single one, its value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return metric_text(known[0] if known else None)
    return f"{statistics.fmean(known):.4f} ± {statistics.stdev(known):.4f}"


def run_table(
    runs: Sequence[Overview],
    folder: Path,
    always: Sequence[Column],
    settings: Sequence[Column],
    groups: Sequence[Group] = (),
    optional: Sequence[Column] = (),
) -> tuple[Table, list[str]]:
    """Table of `runs` with the columns `always`, as many of `settings` as fit, and as many of `optional` as still fit;
    `groups` are rows at its end.

    Returns:
        The table, and the names of the settings that did not fit.
    """
    width, most = screen_width(), min(len(settings), MOST_SETTINGS)
    stamps = [stamp.group() for run in runs if (stamp := STAMP.search(_name(run, folder))) is not None]
    shortest = max([SHORTEST_NAME, *(len(stamp) + 1 for stamp in stamps)])
    widest = console().options.update(width=10_000, max_width=10_000)

    def left_by(columns: Sequence[Column]) -> int:
        return width - Measurement.get(console(), widest, _table(runs, folder, columns, groups, shortest)).maximum

    for count in range(most, -1, -1):
        columns = _ordered(always, settings[:count], ())
        if left_by(columns) >= 0:
            break
    chosen: list[Column] = []
    for column in optional:
        if left_by(_ordered(always, settings[:count], [*chosen, column])) >= 0:
            chosen.append(column)
    columns = _ordered(always, settings[:count], chosen)
    left = left_by(columns)
    has_errors = any(column.name in ERRORS for column in columns)
    needed = max(len(_name(run, folder)) for run in runs) - shortest
    more = min(max(left, 0) // (2 if has_errors else 1), max(needed, 0))
    longest_error = max(SHORTEST_ERROR // 2, SHORTEST_ERROR + left - more)
    table = _table(runs, folder, columns, groups, shortest + more, longest_error)
    return table, [column.title for column in settings[count:]]


def screen_width() -> int:
    """Width for tables; rich would take 80 where there is no terminal."""
    screen = console()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = max(screen.width, WIDTH)
    return screen.width


def common_folder(runs: Sequence[Overview], folder: Path) -> Path:
    """The deepest folder, at or below `folder`, that holds all run folders."""
    if not runs:
        return folder
    parents = [str(run.folder.parent) for run in runs]
    shared = Path(os.path.commonpath(parents))
    return shared if shared.is_relative_to(folder) else folder


def cut_name(name: str, most: int) -> str:
    """Cut the middle of the name of a run to `most` characters: date and time, or its first part, and its end stay."""
    if len(name) <= most:
        return name
    stamp = STAMP.search(name)
    start = stamp.group() if stamp is not None else name[: most // 3]
    end = most - len(start) - 1
    return f"{start}…{name[len(name) - end :] if end >= SHORTEST_END else ''}"[:most]


def _name(run: Overview, folder: Path) -> str:
    return str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name


def _table(
    runs: Sequence[Overview],
    folder: Path,
    columns: Sequence[Column],
    groups: Sequence[Group],
    longest_name: int,
    longest_error: int = SHORTEST_ERROR,
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(
            Text(column.title), justify="right" if column.is_number else "left", no_wrap=True, overflow="ellipsis"
        )
    for run in runs:
        cells = (column.cell(run, longest_error) for column in columns)
        table.add_row(Text(cut_name(_name(run, folder), longest_name)), *cells)
    if groups:
        table.add_section()
    for group in groups:
        table.add_row(Text("mean ± sd"), *(group.cell(column) for column in columns))
    return table


def _ordered(always: Sequence[Column], settings: Sequence[Column], optional: Sequence[Column]) -> list[Column]:
    """All columns, in their order: the settings after the best value, an error at the end."""
    columns = [*always, *optional]
    columns.sort(key=lambda column: ORDER.index(column.name) if column.name in ORDER else len(ORDER))
    at = 1 + max((index for index, column in enumerate(columns) if column.name in ("state", "best")), default=-1)
    return [*columns[:at], *settings, *columns[at:]]

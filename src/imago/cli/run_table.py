"""Tables of runs: one line for each, as wide as the screen."""

import json
import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from imago.cli.run_columns import ERRORS, SHORTEST_ERROR, Column, metric_text
from imago.config.invocation import for_hydra
from imago.run.differences import kinds_of_images
from imago.run.overview import Overview
from imago.terminal import console, counted

WIDTH = 100
"""Width of a table that is printed to no terminal, in characters."""
MOST_SETTINGS = 6
SHORTEST_NAME = 20
"""Length to which the names of runs are cut, if there is no more space for them: that of a date and a time, and `*`."""
SHORTEST_END = 6
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(/\d+)?")
"""Date and time in the name of a run, and the number of a job of a sweep."""
REPEATED = {"seed": "seed", "data.fold": "fold"}
"""Settings in which the runs of a group differ -> noun for their number."""
IMAGES = ("data.exclude", "data.relabel", "data.split_file")
"""Settings that change scored images or their labels, and that ml-eval takes for a run that was trained without."""
DRAWS = ("data._target_", "data.data_dir", "data.val_ratio", "data.test_ratio", "data.seed", "seed")
SEED = "${seed}"
"""Value of `data.seed` where nobody sets it."""
ORDER = ("state", "best", "acc", "later", "epoch", "duration", "updated", *ERRORS)
"""Order of the columns of every table."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed or fold alone; or a single run."""

    runs: Sequence[Overview]

    @property
    def completed(self) -> list[Overview]:
        """The runs that mean and deviation are computed from."""
        return [run for run in self.runs if run.state == "completed"]

    def values(self, column: Column) -> list[float]:
        """Known numbers of the completed runs."""
        return [value for run in self.completed if isinstance(value := column.value(run), int | float)]

    def cell(self, column: Column, longest_error: int = SHORTEST_ERROR) -> Text:
        """Mean and standard deviation of a score, or the setting that the runs have in common."""
        if len(self.runs) == 1:
            return column.cell(self.runs[0], longest_error)
        if column.of_group is not None:
            return Text(column.of_group(self.completed))
        if column.is_score:
            return Text(mean_and_deviation(self.values(column)))
        if column.name == "state":
            states = Counter(run.state for run in self.runs)
            return Text(", ".join(f"{count} {state}" for state, count in states.items()))
        if column.name in REPEATED:
            return Text(counted(len({str(run.setting(column.name)) for run in self.runs}), REPEATED[column.name]))
        return Text("") if column.name in (*ORDER, "error", "checkpoint") else column.cell(self.runs[0])


def grouped_by_seed(runs: Sequence[Overview], settings: Sequence[str]) -> list[Group]:
    """Group runs that completed by all `settings` but their seed and fold; nothing if no group has two of them."""
    if not REPEATED.keys() & set(settings):
        return []
    groups = grouped([run for run in runs if run.state == "completed" and run.best is not None], settings)
    return groups if any(len(group.runs) > 1 for group in groups) else []


def grouped(runs: Sequence[Overview], settings: Sequence[str]) -> list[Group]:
    """Group runs by all `settings` but their seed and fold. A second run with equal seed and fold, which tells nothing
    new, is in a group of its own."""
    groups: dict[str, list[Overview]] = {}
    copies: Counter[str] = Counter()
    for run in runs:
        values = [run.setting(key) for key in settings if key not in REPEATED]
        whole = json.dumps([values, *(run.setting(key) for key in REPEATED)], default=str)
        groups.setdefault(json.dumps([values, copies[whole]], default=str), []).append(run)
        copies[whole] += 1
    return [Group(group) for group in groups.values()]


def describe_drawn(groups: Sequence[Group]) -> str:
    """Sentence that says which splits the seeds of `groups` drew anew, and what keeps them; empty without any."""
    several = [group.runs for group in groups if len({str(run.setting("seed")) for run in group.runs}) > 1]
    drawing = [run for runs in several for run in runs if run.setting("data.seed") == SEED]
    splits = [split for split in ("val", "test") if any(split in run.data.get("drawn", ()) for run in drawing)]
    if not splits:
        return ""
    one = "splits" if len(splits) > 1 else "split"
    return (
        f"Each seed draws its own {' and '.join(splits)} {one}, which is part of the deviation. To keep one draw, type "
        "data.seed=42 (which keeps order and augmentation, too), or write the splits to a file with ml-split"
    )


def describe_images(runs: Sequence[Overview], columns: Sequence[Column], monitor: str, any_reason: bool) -> str:
    """Sentence that says in which `columns` the scores of `runs` are of different images, and what to type to compare
    them; empty if they are of the same ones, or, unless for `any_reason`, if no setting below is the reason."""
    shown = {column.title: monitor if column.name == "best" else column.name for column in columns}
    kinds = {title: kinds_of_images(runs, metric) for title, metric in shown.items()}
    titles = [title.removeprefix("best ") for title in kinds if kinds[title] > 1]
    changed = [key for key in IMAGES if len({str(run.setting(key)) for run in runs}) > 1]
    others = [key for key in DRAWS if len({str(run.setting(key)) for run in runs}) > 1]
    if not titles or not (any_reason or (changed and not others)):
        return ""
    images = f"These runs have {max(kinds.values())} different sets of images for {' and '.join(titles)}"
    if not changed or others:
        return f"{images}. To compare them, score each on the same ones: ml-eval ckpt_path=RUN data.data_dir=PATH"
    most = max(reversed(runs), key=lambda run: sum(run.setting(key) is not None for key in changed))
    values = {key: most.setting(key) for key in changed}
    words = [f"{key}={'null' if value is None else for_hydra(str(value))}" for key, value in values.items()]
    return (
        f"{images}: {' and '.join(changed)} differ. To compare them, score each with the same ones: "
        f"ml-eval ckpt_path=RUN {shlex.join(words)}"
    )


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Show mean ± sample standard deviation of the known values; of a single one, its value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return metric_text(known[0] if known else None)
    return f"{statistics.fmean(known):.4f} ± {statistics.stdev(known):.4f}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, and its cells."""

    name: str
    cell: Callable[[Column, int], Text]


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
    rows = [Row(name_below(run, folder), run_cells(run)) for run in runs]
    return fitted_table(rows, always, settings, optional, [Row("mean ± sd", group.cell) for group in groups])


def run_cells(run: Overview) -> Callable[[Column, int], Text]:
    """The cells of a run."""
    return lambda column, longest_error: column.cell(run, longest_error)


def fitted_table(
    rows: Sequence[Row],
    always: Sequence[Column],
    settings: Sequence[Column],
    optional: Sequence[Column] = (),
    last: Sequence[Row] = (),
) -> tuple[Table, list[str]]:
    """Table of `rows` as `run_table` makes it; the rows `last` stand below a line, with their whole names."""
    width, most = screen_width(), min(len(settings), MOST_SETTINGS)
    names = [row.name for row in rows]
    shortest = max(map(len, cut_names(names, SHORTEST_NAME)), default=SHORTEST_NAME)
    widest = console().options.update(width=10_000, max_width=10_000)

    longest = max([shortest, *(len(row.name) for row in last)])
    cells: dict[str, Text] = {}

    def longest_cell(column: Column, longest_error: int) -> Text:
        if column.name not in cells:
            cells[column.name] = max(
                (row.cell(column, longest_error) for row in [*rows, *last]), key=lambda t: t.cell_len
            )
        return cells[column.name]

    def left_by(columns: Sequence[Column]) -> int:
        of_longest = _table([Row("x" * longest, longest_cell)], columns, (), longest)  # a thousand rows take long
        return width - Measurement.get(console(), widest, of_longest).maximum

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
    needed = max(map(len, names)) - shortest
    added = min(max(left, 0) // (2 if has_errors else 1), max(needed, 0))
    longest_error = max(SHORTEST_ERROR // 2, SHORTEST_ERROR + left - added)
    table = _table(rows, columns, last, shortest + added, longest_error)
    return table, [column.title for column in settings[count:]]


def screen_width() -> int:
    """Width for tables; rich would take 80 where there is no terminal."""
    screen = console()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = max(screen.width, WIDTH)
    return screen.width


def common_folder(runs: Sequence[Overview], folder: Path) -> Path:
    """The deepest folder that holds all run folders: at or below `folder`, unless this is a run itself."""
    if not runs:
        return folder
    parents = [str(run.folder.parent) for run in runs]
    shared = Path(os.path.commonpath(parents))
    return shared if shared.is_relative_to(folder) or any(run.folder == folder for run in runs) else folder


def cut_names(names: Sequence[str], most: int) -> list[str]:
    """Cut names of runs to `most` characters, or to as many as tell them apart: date and time, or the first part, and
    the end of a name stay. A `*` stands for what is left out, as in the shell, so that a name can still be typed."""
    starts = [_start(name) for name in names]
    prefixes = dict(zip(names, _unique(names), strict=True))
    tails = {
        name: length
        for start in set(starts)
        for group in [[name for name, own in zip(names, starts, strict=True) if own == start]]
        for name, length in zip(group, _unique([name[::-1] for name in group]), strict=True)
    }
    return [
        _cut_name(name, len(start), most, prefixes[name], tails[name])
        for name, start in zip(names, starts, strict=True)
    ]


def _cut_name(name: str, start: int, most: int, prefix: int, tail: int) -> str:
    """Cut a name that no other one has the first `prefix`, or the first `start` and the last `tail`, characters of."""
    if len(name) <= most:
        return name
    start = start or max(0, min(most // 3, most - 1 - tail))
    end = most - start - 1
    by_start, by_end = f"{name[: max(prefix, start)]}*", f"{name[:start]}*{name[len(name) - tail :]}"
    if end >= max(tail, SHORTEST_END):
        return f"{name[:start]}*{name[len(name) - end :]}"
    return min(by_start, by_end, name, key=len)


def _start(name: str) -> str:
    """The name up to its date and time; empty without these."""
    stamp = STAMP.search(name)
    return name[: stamp.end()] if stamp is not None else ""


def _unique(words: Sequence[str]) -> list[int]:
    """Length of the shortest start of each word that no other one has."""
    ordered = sorted(words)
    shared = [0, *(_shared(*pair) for pair in pairwise(ordered)), 0]
    lengths = dict(zip(ordered, (1 + max(pair) for pair in pairwise(shared)), strict=True))
    return [lengths[word] for word in words]


def _shared(one: str, two: str) -> int:
    """Number of characters with which both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def name_below(run: Overview, folder: Path) -> str:
    """Path of a run below `folder`; its name, if it is that folder."""
    return str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name


def _table(
    rows: Sequence[Row],
    columns: Sequence[Column],
    last: Sequence[Row],
    longest_name: int,
    longest_error: int = SHORTEST_ERROR,
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    names = cut_names([row.name for row in rows], longest_name)
    table.add_column("run", no_wrap=True, min_width=max(map(len, names)))
    for column in columns:
        table.add_column(
            Text(column.title), justify="right" if column.is_number else "left", no_wrap=True, overflow="ellipsis"
        )
    for row, name in zip(rows, names, strict=True):
        table.add_row(Text(name), *(row.cell(column, longest_error) for column in columns))
    if last:
        table.add_section()
    for row in last:
        table.add_row(Text(row.name), *(row.cell(column, longest_error) for column in columns))
    return table


def _ordered(always: Sequence[Column], settings: Sequence[Column], optional: Sequence[Column]) -> list[Column]:
    """All columns, in their order: the settings after the best value, an error at the end."""
    columns = [*always, *optional]
    columns.sort(key=lambda column: ORDER.index(column.name) if column.name in ORDER else len(ORDER))
    at = 1 + max((index for index, column in enumerate(columns) if column.name in ("state", "best")), default=-1)
    return [*columns[:at], *settings, *columns[at:]]

"""Tables of runs: one line for each, as wide as the screen."""

import json
import os
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from imago.cli.run_columns import ERRORS, SHORTEST_ERROR, Column, metric_text
from imago.config.invocation import for_hydra
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
SCORES = ("best", "acc", "loss")
IMAGES = ("data.exclude", "data.relabel", "data.split_file")
"""Settings that change scored images or their labels, and that ml-eval takes for a run that was trained without."""
DRAWS = ("data._target_", "data.data_dir", "data.val_ratio", "data.test_ratio", "data.seed", "seed")
SEED = "${seed}"
"""Value of `data.seed` where nobody sets it."""
ORDER = ("state", "best", "acc", "later", "epoch", "duration", "updated", *ERRORS)
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
    kinds = {
        title: len({images for run in runs if (images := run.scored_images(metric)) is not None})
        for title, metric in shown.items()
    }
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
    names = [_name(run, folder) for run in runs]
    shortest = max(map(len, cut_names(names, SHORTEST_NAME)), default=SHORTEST_NAME)
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
    needed = max(map(len, names)) - shortest
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
    names = cut_names([_name(run, folder) for run in runs], longest_name)
    table.add_column("run", no_wrap=True, min_width=max(map(len, names)))
    for column in columns:
        table.add_column(
            Text(column.title), justify="right" if column.is_number else "left", no_wrap=True, overflow="ellipsis"
        )
    for run, name in zip(runs, names, strict=True):
        table.add_row(Text(name), *(column.cell(run, longest_error) for column in columns))
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

"""Rows of runs for files: those that differ in their seed or fold alone are one row, with mean and deviation."""

import csv
import io
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.cli.run_columns import Column, Columns, are_folds, is_known, sort_key
from imago.cli.run_table import REPEATED, Group, name_below
from imago.comparison.summary import summary
from imago.files import strict
from imago.terminal import plain

LONGEST = 200
"""Length to which an error is cut in files for people."""
STATISTICS = ("sd", "n", "low", "high")
"""Beside the mean of a metric, where a row stands for several runs; low and high are a 95% interval of the mean."""


def full_columns(columns: Columns) -> list[Column]:
    """The columns of a file for people: all that differs, and all scores."""
    settings = [columns.setting(key) for key in columns.differing]
    scores = columns.known("best", "acc", "loss", "epsilon")
    interval = [columns.fixed["interval"]] if any(key in REPEATED for key in columns.differing) else []
    return [columns.fixed["state"], *settings, *scores, *interval, *columns.known("duration", "checkpoint", "error")]


def group_value(group: Group, column: Column) -> Any:
    """Value by which a row is sorted: the mean of a score, otherwise the value of the first run."""
    if len(group.runs) == 1 or not (column.is_score or column.name == "duration"):
        return column.value(group.runs[0])
    values = group.values(column)
    return statistics.fmean(values) if values else None


def sort_groups(groups: Iterable[Group], column: Column) -> list[Group]:
    """Sort rows by a column: the best first, and those without a value last."""
    valued = [(group_value(group, column), group) for group in groups]
    known = [(value, group) for value, group in valued if is_known(value)]
    known.sort(key=lambda entry: sort_key(entry[0]), reverse=column.is_descending)
    return [*(group for _, group in known), *(group for value, group in valued if not is_known(value))]


def group_name(group: Group, folder: Path) -> str:
    """Name of a row: that of its first run, and how many are with it."""
    name = name_below(group.runs[0], folder)
    return name if len(group.runs) == 1 else f"{name} +{len(group.runs) - 1}"


def mean_history(group: Group) -> list[dict[str, float]]:
    """Epochs of a row: those that all of its runs have, with the means of the metrics that all of them have there."""
    histories = [{int(row["epoch"]): row for row in run.history} for run in group.completed or group.runs]
    if len(histories) == 1:
        return [*histories[0].values()]
    epochs = sorted(set.intersection(*(set(history) for history in histories)))
    return [_mean_row([history[epoch] for history in histories]) for epoch in epochs]


def _mean_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: statistics.fmean(row[name] for row in rows) for name in shared}


def best_checkpoint(group: Group, columns: Columns) -> Path | None:
    """Checkpoint of the best run of a row."""
    best = columns.fixed["best"]
    known = sort_groups([Group([run]) for run in group.runs if run.checkpoint is not None], best)
    return known[0].runs[0].checkpoint if known else None


def row_texts(group: Group, columns: Columns, shown: Sequence[Column], folder: Path) -> list[str]:
    """Cells of a row in a file for people, after its name."""
    checkpoint = best_checkpoint(group, columns)
    place = os.path.relpath(checkpoint, folder) if checkpoint is not None else ""
    return [place if column.name == "checkpoint" else group.cell(column, LONGEST).plain for column in shown]


def plain_rows(groups: Sequence[Group], columns: Columns, folder: Path) -> list[dict[str, Any]]:
    """Rows in plain types: settings that differ by their full names, and metrics with mean, deviation and interval."""
    scores = _scores(columns)
    return [_plain_row(group, columns, scores, folder) for group in groups]


def _plain_row(group: Group, columns: Columns, scores: Mapping[str, Column], folder: Path) -> dict[str, Any]:
    first, checkpoint = group.runs[0], best_checkpoint(group, columns)
    settings = {
        key: [run.setting(key) for run in group.runs] if key in REPEATED and len(group.runs) > 1 else first.setting(key)
        for key in columns.differing
    }
    seconds = group_value(group, columns.fixed["duration"])  # of two readings of the clock
    return strict(
        {
            "name": group_name(group, folder),
            "folders": [str(run.folder) for run in group.runs],
            "states": dict(Counter(run.state for run in group.runs)),
            "settings": settings,
            "metrics": _metrics(group, scores),
            "seconds": round(seconds, 1) if seconds is not None else None,
            "checkpoint": str(checkpoint) if checkpoint is not None else None,
            "error": next((text for run in group.runs if (text := columns.fixed["error"].value(run))), None),
        }
    )


def _scores(columns: Columns) -> dict[str, Column]:
    """The metrics of a file: those on test, and the best values of those of the epochs."""
    names = dict.fromkeys(name for run in columns.runs for name in run.metrics if name.count("/") == 1)
    scores = {f"test/{name}": columns.fixed[name] for name in ("acc", "loss")}
    scores |= {name: columns.named(name) for name in names if not name.endswith("_best") and name not in scores}
    if not columns.monitor:
        scores["best"] = columns.fixed["best"]
    return scores


def _metrics(group: Group, scores: Mapping[str, Column]) -> dict[str, dict[str, float]]:
    runs = group.completed if len(group.runs) > 1 else group.runs
    known = {
        name: summary([value for run in runs if isinstance(value := column.value(run), int | float)], are_folds(runs))
        for name, column in scores.items()
    }
    return {name: values for name, values in known.items() if values}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV: `mean` stands under the name of a metric, and its other numbers beside it where a row has several
    runs."""
    settings = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    is_repeated = any(len(row["folders"]) > 1 for row in rows)
    beside = STATISTICS if is_repeated else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [head for name in metrics for head in (name, *(f"{name}_{what}" for what in beside))]
    writer.writerow(["run", "state", "runs", *settings, *heads, "seconds", "checkpoint", "folder", "error"])
    for row in rows:
        cells = [row["name"], _states(row["states"]), len(row["folders"])]
        cells += [_listed(row["settings"].get(key)) for key in settings]
        cells += [row["metrics"].get(name, {}).get(what) for name in metrics for what in ("mean", *beside)]
        cells += [row["seconds"], row["checkpoint"], _listed(row["folders"]), row["error"]]
        writer.writerow([plain(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def as_markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]) -> str:
    """Table in Markdown; columns of `numbers` are aligned to the right."""
    lines = [heads, ["---:" if is_number else "---" for is_number in numbers], *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def markdown_text(text: str) -> str:
    """Text for Markdown, on one line and without tags."""
    return " ".join(plain(text).replace("<", "&lt;").split())


def _cell(text: str) -> str:
    return markdown_text(text).replace("|", "\\|")


def _states(states: Mapping[str, int]) -> str:
    return next(iter(states)) if sum(states.values()) == 1 else ", ".join(f"{n} {state}" for state, n in states.items())


def _listed(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value

"""Compare runs: as a table of what differs, or two or more of them by tests on the same images.

ml-compare
ml-compare logs/train/multiruns --where 'lr<0.01 and val/acc>0.9' --output runs.html
ml-compare RUN_A RUN_B --margin 0.02 --output flips.html
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.cli.dashes import DashParser, as_options
from imago.config.launcher import launch_of
from imago.config.root import PROJECT_ROOT
from imago.errors import UserError
from imago.files import did_you_mean, write_json, write_text
from imago.terminal import closed_pipe_allowed, console, counted, fail, say, shortened

if TYPE_CHECKING:
    from imago.cli.run_columns import Column, Columns
    from imago.cli.run_table import Group
    from imago.cli.versus import Versus

LOGS = PROJECT_ROOT / "logs"
OPTIONS = {name: f"--{name}" for name in ("where", "sort", "columns", "margin", "split", "seed", "output")}
"""Name that may be typed with an equals sign -> the option."""
SUFFIXES = (".csv", ".json", ".md", ".html")
OF_TABLE, OF_TESTS = ("where", "sort", "columns", "all"), ("margin", "split", "seed")
EXAMPLES = """examples:
  ml-compare                                             the runs below logs/, the best first
  ml-compare logs/train/multiruns --sort loss --where 'model.net.name==resnet18 and val/acc>0.9'
  ml-compare SWEEP --output runs.html                    one page that sorts, with the curves
  ml-compare RUN_A RUN_B --margin 0.02                   is B better than A, or equivalent to it?
  ml-compare 'SWEEP/*lr_0.1*' 'SWEEP/*lr_0.2*'           several seeds each
"""


def main() -> None:
    """Command line of `ml-compare`."""
    try:
        launch_of("ml-compare", one_process=True)
        with closed_pipe_allowed():
            compare(_arguments())
    except (UserError, OSError) as error:
        fail(str(error))


def compare(options: argparse.Namespace) -> None:
    """Show a table of the runs in one folder, or compare the runs of several words.

    Raises:
        UserError: A word or an option is wrong, or runs were not scored on the same images.
    """
    for file in options.output:
        if file.suffix not in SUFFIXES:
            raise UserError(f"--output {file}: the name must end in one of {', '.join(SUFFIXES)}.")
    is_table = len(options.runs) < 2
    unused = OF_TESTS if is_table else OF_TABLE
    if unfit := [
        f"--{name}" for name in unused if (value := getattr(options, name)) is not None and value is not False
    ]:
        what = "compares two runs: ml-compare A B" if is_table else "is for the table of one folder: ml-compare FOLDER"
        raise UserError(f"{unfit[0]} {what}.")
    if is_table:
        _show_runs(options)
    else:
        _show_versus(options)


def _show_runs(options: argparse.Namespace) -> None:
    from imago.cli.run_columns import Columns
    from imago.cli.run_filter import parse_condition
    from imago.cli.run_rows import full_columns, sort_groups
    from imago.cli.run_table import common_folder, grouped
    from imago.run.find import LATEST, find_run
    from imago.run.overview import find_runs

    word = options.runs[0] if options.runs else str(LOGS)
    folder = find_run(LATEST, LOGS) if word == LATEST else Path(word).expanduser()
    if not folder.is_dir():
        raise UserError(f"{word} is not a folder. Type ml-compare FOLDER, or two runs.{did_you_mean(word, LATEST)}")
    runs = [run for run in find_runs(folder) if options.all or (run.has_begun and run.task == "train")]
    if options.where is not None:
        conditions = [parse_condition(text, columns) for columns in [Columns(runs)] for text in options.where]
        runs = [run for run in runs if all(fits(run) for fits in conditions)]
    if not runs:
        say(
            "[]"
            if options.json
            else f"No run below {folder} {'fits --where' if options.where else 'has begun to train'}."
        )
        return
    columns = Columns(runs)
    groups = grouped(runs, columns.differing)
    order = columns.named(options.sort) if options.sort is not None else columns.fixed["best"]
    if options.sort is not None or columns.monitor:
        groups = sort_groups(groups, order)
    names = [name.strip() for name in (options.columns or "").split(",") if name.strip()]
    chosen = [columns.named(name) for name in names] or None
    below = common_folder(runs, folder)
    if not options.json:
        _print_runs(groups, columns, below, chosen, order if options.sort is not None else None)
    _write_runs(groups, columns, below, options, chosen or full_columns(columns))


def _print_runs(
    groups: Sequence["Group"],
    columns: "Columns",
    folder: Path,
    chosen: Sequence["Column"] | None,
    order: "Column | None",
) -> None:
    from imago.cli.run_rows import group_name
    from imago.cli.run_table import Row, describe_drawn, describe_images, fitted_table

    settings = [columns.setting(key) for key in columns.differing]
    always, optional = columns.known("state", "best", "acc"), columns.known("duration", "checkpoint", "loss", "epsilon")
    if any(len(group.runs) > 1 for group in groups):
        optional = [columns.fixed["interval"], *optional]
    if chosen is not None:
        always, settings, optional = list(chosen), [], []
    elif order is not None and order.name not in [column.name for column in (*always, *settings)]:
        always = [*always, order]
    rows = [Row(group_name(group, folder), group.cell) for group in groups]
    table, left_out = fitted_table(rows, always, settings, optional)
    count = sum(len(group.runs) for group in groups)
    rows_text = f" in {counted(len(groups), 'row')}" if len(groups) < count else ""
    say(f"{counted(count, 'run')} below {folder}{rows_text}")
    with console().capture() as drawn:
        console().print(table)
    print(drawn.get(), end="")  # rich would end the program where the reader of a pipe has left
    runs = [run for group in groups for run in group.runs]
    compared = [order] if order is not None else [column for column in always if column.is_score]
    sentences = [describe_drawn(groups), describe_images(runs, compared, columns.monitor, order is not None)]
    if left_out:
        sentences.append(f"Settings that differ, too: {shortened(left_out)}. Choose columns with --columns")
    for sentence in filter(None, sentences):
        say(sentence)


def _write_runs(
    groups: Sequence["Group"], columns: "Columns", folder: Path, options: argparse.Namespace, shown: Sequence["Column"]
) -> None:
    from imago.cli.run_rows import as_csv, as_markdown, group_name, plain_rows, row_texts

    if not options.json and not options.output:
        return
    rows = plain_rows(groups, columns, folder)
    texts = [[group_name(group, folder), *row_texts(group, columns, shown, folder)] for group in groups]
    heads, numbers = ["run", *(column.title for column in shown)], [False, *(column.is_number for column in shown)]
    if options.json:
        print(json.dumps(rows, indent=2))  # ASCII: no control sequences for the terminal
    for file in options.output:
        if file.suffix == ".html":
            _write_page(file, groups, columns, folder, shown)
        elif file.suffix == ".json":
            write_json(file, rows)
        else:
            write_text(file, as_csv(rows) if file.suffix == ".csv" else as_markdown(heads, texts, numbers))
        _say_written(file, options.json)


def _write_page(
    file: Path, groups: Sequence["Group"], columns: "Columns", folder: Path, shown: Sequence["Column"]
) -> None:
    from imago.cli.run_rows import group_name, group_value, mean_history, row_texts
    from imago.report.comparison import MOST_CURVES, write_runs_page

    def cells(group: "Group") -> list[dict[str, Any]]:
        texts = row_texts(group, columns, shown, folder)
        values = [group_value(group, column) for column in shown]
        keys = [value if isinstance(value, int | float) else None for value in values]
        return [{"text": text, "key": key} for text, key in zip(texts, keys, strict=True)]

    names = [group_name(group, folder) for group in groups]
    rows = [
        {"name": name, "cells": [{"text": name, "key": None}, *cells(group)]}
        for name, group in zip(names, groups, strict=True)
    ]
    heads = [{"title": "run", "is_number": False}]
    heads += [{"title": column.title, "is_number": column.is_number} for column in shown]
    trained = [(name, group) for name, group in zip(names, groups, strict=True) if any(r.metrics for r in group.runs)]
    histories = {name: mean_history(group) for name, group in trained[:MOST_CURVES]}
    lines = [counted(sum(len(group.runs) for group in groups), "run"), counted(len(groups), "row")]
    write_runs_page(file, f"Runs below {folder}", lines, heads, rows, histories, len(trained))


def _show_versus(options: argparse.Namespace) -> None:
    from imago.cli.contestants import contestants
    from imago.cli.versus import Versus, check_options
    from imago.cli.versus_tables import as_csv, as_json, as_markdown

    check_options(options.split, options.margin, options.seed)
    versus = Versus(contestants(options.runs, LOGS), options.split, options.margin, options.seed or 0)
    if options.seed is not None and (versus.is_repeated or len(versus.sides) > 2):
        raise UserError("--seed is that of the bootstrap, which compares two single runs.")
    if options.json:
        print(json.dumps(as_json(versus), indent=2))
    else:
        _print_versus(versus, any(file.suffix == ".html" for file in options.output))
    for file in options.output:
        if file.suffix == ".html":
            from imago.cli.versus_page import write_page

            write_page(file, versus)
        elif file.suffix == ".json":
            write_json(file, as_json(versus))
        else:
            write_text(file, as_csv(versus) if file.suffix == ".csv" else as_markdown(versus))
        _say_written(file, options.json)


def _print_versus(versus: "Versus", has_page: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from imago.cli.run_table import screen_width
    from imago.cli.versus_notes import notes_of
    from imago.cli.versus_tables import sides_of, tables

    screen_width()
    say(versus.sentence())
    say("")
    for side in sides_of(versus):
        say(f"{side['name']}: {side['what']}, accuracy on {versus.scored} {side['accuracy']}")
    for content in tables(versus):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for head, is_number in zip(content["heads"], content["numbers"], strict=True):
            table.add_column(Text(head), justify="right" if is_number else "left")
        for row in content["rows"]:
            table.add_row(*map(Text, row))
        say("")
        with console().capture() as drawn:
            console().print(table)
        print(drawn.get(), end="")
    for note in notes_of(versus):
        say(note)
    if versus.has_flips and not has_page and any(versus.flip_counts):
        say("The images on which they differ, with pictures: --output comparison.html")


def _say_written(file: Path, is_json: bool) -> None:
    print(f"Written: {file}", file=sys.stderr if is_json else sys.stdout)


def _arguments() -> argparse.Namespace:
    parser = DashParser(
        prog="ml-compare",
        description="Compare runs: a table of one folder, or tests of two or more runs on the same images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.example = "ml-compare RUN_A RUN_B"
    parser.add_argument(
        "runs",
        nargs="*",
        help="a folder of runs (default: logs), or two or more runs, checkpoints, folders or patterns",
    )
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        help="the runs that fit, such as 'lr<0.01 and val/acc>0.9'; may be repeated",
    )
    parser.add_argument("--sort", metavar="COLUMN", help="sort by this column, the best first (default: best)")
    parser.add_argument("--columns", metavar="A,B", help="show these columns instead, in .md and .html, too")
    parser.add_argument("--all", action="store_true", help="also runs that never began to train, and other commands")
    parser.add_argument("--margin", type=float, metavar="FRACTION", help="test whether the difference is below this")
    parser.add_argument("--split", help="train, val or test (default: test, or val where the runs are folds)")
    parser.add_argument("--seed", type=int, help="seed of the bootstrap (default 0)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", action="append", default=[],
        help="write a file that ends in .csv, .json, .md or .html, anew each time; may be repeated",
    )  # fmt: skip
    return parser.parse_args(as_options(sys.argv[1:], OPTIONS, ("--margin",)))


if __name__ == "__main__":
    main()

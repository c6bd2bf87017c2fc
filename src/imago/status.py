"""List the runs below a folder: state, best value, test accuracy, and the settings in which they differ.

ml-status
ml-status --sort val/acc --columns lr,seed,acc
ml-status logs/train/multiruns --json
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from itertools import compress
from operator import not_
from pathlib import Path

from imago.cli.run_columns import Columns, sort_runs
from imago.cli.run_table import common_folder, describe_images, grouped_by_seed, run_table
from imago.config.invocation import for_hydra, typed_path
from imago.config.launcher import launch_of
from imago.config.root import PROJECT_ROOT
from imago.config.setting_source import shown_path
from imago.errors import UserError
from imago.files import did_you_mean, strict
from imago.run.find import LATEST, find_run
from imago.run.overview import Overview, find_runs, true_state
from imago.run.spent import describe_totals
from imago.terminal import closed_pipe_allowed, console, fail, plain, say, shortened

__all__ = ["main", "true_state"]

LOGS = PROJECT_ROOT / "logs"


def main() -> None:
    """Command line of `ml-status`."""
    try:
        launch_of("ml-status", one_process=True)
    except UserError as error:
        fail(str(error))
    arguments, unknown = _parser().parse_known_args()
    folder: Path = arguments.folder
    name, _, value = str(folder).partition("=")
    if name in ("sort", "columns") and value:
        fail(f"{folder} is not a folder. Type ml-status --{name} {shlex.quote(value)}")
    if name == "paths.log_dir" and Path(value).is_dir():
        folder = Path(value)
    if unknown:
        fail(f"Unknown: {' '.join(unknown)}. ml-status takes a FOLDER, --sort, --columns, --all and --json.")
    if not folder.is_dir() and str(folder) != LATEST:
        meant = did_you_mean(folder, LATEST)
        fail(f"{folder} is not a folder. Type ml-status FOLDER, the paths.log_dir= of the runs, or latest.{meant}")
    with closed_pipe_allowed():
        try:
            _show(find_run(LATEST, LOGS) if str(folder) == LATEST else folder, arguments)
        except UserError as error:
            fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ml-status",
        description=(__doc__ or "").splitlines()[0],
        epilog="A column is state, epoch, step, best, acc, loss, later (the newest score by ml-eval), epsilon, "
        "started, duration, updated, checkpoint, error, a metric such as val/loss, or a setting such as lr or "
        "model.optimizer.lr.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=LOGS, help="folder with runs, or latest; default: logs")
    parser.add_argument("--sort", metavar="COLUMN", help="sort by this column, the best first; else the newest is last")
    parser.add_argument("--columns", metavar="A,B", help="show these columns instead")
    parser.add_argument(
        "--all", action="store_true", help="also show runs that never began to train, and other commands"
    )
    parser.add_argument("--json", action="store_true", help="print everything about all runs, as JSON")
    return parser


def _show(folder: Path, arguments: argparse.Namespace) -> None:
    runs = find_runs(folder)
    if arguments.json:
        if arguments.sort is not None:
            runs = sort_runs(runs, Columns(runs).named(arguments.sort))
        plain_runs = [strict(run.to_plain()) for run in runs]
        print(json.dumps(plain_runs, indent=2))  # ASCII: no control sequences for the terminal
        return
    if not runs:
        say(f"There are no runs below {folder}.")
        return
    is_shown = [arguments.all or (run.has_begun and run.task == "train") for run in runs]
    shown, hidden = list(compress(runs, is_shown)), list(compress(runs, map(not_, is_shown)))
    if not shown:
        say(f"No training has begun below {folder}.")
    else:
        _print_table(shown, folder, arguments)
    for sentence in describe_totals(runs):
        say(sentence)
    if hidden:
        say(f"Hidden: {_counted(hidden)}. Show them with --all")
    if dead := [run.folder for run in shown if run.state == "dead" and run.is_resumable]:
        word = f"resume={for_hydra(str(dead[-1]))}"
        if plain(word) == word:
            say(f"Resume a dead run with: ml-train {shlex.quote(word)}")


def _print_table(runs: list[Overview], folder: Path, arguments: argparse.Namespace) -> None:
    columns = Columns(runs)
    always, settings, optional = columns.defaults()
    if arguments.columns is not None:
        names = [name.strip() for name in arguments.columns.split(",") if name.strip()]
        always, settings = [columns.named(name) for name in names], []
        optional = []
    compared = [column for column in always if column.name in ("best", "acc", "loss")]
    if arguments.sort is not None:
        compared = [columns.named(arguments.sort)]
        runs = sort_runs(runs, compared[0])
    below = common_folder(runs, folder)
    is_sweep = arguments.columns is None and (below / "multirun.yaml").is_file()
    groups = grouped_by_seed(runs, columns.differing) if is_sweep else []
    seeds = [group for group in groups if len(group.runs) > 1]
    table, left_out = run_table(runs, below, always, settings, seeds, optional)
    say(f"Run {folder}" if [run.folder for run in runs] == [folder] else f"Runs below {below}")
    with console().capture() as drawn:
        console().print(table)
    print(drawn.get(), end="")  # rich would end the program where the reader of a pipe has left
    if (cut := next((str(name) for name in table.columns[0].cells if "*" in str(name)), None)) is not None:
        word = typed_path("ckpt_path", shown_path(below / cut))
        say(f"Names with a * can be typed as they are, in quotes: ml-eval {word}")
    if sentence := describe_images(runs, compared, columns.monitor, any_reason=arguments.sort is not None):
        say(sentence)
    if left_out:
        say(f"Settings that differ, too: {shortened(left_out)}. Choose columns with --columns")


def _counted(runs: Sequence[Overview]) -> str:
    other = sum(run.task != "train" for run in runs)
    parts = [(len(runs) - other, "never began to train"), (other, "of commands that train nothing")]
    return ", ".join(f"{count} {what}" for count, what in parts if count)


if __name__ == "__main__":
    main()

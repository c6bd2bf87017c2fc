"""Cross-validate: train a run for each fold, and pool the predictions for the images that each left out.

ml-cv experiment=digits folds=5
ml-cv data.split_file=splits.csv trainer.max_epochs=20
"""

import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from imago.cli.fold_words import FoldPlan
from imago.cli.run_columns import metric_text
from imago.cli.run_table import mean_and_deviation
from imago.cli.sweep import describe_spent
from imago.config.invocation import for_hydra
from imago.config.launcher import launch_of
from imago.definitions import STOPPING
from imago.errors import UserError
from imago.evaluation.pool import BEST, METRICS, FoldRun, Pool, as_json, read_scores
from imago.files import write_json, write_text
from imago.run import lock
from imago.terminal import closed_pipe_allowed, console, fail, say, shortened
from imago.train import main as train

HELP = """Cross-validate: train a run for each fold, and pool the predictions for the images that each left out.

Usage: ml-cv [folds=5] [KEY=VALUE ...] [GROUP=OPTION ...], with the settings of ml-train (ml-train --help)

Examples
  ml-cv experiment=digits folds=5
  ml-cv data.data_dir=PATH folds=5 data.test_ratio=0.2     holds out a test split
  ml-cv data.split_file=splits.csv                         the folds of ml-split PATH --folds 5 --output splits.csv
  ml-cv experiment=digits folds=5 hydra.sweep.dir=FOLDER   in a folder of your choice

The same words again resume what was killed or has failed, and train nothing twice: docs/cross_validation.md
"""
"""Text of `ml-cv --help`."""
CHOSEN = (
    "Each fold has chosen its epoch by {} on the images that it predicts: these scores are a little too good. Those of "
    "a test split are not"
)
METRIC_TITLES = {"acc": "accuracy", "f1": "F1 (macro)", "loss": "loss"}


def main() -> None:
    """Command line of `ml-cv`. Ends with 1 unless every fold was trained."""
    words = sys.argv[1:]
    if {"--help", "-h"} & {*words}:
        print(HELP, end="")
        return
    with closed_pipe_allowed():
        try:
            launch_of("ml-cv", one_process=True)
            train.register(words)
            is_complete = cross_validate(FoldPlan.of(words))
        except (UserError, OSError) as error:
            fail(str(error))
    if not is_complete:
        sys.exit(1)


def cross_validate(plan: FoldPlan) -> bool:
    """Train the folds that are not finished, and report all of them. Returns whether all are finished.

    Raises:
        UserError: Another process is at work there, or the folder holds something else.
        SystemExit: A signal, or words that cannot work, have ended it.
    """
    is_new = not plan.folder.exists()
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not lock.take(plan.folder):
        raise UserError(f"Another ml-cv is at work in {plan.folder}. Wait until it has ended.")
    try:
        plan.claim()
        if missing := [run.fold for run in _runs(plan) if not run.is_finished]:
            say(f"Cross-validation in {plan.folder}: fold {shortened(missing, plan.folds)} of {plan.folds}")
            _train(plan, missing)
        return all(run.is_finished for run in _runs(plan))
    finally:
        has_begun = any(run.state != "missing" for run in _runs(plan))
        if has_begun:
            report(plan)
        lock.release(plan.folder)
        if is_new and not has_begun:  # the words cannot work
            shutil.rmtree(plan.folder, ignore_errors=True)


def _train(plan: FoldPlan, folds: Sequence[int]) -> None:
    """Train `folds`. One that fails does not end the others, unless it is the first of all and did not begin to train:
    then its settings or the data are at fault."""
    if not any(run.is_finished for run in _runs(plan)):
        first, *folds = folds
        _sweep(plan, [first])
        if not FoldRun(first, plan.folder_of(first)).overview.has_begun:
            return
    if folds:
        _sweep(plan, folds)


def _sweep(plan: FoldPlan, folds: Sequence[int]) -> None:
    """Run ml-train for `folds`.

    Raises:
        SystemExit: A signal, or words that cannot work, have ended it.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPPING)}
    sys.argv = ["ml-train", *plan.sweep(folds)]
    try:
        replace(train, at_end=lambda sweep: None)()
    except SystemExit as stop:
        if stop.code != 1:
            raise
    finally:
        for number, handler in handlers.items():  # as the end of a program, the command has made it deaf to signals
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _runs(plan: FoldPlan) -> list[FoldRun]:
    return [FoldRun(fold, plan.folder_of(fold)) for fold in range(plan.folds)]


def report(plan: FoldPlan) -> None:
    """Print the table of the folds, and write `cv.json`; of all folds also the pooled predictions, and the checkpoints
    as an ensemble.

    Raises:
        UserError: The data have changed between the folds, or a file is damaged.
    """
    runs = _runs(plan)
    read_scores(runs)
    is_complete = all(run.is_finished for run in runs)
    pool = Pool.of(runs) if is_complete else None
    privacy = describe_spent([run.overview for run in runs])
    facts: dict[str, Any] = {"command": list(plan.typed), "number_of_folds": plan.folds, "privacy": privacy or None}
    facts["ensemble"] = [f"{run.folder.name}/{BEST}" for run in runs] if is_complete else None
    facts["note"] = CHOSEN.format(runs[0].overview.monitor) if runs[0].overview.monitor.startswith("val/") else None
    write_json(plan.folder / "cv.json", as_json(runs, pool, facts))
    say(f"\nCross-validation: {plan.folder}")
    console().print(_table(runs, pool))
    if pool is not None:
        low, high = pool.metrics["interval"]
        say(
            f"Pooled: {pool.metrics['n']} images, each predicted once. 95% interval of the accuracy: {low:.3f} to "
            f"{high:.3f}"
        )
        if note := facts["note"]:
            say(note)
    for run in runs:
        if not run.is_finished and run.error:
            say(f"fold {run.fold}: {run.error}")
    if privacy:
        say(privacy)
    if pool is None:
        left = [run.fold for run in runs if not run.is_finished]
        say(f"Not finished: fold {shortened(left, plan.folds)}. To resume, type the same words again.")
        return
    for file in [*pool.write(plan.folder), plan.folder / "cv.json"]:
        say(f"Written: {file}")
    _write_ensemble(plan, runs)


def _table(runs: Sequence[FoldRun], pool: Pool | None) -> Table:
    has_test = any("test" in run.scores for run in runs)
    table = Table(title="Scores of the folds, of the images that each left out")
    for column in ("fold", "state", "images", *METRIC_TITLES.values(), *["test accuracy"] * has_test):
        table.add_column(column, justify="left" if column in ("fold", "state") else "right", no_wrap=True)
    for run in runs:
        val, test = run.scores.get("val", {}), run.scores.get("test", {})
        numbers = [val.get("acc"), val.get("f1"), val.get("loss"), *[test.get("acc")] * has_test]
        table.add_row(str(run.fold), run.state, str(val.get("n", "")), *map(metric_text, numbers))
    table.add_section()
    scores = [[run.scores.get("val", {}).get(name) for run in runs] for name in METRICS]
    scores += [[run.scores.get("test", {}).get("acc") for run in runs]] * has_test
    table.add_row("mean ± sd", "", "", *map(mean_and_deviation, scores))
    if pool is not None:
        own = pool.metrics
        pooled = [metric_text(own["acc"]), metric_text(own["f1"]), metric_text(own["cross_entropy"])]
        table.add_row("pooled", "", str(own["n"]), *pooled, *[""] * has_test)
    return table


def _write_ensemble(plan: FoldPlan, runs: Sequence[FoldRun]) -> None:
    """Write the checkpoints as `ml-inference` takes them, and print the command; none where a run kept no best one."""
    if not all((run.folder / BEST).is_file() for run in runs):
        return
    word = f"ckpt_path=[{','.join(for_hydra(str(run.folder / BEST)) for run in runs)}]"
    file = plan.folder / "ensemble.txt"
    write_text(file, f"{word}\n")
    typed = f'"$(cat {shlex.quote(str(file))})"'
    say(f"Next:\n  ml-inference {typed} source=PHOTOS")
    if all("test" in run.scores for run in runs):
        say(f"  ml-inference {typed} split=test")


if __name__ == "__main__":
    main()

"""Cross-validate: train a run for each fold, and pool the predictions for the images that each left out.

ml-cv experiment=digits folds=5
ml-cv data.split_file=splits.csv trainer.max_epochs=20
"""

import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from imago.cli.fold_words import MOST_NAMED, FoldPlan
from imago.config.launcher import launch_of
from imago.definitions import STOPPING
from imago.errors import UserError
from imago.run import lock
from imago.terminal import closed_pipe_allowed, fail, say, shortened
from imago.train import main as train

if TYPE_CHECKING:
    from imago.evaluation.pool import FoldRun

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
        _train_and_report(plan)
        return all(run.is_finished for run in _runs(plan))
    finally:
        lock.release(plan.folder)
        if is_new and not _has_begun(plan):  # the words cannot work
            shutil.rmtree(plan.folder, ignore_errors=True)


def _train_and_report(plan: FoldPlan) -> None:
    """Train the folds that are not finished, and report all, also after a signal."""
    try:
        if missing := [run.fold for run in _runs(plan) if not run.is_finished]:
            say(f"Cross-validation in {plan.folder}: fold {shortened(missing, MOST_NAMED)} of {plan.folds}")
            _train(plan, missing)
    finally:
        if _has_begun(plan):
            from imago.evaluation.cv_report import report

            report(plan.folder, _runs(plan), plan.typed)


def _has_begun(plan: FoldPlan) -> bool:
    return any(run.state != "missing" for run in _runs(plan))


def _train(plan: FoldPlan, folds: Sequence[int]) -> None:
    """Train `folds`. One that fails does not end the others, unless it is the first of all and did not begin to train:
    then its settings or the data are at fault."""
    if not any(run.is_finished for run in _runs(plan)):
        first, *folds = folds
        _sweep(plan, [first])
        if not _runs(plan)[first].overview.has_begun:
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


def _runs(plan: FoldPlan) -> "list[FoldRun]":
    from imago.evaluation.pool import FoldRun

    return [FoldRun(fold, plan.folder_of(fold)) for fold in range(plan.folds)]


if __name__ == "__main__":
    main()

"""What a person sees at the end of a run: scores beside the baseline, where things are, what to type next."""

import logging
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich import get_console
from rich.table import Table

from imago.config import for_hydra, typed_overrides
from imago.run_folder import RunFolder
from imago.scoring import Score
from imago.training import Result

log = logging.getLogger(__name__)

ONLY_FOR_TRAINING = ("ckpt_path", "name", "train", "test", "report.splits", "trainer.max_epochs")


def show_results(result: Result, run: RunFolder, seed: int) -> None:
    """Prints the table, the run folder and the next commands; warns where the baseline is not beaten."""
    console = get_console()
    if result.scores:
        console.print(_table(result))
    for name, score in result.scores.items():
        log.debug("Score on %s: %s", name, {k: v for k, v in score.metrics.items() if k != "per_class"})
    _warn_about_baseline(result.scores)
    lines = [f"Run folder: {_relative(run.path)}", "Next:", *(f"  {line}" for line in _next(result, run, seed))]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def show_predictions(score: Score, path: Path, rows: int = 10) -> None:
    """Prints the first rows, the accuracy, and where the file is."""
    console = get_console()
    table = Table(title=f"Predictions for {score.split}, the first {min(rows, len(score.paths))} of {len(score.paths)}")
    for column in ("path", "label", "prediction", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="ellipsis")
    best = score.log_probabilities.max(axis=1)
    for image, label, prediction, log_probability in zip(
        score.paths, score.labels, score.predictions, best, strict=True
    ):
        if table.row_count == rows:
            break
        names = (score.class_names[label], score.class_names[prediction])
        table.add_row(image, *names, f"{math.exp(log_probability):.4f}")
    console.print(table)
    console.print(f"accuracy {score.metrics['acc']:.4f}", highlight=False)
    console.print(f"Written: {_relative(path)}", soft_wrap=True, highlight=False, markup=False)


def _table(result: Result) -> Table:
    caption = "baseline: the accuracy of always answering with the most frequent class of train"
    table = Table(title=f"Scores of {result.weights}", caption=caption, min_width=len(caption))
    for column in ("split", "images", "accuracy", "baseline", "F1 (macro)", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for name, score in result.scores.items():
        metrics = score.metrics
        label = name if score.split == name else f"{name} (on {score.split})"
        numbers = (metrics[key] for key in ("acc", "baseline_acc", "f1", "loss"))
        table.add_row(label, str(metrics["n"]), *(f"{number:.4f}" for number in numbers))
    return table


def _warn_about_baseline(scores: dict[str, Score]) -> None:
    for name, score in {score.split: score for score in scores.values()}.items():
        accuracy, baseline = score.metrics["acc"], score.baseline
        if name != "train" and accuracy <= baseline:
            what = "is not above that of always answering with the most frequent class"
            log.warning("The accuracy on %s (%.4f) %s (%.4f)", name, accuracy, what, baseline)


def _next(result: Result, run: RunFolder, seed: int) -> list[str]:
    python, script = _interpreter(), Path(sys.argv[0])
    commands = []
    installed = script.name == "ml-train"
    if result.checkpoint is not None and (installed or script.name == "train.py"):
        typed = [f"seed={seed}" if each.startswith("seed=") else each for each in typed_overrides()]  # null drew one
        kept = [each for each in typed if each.lstrip("+~").partition("=")[0] not in ONLY_FOR_TRAINING]
        words = [f"ckpt_path={for_hydra(_relative(result.checkpoint))}", *kept]
        evaluate = "ml-eval" if installed else f"{python} {shlex.quote(_relative(script.with_name('eval.py')))}"
        commands.append(f"{evaluate} {shlex.join(words)}")
    if (run.path / "tensorboard").is_dir():
        commands.append(f"{python} -m tensorboard.main --logdir {shlex.quote(_relative(run.path))}")
    return commands


def _interpreter() -> str:
    """What starts this Python again: the short word only where it means the same."""
    return "python" if shutil.which("python") == sys.executable else _relative(Path(sys.executable))


def _relative(path: Path) -> str:
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

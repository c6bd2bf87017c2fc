"""Console output at the end of a run: scores beside the baseline, where things are, what to type next."""

import json
import logging
import os
import shlex
import shutil
import sys
from itertools import islice
from pathlib import Path

from rich.table import Table
from rich.text import Text

from imago.config.invocation import for_hydra
from imago.data.sources import UNKNOWN
from imago.evaluation.calibration import Calibration, describe_calibration
from imago.evaluation.evaluate import Result
from imago.evaluation.rows import prediction_rows
from imago.evaluation.score import Predictions, Score
from imago.files import strict
from imago.report.content import SCORED_AGAIN
from imago.report.page import refresh_report
from imago.run.folder import RunFolder, now
from imago.terminal import console

log = logging.getLogger(__name__)


def show_results(result: Result, run: RunFolder) -> None:
    """Print the table, the run folder and the next commands. Warn if the baseline is not beaten."""
    if result.scores:
        console().print(_table(result))
    for name, score in result.scores.items():
        if score.no_class:
            of = f"of the {len(score.labels)} images in class folders; {score.no_class} others are not in one"
            console().print(f"{name}: accuracy {score.metrics['acc']:.4f} {of}", highlight=False)
        if "calibrated" in score.metrics:
            console().print(f"{name}: {describe_calibration(score.metrics['calibrated'])}", highlight=False)
    for name, score in result.scores.items():
        log.debug("Score on %s: %s", name, {k: v for k, v in score.metrics.items() if k != "per_class"})
    _warn_about_baseline(result.scores)
    commands = _next(result, run)
    lines = [
        f"Run folder: {_relative(run.path)}",
        *(["Next:"] if commands else []),
        *(f"  {line}" for line in commands),
    ]
    for line in lines:
        console().print(line, soft_wrap=True, highlight=False, markup=False)


def note_scored_again(result: Result, run: RunFolder) -> None:
    """Add time, folder and numbers to `scored_again.jsonl` in the run whose checkpoint was scored."""
    if result.checkpoint is None or result.checkpoint.parent.name != "checkpoints":
        return
    of_run = result.checkpoint.parent.parent
    if not (of_run / "status.json").is_file() or of_run.absolute() == run.path.absolute():
        return
    rows = [
        {"time": now(), "folder": str(run.path), "checkpoint": result.checkpoint.name, "asked": name}
        | {key: score.metrics[key] for key in ("split", "n", "acc", "f1", "loss")}
        for name, score in result.scores.items()
    ]
    path = of_run / SCORED_AGAIN
    if path.is_symlink() or (path.exists() and not path.is_file()):  # the folder may be a stranger's
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(strict(row)) + "\n" for row in rows)
        refresh_report(of_run)
    except OSError as error:  # another user's folder
        log.info("The score could not be added to %s: %s", of_run, error)


def show_predictions(answers: Predictions, path: Path, rows: int, calibration: Calibration | None) -> None:
    """Print the first rows, the accuracy if labels are known, and where the file is."""
    if rows:
        shown = list(islice(prediction_rows(answers, calibration), rows))
        table = Table(title=f"The first {len(shown)} of {len(answers.paths)} predictions")
        for column in ("path", "label", "prediction", "probability"):
            table.add_column(column, justify="right" if column == "probability" else "left", overflow="ellipsis")
        for row in shown:
            said = row["prediction"] or "unreadable"
            prediction = row["prediction"]
            known = "" if prediction is None else row.get(f"prob_{prediction}", row.get("prob_1"))
            probability = "" if prediction is None else f"{known:.4f}"
            table.add_row(*(Text(word) for word in (row["path"], row["label"] or "", said, probability)))
        console().print(table)
    if answers.accuracy is not None:
        labelled = int((answers.is_good & (answers.labels != UNKNOWN)).sum())
        of = f" of the {labelled} images whose label is a class" if labelled < len(answers.paths) else ""
        console().print(f"accuracy {answers.accuracy:.4f}{of}", highlight=False)
    if calibration is not None:
        accepted = calibration.accepts(calibration.apply(answers.log_probabilities))[answers.is_good]
        console().print(f"{int(accepted.sum())} accepted, {int((~accepted).sum())} flagged for review", highlight=False)
    show_written(path)


def show_written(path: Path) -> None:
    """Print where something was written."""
    console().print(f"Written: {_relative(path)}", soft_wrap=True, highlight=False, markup=False)


def show_calibration(calibration: Calibration, val: Score, path: Path) -> None:
    """Print the calibration that was fitted on val."""
    lines = [f"Fitted on the {len(val.labels)} images of {val.split}: temperature {calibration.temperature:.4f}"]
    if calibration.why_not is not None:
        lines[0] = f"Probabilities are not changed (temperature 1): {calibration.why_not}"
    if held := calibration.held_out:
        lines.append(
            f"On held-out fifths of {val.split}: cross-entropy {held['cross_entropy_before']:.4f} -> "
            f"{held['cross_entropy_after']:.4f}, calibration error {held['ece_before']:.4f} -> {held['ece_after']:.4f}"
        )
    lines += [
        f"Threshold for {calibration.target_accuracy:.1%} accuracy: {_or_none(calibration.threshold)}",
    ]
    for line in lines:
        console().print(line, soft_wrap=True, highlight=False, markup=False)
    show_written(path)


def _or_none(threshold: float | None) -> str:
    return f"{threshold:.4f}" if threshold is not None else "no threshold reaches it"


def _table(result: Result) -> Table:
    caption = "baseline: the majority-class baseline (always the most frequent class of train)"
    table = Table(title=f"Scores of {result.weights}", caption=caption, min_width=len(caption))
    columns = {"accuracy": "acc", "top-5": "top5_acc", "baseline": "baseline_acc", "F1 (macro)": "f1", "loss": "loss"}
    if not any("top5_acc" in score.metrics for score in result.scores.values()):
        del columns["top-5"]
    for column in ("split", "images", *columns):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for name, score in result.scores.items():
        metrics = score.metrics
        label = name if score.split == name else f"{name} (on {score.split})"
        numbers = [metrics[key] for key in columns.values()]
        table.add_row(label, str(metrics["n"]), *(f"{number:.4f}" for number in numbers))
    return table


def _warn_about_baseline(scores: dict[str, Score]) -> None:
    for name, score in {score.split: score for score in scores.values()}.items():
        accuracy, baseline = score.metrics["acc"], score.baseline
        if name != "train" and accuracy <= baseline < 1:
            what = "is not above the majority-class baseline"
            log.warning("The accuracy on %s (%.4f) %s (%.4f)", name, accuracy, what, baseline)


def _next(result: Result, run: RunFolder) -> list[str]:
    python, script = _interpreter(), Path(sys.argv[0])
    commands = []
    installed = script.name == "ml-train"
    if result.checkpoint is not None and (installed or script.name == "train.py"):
        is_best = result.checkpoint == run.path / "checkpoints" / "best.ckpt"
        word = shlex.quote(f"ckpt_path={for_hydra(_relative(run.path if is_best else result.checkpoint))}")
        evaluate = "ml-eval" if installed else f"{python} {shlex.quote(_relative(script.with_name('eval.py')))}"
        commands.append(f"{evaluate} {word}")
    if (run.path / "tensorboard").is_dir():
        commands.append(f"{python} -P -m tensorboard.main --logdir {shlex.quote(_relative(run.path))}")
    return commands


def _interpreter() -> str:
    """Command that starts this Python again: the short word only if it means the same interpreter."""
    return "python" if shutil.which("python") == sys.executable else _relative(Path(sys.executable))


def _relative(path: Path) -> str:
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

"""Console output at the end of a run: scores beside the baseline, where things are, what to type next."""

import json
import logging
import shlex
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rich.style import Style
from rich.table import Table
from rich.text import Text

from imago.data.sources import UNKNOWN
from imago.evaluation.calibration import (
    Calibration,
    describe_calibration,
    describe_guarantee,
    describe_looks,
    describe_threshold,
)
from imago.evaluation.conformal import least_images, small_classes
from imago.evaluation.evaluate import Result
from imago.evaluation.next_commands import next_commands, relative
from imago.evaluation.outputs import LABELS_CHECKED
from imago.evaluation.rows import prediction_rows
from imago.evaluation.score import Predictions, Score
from imago.evaluation.temperature import Ints
from imago.files import strict
from imago.report.label_errors import confident_errors, knows_enough
from imago.report.page import refresh_report
from imago.report.split import wilson
from imago.report.thumbnails import MOST_LABEL_ERRORS
from imago.run.folder import RunFolder, now
from imago.run.overview import SCORED_AGAIN
from imago.terminal import console, counted, shortened

log = logging.getLogger(__name__)

MOST_WARNINGS, MOST_COUNTS = 10, 10
NO_BOUND = ("infinite", "unknown")
"""Epsilons of training without noise, and of one that no accountant can bound."""
BELOW_BASELINE = "is not above the majority-class baseline"


def show_results(result: Result, run: RunFolder, quiet: bool = False, is_private: bool = False) -> None:
    """Print warnings, scores, places and next commands of a run; of a sweep's job a line, as the rest comes at its end.

    Warns if the baseline is not beaten, unless `quiet`. Such a warning of an earlier scoring of the run is removed.
    The checkpoint that an ml-eval scores may be `is_private`.
    """
    if result.scores:
        run.warnings[:] = [text for text in run.warnings if BELOW_BASELINE not in text]
    is_job = run.invocation.sweep_dir is not None
    if is_job:
        accuracies = ", ".join(f"{_label(name, s)} {s.metrics['acc']:.4f}" for name, s in result.scores.items())
        ended = "pruned" if result.is_pruned else "trained"
        _print(f"{relative(run.path)}: {f'accuracy of {result.weights}: {accuracies}' if accuracies else ended}")
    else:
        _repeat_warnings(run.warnings, run.path)
        _show_scores(result)
    for name, score in result.scores.items():
        numbers = ", ".join(f"{key} {score.metrics[key]:.4f}" for key in ("acc", "f1", "loss"))
        log.debug("Score on %s: %s of %s", name, numbers, counted(len(score.labels), "image"))
    if not quiet:
        _warn_about_baseline(result.scores)
    show_privacy(run, "Publish the output of ml-export, not the run folder (docs/privacy.md)")
    if unprotected := run.sections.get("Strategy", {}).get("not protected"):
        _print(f"Not protected: {unprotected}: ", run.path / "reports" / "privacy.md")
    if is_job:
        return
    _print(f"Run folder: {relative(run.path)}")
    if result.checkpoint is not None:
        _print(f"Checkpoint: {relative(result.checkpoint)}")
    _print("Report: ", run.path / "report.html")  # written when the run has ended
    if label_errors := describe_label_errors(result, run.path):
        _print(label_errors)
    is_spending = is_private or "epsilon" in run.sections.get("Strategy", {})
    if result.trend is not None and not is_spending:
        _print(f"At the end {result.trend}: more training may help")
    show_next(next_commands(result, run, is_private))


def _show_scores(result: Result) -> None:
    if result.scores:
        console().print(_table(result))
        intervals = {name: wilson(score.metrics["acc"], score.metrics["n"]) for name, score in result.scores.items()}
        shown = ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in intervals.items())
        _print(f"95% intervals of the accuracy: {shown}")
    for name, score in result.scores.items():
        if score.no_class:
            of = f"of the {counted(len(score.labels), 'image')} in class folders (outside of them: {score.no_class})"
            console().print(f"{name}: accuracy {score.metrics['acc']:.4f} {of}", highlight=False)
        if "calibrated" in score.metrics:
            _print(f"{_label(name, score)}: {describe_calibration(score.metrics['calibrated'])}")


def show_next(commands: Sequence[str]) -> None:
    """Print the commands to type next."""
    for line in ["Next:", *(f"  {command}" for command in commands)] if commands else []:
        _print(line)


def show_privacy(run: RunFolder, advice: str) -> None:
    """Print what private training has spent, and `advice` where that is bounded; nothing without such training."""
    spent = run.sections.get("Strategy", {})
    if {"epsilon", "delta", "unit"} <= spent.keys():
        epsilon = spent["epsilon"] if isinstance(spent["epsilon"], str) else f"{spent['epsilon']:.4f}"
        budget = f"epsilon {epsilon}, delta {spent['delta']:g}, unit: {spent['unit']}"
        no_bound = "There is no guarantee: the weights are as private as the images"
        _print(f"Privacy: {budget}. {no_bound if epsilon in NO_BOUND else advice}")
        log.debug("Privacy: %s", budget)  # for the log


def _repeat_warnings(warnings: Sequence[str], folder: Path) -> None:
    """Print the warnings that the run has logged: by now they may be far above."""
    if not warnings:
        return
    _print("Warnings:")
    for text in warnings[:MOST_WARNINGS]:
        _print(textwrap.indent(text, "    ").replace("    ", "  - ", 1))
    if len(warnings) > MOST_WARNINGS:
        _print(f"  and {len(warnings) - MOST_WARNINGS} more, in {relative(folder / 'summary.txt')}")


def _print(text: str, path: Path | None = None) -> None:
    """Print a line that the terminal wraps; `path` is appended, as a link where the terminal knows links (OSC 8)."""
    line = Text(text)
    if path is not None:
        line.append(relative(path), Style(link=path.absolute().as_uri()))
    console().print(line, soft_wrap=True, highlight=False)


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


def show_predictions(
    answers: Predictions, rows: int, calibration: Calibration | None, seconds: float, split: str = ""
) -> None:
    """Print the first rows, the accuracy if labels are known, the images of each class, and the speed.

    The table names the `split`, if there is one.
    """
    if rows:
        shown = list(islice(prediction_rows(answers, calibration), rows))
        title = f"The first {len(shown)} of {counted(len(answers.paths), 'prediction')}"
        table = Table(title=f"{title} of {split}" if split else title)
        for column in ("path", "label", "prediction", "probability"):
            table.add_column(column, justify="right" if column == "probability" else "left", overflow="ellipsis")
        for row in shown:
            said = row["prediction"] or "unreadable"
            probability = "" if row["probability"] is None else f"{row['probability']:.4f}"
            table.add_row(*(Text(word) for word in (row["path"], row["label"] or "", said, probability)))
        console().print(table)
    if answers.accuracy is not None:
        labelled = int((answers.is_good & (answers.labels != UNKNOWN)).sum())
        those = f" of the {counted(labelled, 'image')} with a label that is a class"
        of = those if labelled < len(answers.paths) else ""
        _print(f"accuracy {answers.accuracy:.4f}{of}")
    if calibration is not None:
        accepted = calibration.accepts(calibration.apply(answers.log_probabilities))[answers.is_good]
        flagged = f"{int(accepted.sum())} accepted, {int((~accepted).sum())} flagged for review"
        _print(f"{flagged} ({describe_guarantee(calibration)})")
    counts = np.bincount(answers.predictions[answers.is_good], minlength=len(answers.class_names))
    predicted = [(name, int(count)) for name, count in zip(answers.class_names, counts, strict=True) if count]
    if predicted:
        predicted.sort(key=lambda pair: -pair[1])
        _print(f"Predicted: {shortened((f'{name} {count}' for name, count in predicted), MOST_COUNTS)}")
    total, bad = len(answers.paths), int((~answers.is_good).sum())
    unreadable = f"; {bad} could not be read" if bad else ""
    speed = f"{seconds:.1f} s, {total / max(seconds, 1e-9):.1f} images per second"
    _print(f"{counted(total, 'image')} in {speed}{unreadable}")


def show_written(path: Path, replaced: bool = False) -> None:
    """Print where something was written, or that it `replaced` a file."""
    _print("Replaced: " if replaced else "Written: ", path)


def show_calibration(calibration: Calibration, val: Score, labels: Ints, path: Path) -> None:
    """Print the calibration whose temperature was fitted on val, and threshold and sets on images with `labels`."""
    lines = [
        f"Fitted on the {counted(len(val.labels), 'image')} of {val.split}: temperature {calibration.temperature:.4f}"
    ]
    if calibration.why_not is not None:
        lines[0] = f"Probabilities are not changed (temperature 1): {calibration.why_not}"
    if held := calibration.held_out:
        lines.append(
            f"On held-out fifths of {val.split}: cross-entropy {held['cross_entropy_before']:.4f} -> "
            f"{held['cross_entropy_after']:.4f}, calibration error {held['ece_before']:.4f} -> {held['ece_after']:.4f}"
        )
    lines += filter(None, [describe_threshold(calibration), describe_looks(calibration)])
    if calibration.threshold is not None:
        lines.append("It is the column accepted of ml-inference ckpt_path=RUN calibrated=true")
    names = val.class_names
    if small := small_classes(labels, len(names), calibration.coverage):
        listed = shortened((f"{names[label]} ({count})" for label, count in small.items()), MOST_COUNTS)
        least = least_images(calibration.coverage)
        together = (
            "share a threshold" if sum(small.values()) >= least else "are in every set: together they are too few"
        )
        lines.append(f"Conformal sets: {listed} have fewer than {least} images, and {together}")
    for line in lines:
        _print(line)
    show_written(path)


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
        numbers = [metrics[key] for key in columns.values()]
        table.add_row(_label(name, score), str(metrics["n"]), *(f"{number:.4f}" for number in numbers))
    return table


def _label(name: str, score: Score) -> str:
    return name if score.split == name else f"{name} (on {score.split})"


def describe_label_errors(result: Result, folder: Path) -> str:
    """Sentence with the numbers of labels that the report marks as contradicted; empty without any.

    A network that is not far above the baseline knows too little to contradict a label. The report lists further
    images, whose labels are less sure than usual.
    """
    counts = {
        score.split: int(confident_errors(score.labels, score.doubts).sum())
        for score in result.scores.values()
        if score.split in LABELS_CHECKED
        and score.metrics["acc"] > score.baseline
        and knows_enough(score.labels, score.doubts, score.margins)
        and (folder / f"reports/images_{score.asked}.json").is_file()
    }
    listed = ", ".join(f"{counted(count, 'image')} of {split}" for split, count in counts.items() if count)
    if not listed:
        return ""
    is_cut = max(counts.values()) > MOST_LABEL_ERRORS
    them = "it" if sum(counts.values()) == 1 else f"{MOST_LABEL_ERRORS} of them" if is_cut else "them"
    marked = f'marks {them} as "contradicted", and lists more labels to check in {" and ".join(counts)}'
    how = "data.relabel= or data.exclude= corrects labels"
    if result.was_trained:
        how = f"ml-visualise mode=labels run={shlex.quote(str(folder))} shows them one by one"
    return f"Possibly mislabelled: {listed}. The report {marked}; {how}"


def _warn_about_baseline(scores: dict[str, Score]) -> None:
    for name, score in {score.split: score for score in scores.values()}.items():
        accuracy, baseline = score.metrics["acc"], score.baseline
        if name != "train" and accuracy <= baseline < 1:
            log.warning("The accuracy on %s (%.4f) %s (%.4f)", name, accuracy, BELOW_BASELINE, baseline)

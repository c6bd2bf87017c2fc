"""Files of a score in the run folder: tables, numbers and figures."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from imago.data.folds import labels_digest
from imago.data.images import Images
from imago.data.module import ImageDataModule
from imago.evaluation.rows import captions, prediction_rows, write_rows
from imago.evaluation.score import Predictions, Score
from imago.files import UnreadableError, atomic_write, log_write_errors, read_json, write_json, write_text
from imago.report.content import LARGEST
from imago.report.gallery import gallery_figure
from imago.report.label_ranking import ranking_file, write_ranking
from imago.report.plots import confusion_matrix_figure, reliability_figure, save
from imago.report.tensorboard import SCORES, show_in_tensorboard
from imago.report.thumbnails import noteworthy_images, samples, thumbnail
from imago.run.folder import PNG_WITH_TITLE, PlotOptions, RunFolder, now
from imago.run.provenance import environment
from imago.terminal import counted

SHEET = 96  # images of a contact sheet
LABELS_CHECKED = ("train", "val")
"""Splits with a list of possibly mislabelled images. Images of test that a network finds hard are kept."""


def write_reports(
    score: Score,
    images: Images,
    folder: Path,
    loggers: Sequence[Logger],
    step: int,
    weights: str,
    pictures: bool = True,
    plots: PlotOptions = PNG_WITH_TITLE,
) -> None:
    """Write `reports/` and `plots/` of one score of `images` below `folder`, and show them in TensorBoard.

    `weights` describes the weights that were scored. Without `pictures`, no image is shown.
    """
    reports = folder / "reports"
    split = score.asked
    title = split if score.split == split else f"{split} (scored on {score.split})"
    absent = f"\nnot in this split: {', '.join(score.absent)}\n" if score.absent else ""
    report = f"{title}: {counted(len(score.labels), 'image')}, {weights}\n\n{score.report()}{absent}"
    write_text(reports / f"classification_report_{split}.txt", report)
    write_json(reports / f"classification_report_{split}.json", score.report(as_dict=True))
    write_json(reports / f"metrics_{split}.json", score.metrics)
    write_predictions(score, reports / f"predictions_{split}.csv")
    scored = images if len(images) == len(score.paths) else images.select(score.indices)
    if pictures:
        write_json(reports / f"images_{split}.json", noteworthy_images(score, scored, score.split in LABELS_CHECKED))
    if pictures and split in LABELS_CHECKED:
        write_ranking(score, ranking_file(folder, split))
    _write_confusion(score, reports / f"confusion_matrix_{split}.csv")
    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if boards or plots.formats:
        for name, figure in (
            ("confusion_matrix", confusion_matrix_figure(score.confusion, score.class_names, title)),
            ("reliability", reliability_figure(score.metrics["reliability"], score.metrics["ece"], title)),
        ):
            show_in_tensorboard(loggers, f"{name}_{split}", figure, step)
            save(figure, folder / "plots" / f"{name}_{split}", plots)
    if not boards:
        return
    for logger in boards:
        with log_write_errors("TensorBoardLogger"):
            logger.experiment.add_text(f"classification_report/{split}", f"```\n{report}\n```", step)
    if not pictures:
        return
    first = [thumbnail(scored, index) for index in range(min(len(scored), SHEET // 6))]
    sheet = gallery_figure(
        first, captions(score, range(len(first))), f"{title}: the first {len(first)} of {counted(len(scored), 'image')}"
    )
    show_in_tensorboard(loggers, f"predictions_{split}", sheet, step)


def write_facts(
    folder: Path, data: ImageDataModule, goes_on: bool = False, pictures: bool = True, command: str | None = None
) -> None:
    """Write what a report says of data and environment, before training; with `pictures`, also some train images.

    If the run is resumed (`goes_on`), its first environment is kept, and this one is added as `resumed`. `command`
    makes the whole run; None is the command line of this process.
    """
    reports = folder / "reports"
    _write_data(folder, data)
    if pictures:
        shown = next(split for split in ("train", "val", "test") if split in data.sets.splits)
        write_json(reports / "samples.json", samples(data.split(shown), data.class_names))
    file, here = reports / "environment.json", environment() | {"time": now()}
    here |= {"command": command} if command is not None else {}
    if goes_on and file.is_file():
        with suppress(UnreadableError):
            first = read_json(file, {"*": object}, LARGEST)
            now_typed = {"command": here["command"]}
            here = first | now_typed | {"resumed": [*first.get("resumed", []), here]}
    write_json(file, here)


def note_data(run: RunFolder, data: ImageDataModule) -> None:
    """Update summary and report with what is known of the data now."""
    run.sections["Data"] |= {f"note {number}": note for number, note in enumerate(data.notes, 1)}
    _write_data(run.path, data)


def _write_data(folder: Path, data: ImageDataModule) -> None:
    left_out: dict[str, Any] = {"skipped": data.skipped, "excluded": data.sets.excluded}
    records = {"val": data.sets.drawn_val, "test": data.sets.drawn_test}
    left_out["drawn"] = [split for split, record in records.items() if record is not None and "seed" in record]
    left_out["stamps"] = {name: images.stamp()[:16] for name, images in data.sets.splits.items() if name != "train"}
    if "fold" in (data.sets.drawn_val or {}):
        left_out["labels"] = labels_digest(data.sets)
    if data.sets.corrections:
        left_out["corrections"] = data.sets.corrections
    folder_read = {"folder": str(Path(data.sets.root).resolve())}
    facts = data.facts | folder_read | {"class_names": data.class_names, "notes": data.notes} | left_out
    write_json(folder / "reports" / "data.json", facts)


def show_hyperparameters(loggers: Sequence[Logger], metrics: Mapping[str, Mapping[str, Any]], step: int) -> None:
    """Fill TensorBoard's tab `hparams`: the settings beside `acc`, `f1` and `loss` of each split."""
    final = {
        f"{SCORES}/{split}_{name}": values[name] for split, values in metrics.items() for name in ("acc", "f1", "loss")
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and final:
            logger.log_hyperparams(dict(logger.hparams), final, step)


def _write_confusion(score: Score, path: Path) -> None:
    """Write the counts: a row per true class, a column per predicted class."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *score.class_names])
        writer.writerows([name, *row] for name, row in zip(score.class_names, score.confusion.tolist(), strict=True))


def write_predictions(score: Score, path: Path) -> None:
    """Write a row per image: label, prediction, loss and class probabilities."""
    write_rows(prediction_rows(score), path)


def write_gallery(answers: Predictions, images: Images, path: Path) -> None:
    """Write a contact sheet of the least certain images, with their names, classes, predictions and probabilities."""
    confidence = np.where(answers.is_good, answers.log_probabilities.max(axis=1), np.inf)  # unreadable ones come last
    shown = np.argsort(confidence, kind="stable")[:SHEET].tolist()
    total = counted(len(images), "image")
    number = total if len(shown) == len(images) else f"{len(shown)} of {total}"
    pictures = [thumbnail(images, index) for index in shown]
    save(gallery_figure(pictures, captions(answers, shown), f"{number}, lowest confidence first"), path)

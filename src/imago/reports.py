"""What is left of a score: tables, numbers and pictures in the run folder."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from imago.plots import confusion_matrix_figure, drawn, save, show_in_tensorboard
from imago.scoring import Score
from imago.writing import replacing, write_json, write_text


def write_reports(score: Score, folder: Path, loggers: Sequence[Logger], step: int, weights: str) -> None:
    """Writes `reports/` and `plots/` of one score below `folder`, and shows them in TensorBoard.

    `weights` says in words which were scored.
    """
    reports = folder / "reports"
    split = score.asked
    title = split if score.split == split else f"{split} (scored on {score.split})"
    absent = f"\nnot in this split: {', '.join(score.absent)}\n" if score.absent else ""
    report = f"{title}: {len(score.labels)} images, {weights}\n\n{score.report()}{absent}"
    write_text(reports / f"classification_report_{split}.txt", report)
    write_json(reports / f"classification_report_{split}.json", score.report(as_dict=True))
    write_json(reports / f"metrics_{split}.json", score.metrics)
    write_predictions(score, reports / f"predictions_{split}.csv")
    picture = drawn(confusion_matrix_figure(score.confusion, score.class_names, title))
    show_in_tensorboard(loggers, f"confusion_matrix/{split}", picture, step)
    save(picture, folder / "plots" / f"confusion_matrix_{split}.png")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(f"classification_report/{split}", f"```\n{report}\n```", step)


def write_predictions(score: Score, path: Path) -> None:
    """Writes a CSV with a row per image: label, prediction, loss and the probability of every class."""
    probabilities = np.exp(score.log_probabilities)
    names = np.array(score.class_names)
    columns = ["index", "path", "label", "prediction", "correct", "loss", *(f"prob_{n}" for n in score.class_names)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        rows = zip(score.paths, score.labels, score.predictions, score.losses, probabilities, strict=True)
        for index, (image, label, prediction, loss, row) in enumerate(rows):
            correct = int(label == prediction)
            writer.writerow([index, image, names[label], names[prediction], correct, float(loss), *row.tolist()])

"""The row of each image in a table of predictions: its label, its answer and its probabilities, calibrated or not."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imago.data.sources import UNKNOWN
from imago.evaluation.calibration import Calibration
from imago.evaluation.score import Predictions, Score
from imago.files import atomic_write, strict
from imago.report.gallery import caption_of
from imago.report.plots import shorten

MANY_CLASSES, BEST = 100, 5
"""Number of classes from which on predictions have the best five of an image instead of all probabilities."""


BYTES_OF_A_NUMBER = 22


def prediction_rows(answers: Score | Predictions, calibration: Calibration | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row per image, with plain values; None for unknown ones.

    `probability` is that of the predicted class. `prob_NAME` follow for each class or, with many classes, `class_1`
    and `prob_1` to 5 of the most likely. With a `calibration`, the probabilities are calibrated, and each row has
    `accepted` (0: leave it to a person) and `set`, the classes of the conformal set. The last columns are `warning`,
    for an image that is damaged inside, and `error`, for one that could not be read.
    """
    log_probabilities = answers.log_probabilities
    extra: list[list[Any]] = []
    if calibration is not None:
        log_probabilities = calibration.apply(log_probabilities)
        names = np.array(answers.class_names)
        sets = [" | ".join(names[row]) for row in calibration.sets(log_probabilities)]
        extra = [calibration.accepts(log_probabilities).astype(int).tolist(), sets]
    bad, warnings = (answers.bad, answers.warnings) if isinstance(answers, Predictions) else ([], [])
    columns = zip(answers.paths, answers.labels.tolist(), answers.predictions.tolist(), strict=True)
    for index, (path, label, prediction) in enumerate(columns):
        reason = bad[index] if bad else None
        known = label != UNKNOWN
        row = log_probabilities[index]
        yield {
            "index": index,
            "path": path,
            "label": answers.class_names[label] if known else None,
            "prediction": None if reason else answers.class_names[prediction],
            "correct": int(label == prediction) if known and not reason else None,
            "loss": -float(row[label]) if known and not reason else None,
            "probability": None if reason else float(np.exp(row[prediction])),
            **{key: None if reason else value for key, value in _probabilities(answers.class_names, row).items()},
            **{
                name: None if reason else column[index]
                for name, column in zip(("accepted", "set"), extra, strict=False)
            },
            "warning": (warnings[index] or None) if warnings else None,
            "error": reason or None,
        }


def _probabilities(class_names: Sequence[str], log_probabilities: NDArray[np.float64]) -> dict[str, Any]:
    if len(class_names) < MANY_CLASSES:
        return {
            f"prob_{name}": value for name, value in zip(class_names, np.exp(log_probabilities).tolist(), strict=True)
        }
    best = np.argsort(-log_probabilities, kind="stable")[:BEST].tolist()
    names = {f"class_{place}": class_names[index] for place, index in enumerate(best, 1)}
    return names | {f"prob_{place}": float(np.exp(log_probabilities[index])) for place, index in enumerate(best, 1)}


def bytes_of_predictions(images: int, class_names: Sequence[str]) -> int:
    """Approximate size of the table of predictions for so many images, in bytes."""
    longest = max(map(len, class_names))
    numbers = len(class_names) if len(class_names) < MANY_CLASSES else BEST
    return images * (BYTES_OF_A_NUMBER * (numbers + 3) + longest * (2 + (BEST if numbers == BEST else 0)) + 60)


def write_rows(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Write CSV, or JSON lines if `path` ends in `.jsonl`. None becomes an empty field, or null."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(strict(row), ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.writer(file)
        for row in rows:
            if row["index"] == 0:
                writer.writerow(row)
            writer.writerow(row.values())


def captions(answers: Score | Predictions, indices: Iterable[int]) -> list[tuple[str, bool | None]]:
    """Caption of each of these images (its name, class, prediction and probability), and whether it is right."""
    bad = answers.bad if isinstance(answers, Predictions) else [""] * len(answers.paths)
    names = answers.class_names
    texts: list[tuple[str, bool | None]] = []
    for index in indices:
        path, label, prediction = answers.paths[index], int(answers.labels[index]), int(answers.predictions[index])
        if bad[index]:
            texts.append((f"{shorten(Path(path).name)}\nunreadable", None))
            continue
        probability = float(np.exp(answers.log_probabilities[index].max()))
        known = label != UNKNOWN
        text = caption_of(path, names[label] if known else None, names[prediction], probability)
        texts.append((text, label == prediction if known else None))
    return texts

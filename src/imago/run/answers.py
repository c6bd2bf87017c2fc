"""The answers of a run on the images of a split: `reports/predictions_<split>.csv`. The folder may be a stranger's."""

import csv
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imago.errors import MissingFileError, UserError
from imago.files import MEGABYTE, UnreadableError
from imago.run.overview import Overview

LARGEST = 512 * MEGABYTE
COLUMNS = ("path", "label", "prediction", "probability")
CSV_ERRORS = (csv.Error, ValueError)


@dataclass(frozen=True)
class Answers:
    """What a network has answered for each image of a split.

    Args:
        paths: Names of the images, in the order of the file.
        labels: Class of each image.
        predictions: Answer for each image; empty for one that could not be read.
        probabilities: Probability of each answer.
        stamp: Fingerprint of the images, as the run has it in `status.json`; None if it is not known.
    """

    paths: list[str]
    labels: list[str]
    predictions: list[str]
    probabilities: list[float]
    stamp: str | None = None

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each image by its path."""
        return {path: place for place, path in enumerate(self.paths)}

    @property
    def unreadable(self) -> int:
        """Number of images that could not be read, which count as wrong."""
        return self.predictions.count("")

    @property
    def right(self) -> int:
        """Number of right answers."""
        return sum(label == answer for label, answer in zip(self.labels, self.predictions, strict=True))

    def __len__(self) -> int:
        return len(self.paths)


def read_answers(run: Overview, split: str) -> Answers:
    """Read the answers of a run, or of a folder of `ml-eval`.

    Raises:
        MissingFileError: The split was not scored.
        UnreadableError: The file is damaged, or has no labels.
    """
    path = run.folder / "reports" / f"predictions_{split}.csv"
    try:
        columns = _columns(path)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{run.folder} has no predictions for {split} ({path.name}). Score it, and compare the folder of the "
            f"score: ml-eval ckpt_path={run.folder} split={split}"
        ) from error
    except CSV_ERRORS as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error
    if not columns["path"]:
        raise UnreadableError(f"{path} has no rows.")
    if missing := sum(not label for label in columns["label"]):
        raise UnreadableError(f"{path}: {missing} of {len(columns['path'])} images have no label to compare with.")
    answers = Answers(
        columns["path"],
        columns["label"],
        columns["prediction"],
        [_number(text) for text in columns["probability"]],
        run.stamp(run.scored_split(split), len(columns["path"])),
    )
    if len(answers.index) < len(answers):
        raise UnreadableError(f"{path} lists {len(answers) - len(answers.index)} images twice.")
    return answers


def _columns(path: Path) -> dict[str, list[str]]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, newline="", encoding="utf-8", errors="surrogateescape") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            raise ValueError("it is no regular file, or too large")
        rows = csv.reader(file)
        head = next(rows, [])
        if absent := [name for name in COLUMNS if name not in head]:
            raise ValueError(f"it has no column {absent[0]}")
        places = [head.index(name) for name in COLUMNS]
        columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
        lists = list(columns.values())
        for row in rows:
            if len(row) != len(head):
                raise ValueError(f"line {rows.line_num} has {len(row)} fields, not {len(head)}")
            for column, place in zip(lists, places, strict=True):
                column.append(row[place])
    return columns


def _number(text: str) -> float:
    """Probability of an answer; 0 where there is none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


def fingerprint_doubt(first: Answers, second: Answers, classes: tuple[Any, Any]) -> str:
    """Why the fingerprints of two runs on images with the same paths say nothing; empty if they can be compared.

    They depend on the order of the images, and on that of the classes.
    """
    if None in (first.stamp, second.stamp):
        return "not every run has one"
    if first.stamp == second.stamp:
        return ""
    if first.paths != second.paths:
        return "the images stand in another order"
    return "the classes stand in another order" if classes[0] != classes[1] else ""


def check_same_images(first: Answers, second: Answers, names: tuple[str, str], classes: tuple[Any, Any]) -> list[int]:
    """Place in `second` of each image of `first`.

    `names` are what the two are called in messages, `classes` their lists of class names, None if unknown.

    Raises:
        UserError: They are of other images, or of other labels of the same images.
    """
    a, b = names
    shared = [path for path in first.paths if path in second.index]
    if len(shared) < max(len(first), len(second)):
        raise UserError(
            f"{a} and {b} were scored on different images: {len(first)} and {len(second)}, of which {len(shared)} have "
            f"the same path. Score both on the same ones, and compare those folders: ml-eval ckpt_path={a} "
            "data.data_dir=PATH"
        )
    places = [second.index[path] for path in first.paths]
    changed = [
        path for path, label, at in zip(first.paths, first.labels, places, strict=True) if label != second.labels[at]
    ]
    if changed:
        raise UserError(
            f"{a} and {b} have different labels for {len(changed)} of {len(first)} images, such as {changed[0]}. Score "
            f"both with the same ones, and compare those folders: ml-eval ckpt_path={a} data.relabel=FILE"
        )
    if first.stamp != second.stamp and not fingerprint_doubt(first, second, classes):
        raise UserError(
            f"{a} and {b} were scored on different images with the same paths: their fingerprints are {first.stamp} "
            f"and {second.stamp}. Score both on the same ones, and compare those folders: ml-eval ckpt_path={a} "
            "data.data_dir=PATH"
        )
    return places

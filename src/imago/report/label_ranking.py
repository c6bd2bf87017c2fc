"""The images of a split by how likely their label is wrong: `label_errors_<split>.csv`."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import UserError
from imago.files import atomic_write
from imago.report.content import LARGEST
from imago.report.label_errors import confident_errors, knows_enough, likeliest_other, nearest, possible_label_errors
from imago.report.thumbnails import NEIGHBOURS, Answers

MOST_RANKED = 2000
COLUMNS = ("path", "label", "suggestion", "contradicted", "margin")
NEAR = tuple(f"neighbour_{number}" for number in range(1, NEIGHBOURS + 1))


@dataclass(frozen=True)
class Ranked:
    """An image that may be mislabelled: its path, its label and the class that it may have, and similar images."""

    path: str
    label: str
    suggestion: str
    neighbours: list[str] = field(default_factory=list)


def ranking_file(folder: Path, split: str) -> Path:
    """Path of the ranking of a split in a run folder."""
    return folder / "reports" / f"label_errors_{split}.csv"


def write_ranking(answers: Answers, file: Path) -> None:
    """Write a row for each image that a person may look at, the likeliest wrong label first; up to 2,000, or a fifth
    of the images. A network that knows too little to doubt a label ranks none."""
    rows = list(_rows(answers)) if knows_enough(answers.labels, answers.doubts, answers.margins) else []
    with (
        atomic_write(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
    ):
        csv.writer(table).writerows([(*COLUMNS, *NEAR), *rows])


def _rows(answers: Answers) -> Iterator[tuple[Any, ...]]:
    labels, doubts, names = answers.labels, answers.doubts, answers.class_names
    is_contradicted, others = confident_errors(labels, doubts), likeliest_other(labels, doubts)
    order = possible_label_errors(labels, doubts, 0, MOST_RANKED, answers.margins)
    near = nearest(answers.features, order, NEIGHBOURS) if answers.features is not None else np.zeros((len(order), 0))
    for i, row in zip(order.tolist(), near.astype(int).tolist(), strict=True):
        margin = "" if answers.margins is None or np.isnan(answers.margins[i]) else f"{answers.margins[i]:.5f}"
        paths = [answers.paths[j] for j in row]
        filled = [*paths, *[""] * (NEIGHBOURS - len(paths))]
        yield answers.paths[i], names[labels[i]], names[others[i]], int(is_contradicted[i]), margin, *filled


def read_ranking(file: Path) -> list[Ranked]:
    """Rows of `write_ranking`.

    Raises:
        UserError: The file is not one.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise KeyError(file)
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            return [
                Ranked(row["path"], row["label"], row["suggestion"], [row[name] for name in NEAR if row[name]])
                for row in csv.DictReader(table)
            ]
    except (KeyError, csv.Error) as error:
        raise UserError(f"{file} is damaged: it is not what Imago writes there.") from error

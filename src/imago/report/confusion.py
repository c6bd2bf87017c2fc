"""Confusions of a split, for the page: a table of few classes, a picture of many, pairs and groups."""

import base64
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imago.files import read_text
from imago.report.clusters import clustered_order, confused_groups, shares_of
from imago.report.content import LARGEST

MOST_NUMBERS = 20  # classes up to which the matrix is a table of numbers
CONFUSIONS = 50  # pairs, the most frequent ones
GROUPS, NAMES_OF_GROUP = 24, 30
WIDTH, LARGEST_CELL, SMALLEST_NAME = 1000, 14, 10  # pixels of the picture and its cells; of a cell that has a name
MOST_CELLS = 20_000  # counts that the page holds, so that pointing at the picture shows them
COLOUR = (0, 114, 178)


def confusions_of(folder: Path, split: str) -> dict[str, Any]:
    """What the page shows of `confusion_matrix_<split>.csv`.

    `table` for up to 20 classes, `picture` for more (None for the other kind), `pairs` with the most frequent
    confusions, and `groups` of classes that are confused with each other.
    """
    names, counts = read_counts(folder, split)
    few = len(names) <= MOST_NUMBERS
    return {
        "table": _table(names, counts) if names and few else None,
        "picture": _picture(names, counts) if not few else None,
        "pairs": _pairs(names, counts),
        "groups": _groups(names, counts),
    }


def read_counts(folder: Path, split: str) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and counts (classes, classes); none if the file is missing or damaged."""
    nothing: tuple[list[str], NDArray[np.int64]] = ([], np.zeros((0, 0), np.int64))
    path = folder / "reports" / f"confusion_matrix_{split}.csv"
    if not path.is_file():
        return nothing
    try:
        header, *rows = list(csv.reader(read_text(path, LARGEST).splitlines()))
        counts = np.array([[int(value) for value in row[1:]] for row in rows], dtype=np.int64)
    except (ValueError, OverflowError, csv.Error):
        return nothing
    names = header[1:]
    return (names, counts) if names and counts.shape == (len(names),) * 2 and counts.min() >= 0 else nothing


def _table(names: list[str], counts: NDArray[np.int64]) -> dict[str, Any]:
    rows = zip(names, counts.tolist(), shares_of(counts).tolist(), strict=True)
    return {
        "names": names,
        "rows": [{"name": name, "cells": list(zip(row, part, strict=True))} for name, row, part in rows],
    }


def _picture(names: list[str], counts: NDArray[np.int64]) -> dict[str, Any]:
    """Matrix in the order of the clusters: a PNG with a pixel per cell, whose opacity grows with the share."""
    order = clustered_order(counts)
    ordered = counts[np.ix_(order, order)]
    opacity = np.round(255 * np.sqrt(shares_of(ordered))).astype(np.uint8)  # a share of 2% is to be seen
    content = io.BytesIO()
    _one_colour(opacity).save(content, format="png", optimize=True, transparency=bytes(range(256)))
    rows, columns = np.nonzero(ordered)
    cells = np.stack([rows, columns, ordered[rows, columns]], axis=1)
    side = max(1, min(LARGEST_CELL, WIDTH // len(names)))
    return {
        "image": f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}",
        "names": [names[index] for index in order],
        "cells": cells.flatten().tolist() if len(cells) <= MOST_CELLS else [],
        "totals": ordered.sum(axis=1).tolist(),
        "side": side,
        "named": side >= SMALLEST_NAME,
    }


def _one_colour(opacity: NDArray[np.uint8]) -> Image.Image:
    """Picture whose pixels differ in opacity alone, so that the page behind it may be light or dark."""
    picture = Image.frombytes("P", opacity.shape[::-1], opacity.tobytes())
    picture.putpalette(bytes(COLOUR) * 256)
    return picture


def _pairs(names: list[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    chosen = np.argsort(-wrong[rows, columns], kind="stable")[:CONFUSIONS]
    totals = counts.sum(axis=1)
    return [
        {"label": names[i], "prediction": names[j], "n": int(wrong[i, j]), "share": float(wrong[i, j] / totals[i])}
        for i, j in zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True)
    ]


def _groups(names: list[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Groups with the share of their images that is right, and that is right up to the group."""
    groups = []
    for group in confused_groups(counts)[:GROUPS]:
        images = max(int(counts[group].sum()), 1)
        inside = counts[np.ix_(group, group)]
        groups.append(
            {
                "names": [names[index] for index in group[:NAMES_OF_GROUP]],
                "more": max(0, len(group) - NAMES_OF_GROUP),
                "n": int(counts[group].sum()),
                "right": float(np.trace(inside) / images),
                "within": float(inside.sum() / images),
            }
        )
    return groups

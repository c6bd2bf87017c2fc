"""Contact sheets: images with their classes and answers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from imago.report.content import describe_answer
from imago.report.plots import NotebookFigure, shorten
from imago.report.thumbnails import picture_of

RIGHT, WRONG, UNKNOWN = "#1a7f5a", "#b3261e", "#c4c9cf"
COLUMNS = 8
CELL, CAPTION = 1.5, 0.62  # inches


def gallery_figure(pictures: Sequence[Image.Image], captions: Sequence[tuple[str, bool | None]], title: str) -> Figure:
    """Contact sheet of square cells with captions below; the border says whether an answer is right, if that is known.

    A caption is a text of up to three lines, and whether the answer is right; None if there is no label.
    """
    columns = min(max(len(pictures), 1), COLUMNS)
    rows = max(math.ceil(len(pictures) / columns), 1)
    width, height = max(columns * (CELL + 0.15) + 0.15, 4.0), rows * (CELL + CAPTION) + 0.65
    figure = NotebookFigure(figsize=(width, height))
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    for number, (picture, (text, right)) in enumerate(zip(pictures, captions, strict=False)):
        left = 0.15 + (number % columns) * (CELL + 0.15)
        bottom = height - 0.65 - (number // columns) * (CELL + CAPTION) - CELL
        axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
        _fill(axes, picture, UNKNOWN if right is None else RIGHT if right else WRONG)
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    known = {right for _, right in captions if right is not None}
    marks = [
        Patch(facecolor="none", edgecolor=colour, linewidth=2, label=label)
        for colour, label, is_there in ((RIGHT, "right", True in known), (WRONG, "wrong", False in known))
        if is_there
    ]
    if marks:
        figure.legend(
            handles=marks,
            loc="upper center",
            bbox_to_anchor=(0.5, 1 - 0.27 / height),
            ncols=2,
            frameon=False,
            fontsize=8,
        )
    return figure


def caption_of(path: str, label: str | None, prediction: str, probability: float) -> str:
    """Caption of three lines: folder and name, true class, answer with its probability."""
    name = shorten("/".join(PurePath(path).parts[-2:]), 26)
    if label is None:
        return f"{name}\n{shorten(prediction)} {probability:.1%}"
    answer = describe_answer(shorten(label), shorten(prediction), probability)
    return f"{name}\n" + (answer.replace(" taken for ", " taken for\n") if len(answer) > 26 else answer)


def thumbnails_figure(noteworthy: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> Figure:
    """Figure of the mistakes and the unsure answers in `images_<split>.json`."""
    entries = [*noteworthy["mistakes"], *noteworthy["unsure"]]
    pictures = [picture_of(entry["image"]) for entry in entries]
    captions = [
        (
            caption_of(entry["path"], entry["label"], entry["prediction"], entry["probability"]),
            entry["label"] == entry["prediction"],
        )
        for entry in entries
    ]
    what = f"{split}: the {len(noteworthy['mistakes'])} worst mistakes, then the least certain answers"
    return gallery_figure(pictures, captions, what)


def _fill(axes: Axes, picture: Image.Image, colour: str) -> None:
    """Show the picture in the middle of a square with a border of this colour."""
    longest = max(picture.size)
    x, y = (1 - picture.width / longest) / 2, (1 - picture.height / longest) / 2
    axes.imshow(picture, extent=(x, 1 - x, y, 1 - y), aspect="auto")
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], facecolor="#f3f4f6")
    axes.spines[:].set(color=colour, linewidth=2)

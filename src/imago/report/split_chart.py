"""Chart of the classes of a split file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imago.report.plots import MOST_NAMES, NotebookFigure, save, shorten


def split_chart(counts: Mapping[str, Mapping[str, int]], class_names: Sequence[str], path: Path) -> list[Path]:
    """Draw the numbers of images of each class as bars, divided by split, to `path`; `counts` maps splits to classes to
    numbers. Returns the written files."""
    size = len(class_names)
    height = 0.28 if size <= MOST_NAMES else 0.02  # inches of a class
    figure = NotebookFigure(figsize=(8, min(1.6 + height * size, 40)), layout="constrained")
    axes = figure.subplots()
    ends = np.zeros(size)
    for split, own in counts.items():
        widths = np.array([own.get(name, 0) for name in class_names])
        axes.barh(range(size), widths, left=ends, height=0.8, label=f"{split}: {widths.sum()}")
        ends += widths
    axes.set_yticks(range(size), [shorten(name) for name in class_names]) if size <= MOST_NAMES else axes.set_yticks([])
    axes.invert_yaxis()
    axes.set(xlabel="images")
    axes.legend(fontsize=8)
    figure.suptitle("Images per class and split")
    return save(figure, path)

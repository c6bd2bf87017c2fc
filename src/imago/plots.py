"""Pictures of a run. Figures are made without pyplot: no window, no global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from imago.writing import replacing

Picture = NDArray[np.uint8]
MOST_NUMBERS = 20  # classes up to which each cell shows its number
MOST_NAMES = 120  # classes up to which the axes show names


def confusion_matrix_figure(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Counts, and shares of each true class; `counts[i, j]` are images of class i taken for class j."""
    size = len(class_names)
    side = min(max(0.5 * size, 4.5), 9.0) if size <= MOST_NUMBERS else min(0.14 * size + 5, 20)
    figure = Figure(figsize=(2 * side + 1.5, side + 0.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(counts / counts.sum(axis=1, keepdims=True))
    _matrix(left, counts, class_names, "images", "{:d}", max(counts.max(), 1))
    _matrix(right, shares, class_names, "share of the true class", "{:.2f}", 1.0)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Losses and the other metrics over the epochs; `history` has a row per epoch, with "epoch"."""
    names = {key for row in history for key in row if key.startswith(("train/", "val/"))}
    kinds = sorted({name.partition("/")[2] for name in names if not name.endswith("_best")})
    kinds = [kind for kind in kinds if "/" not in kind]  # single criterions are in metrics.jsonl
    kinds.sort(key=lambda kind: kind != "loss")
    columns = min(max(len(kinds), 1), 3)
    rows = max(math.ceil(len(kinds) / columns), 1)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(kinds) :]:
        unused.set_axis_off()
    for axes, kind in zip(panels, kinds, strict=False):
        for split, style in (("train", "o--"), ("val", "o-")):
            points = [(row["epoch"], row[f"{split}/{kind}"]) for row in history if f"{split}/{kind}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=3, label=split)
        axes.set(title=kind, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def drawn(figure: Figure) -> Picture:
    """The figure as uint8 (height, width, 3); drawing is what takes the time, so do it once."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save(picture: Picture, path: Path) -> None:
    """Writes a PNG."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png")


def show_in_tensorboard(loggers: Sequence[Logger], tag: str, picture: Picture, step: int) -> None:
    """Adds the picture to every TensorBoard logger."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")


def _matrix(
    axes: Axes, values: NDArray[Any], class_names: Sequence[str], title: str, number: str, greatest: float
) -> None:
    size = len(class_names)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=greatest)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if size <= MOST_NAMES:
        font = 9 if size <= MOST_NUMBERS else 6
        crowded = size * max(map(len, class_names)) > 60
        axes.set_xticks(range(size), class_names, rotation=90 if crowded else 0, fontsize=font)
        axes.set_yticks(range(size), class_names, fontsize=font)
    if size <= MOST_NUMBERS:
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            colour = "white" if value > greatest / 2 else "black"
            axes.text(column, row, number.format(value), ha="center", va="center", color=colour, fontsize=8)

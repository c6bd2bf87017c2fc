"""Figures of a run, made without pyplot: no window, no global state."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from imago.files import atomic_write
from imago.randomness import seeded_scope
from imago.report.clusters import clustered_order, shares_of
from imago.report.curves import learning_rates
from imago.run.folder import PNG_WITH_TITLE, PlotOptions

Picture = NDArray[np.uint8]
MOST_NUMBERS = 20  # classes up to which each cell shows its number
DPI = 200
MOST_NAMES = 120  # classes up to which the axes show names


class NotebookFigure(Figure):
    """Figure that notebooks show, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI)
        return content.getvalue()


def confusion_matrix_figure(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Counts (classes, classes), and fractions of each true class; `counts[i, j]`: class i taken for j.

    Of more than 20 classes only the fractions are shown, with the classes that are confused side by side.
    """
    size = len(class_names)
    few = size <= MOST_NUMBERS
    shares = shares_of(counts)
    if not few:
        order = clustered_order(counts)
        shares, class_names = shares[np.ix_(order, order)], [class_names[index] for index in order]
    names = [shorten(name) for name in class_names] if size <= MOST_NAMES else [""]
    side = min(max(0.5 * size, 4.5), 9.0) if few else min(0.12 * size + 4, 16)
    room = 0.65 + max(map(len, names)) * (0.085 if few else 0.06)  # inches for names and label
    crowded = size * max(map(len, names)) > 60  # names of columns are vertical
    bottom, right = room if crowded else 0.65, 0.6 if few else 1.0
    panels: list[tuple[NDArray[Any], str, str, float]] = [(shares, "share of the true class", "{:.2f}", 1.0)]
    if few:
        panels.insert(0, (counts, "images", "{:d}", max(counts.max(), 1)))
    width, height = len(panels) * (room + side + right), bottom + side + 0.8
    figure = NotebookFigure(
        figsize=(width, height)
    )  # margins are set here: matplotlib's layout engines take ten times as long
    figure.suptitle(title)
    for number, (values, what, form, greatest) in enumerate(panels):
        left = room + number * (side + room + right)
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _matrix(axes, values, what if few else "", form, greatest)
        if len(names) == size:
            axes.set_xticks(range(size), names, rotation=90 if crowded else 0, fontsize=9 if few else 7)
            axes.set_yticks(range(size), names, fontsize=9 if few else 7)
        if not few:
            bar = figure.add_axes(((left + side + 0.1) / width, bottom / height, 0.1 / width, side / height))
            figure.colorbar(axes.images[0], cax=bar, label=what)
    return figure


def shorten(name: str, most: int = 20) -> str:
    """Shorten to at most `most` characters, the last an ellipsis. matplotlib would read `$` as mathematics, and draws
    no bytes that are not text."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def curves_figure(history: Sequence[Mapping[str, float]], best_epoch: int | None = None) -> Figure:
    """Figure of losses, metrics and learning rate over the epochs; `history` has a row per epoch, with "epoch".

    `best_epoch` counts from 1 and is marked in all panels.
    """
    names = {key for row in history for key in row if key.startswith(("train/", "val/"))}
    kinds = sorted({name.partition("/")[2] for name in names if not name.endswith("_best")})
    kinds = [kind for kind in kinds if "/" not in kind]  # single criterions are in metrics.jsonl
    kinds.sort(key=lambda kind: kind != "loss")
    panels_of: dict[str, list[tuple[str, str, list[tuple[float, float]]]]] = {
        kind: [
            (split, style, [(row["epoch"] + 1, row[f"{split}/{kind}"]) for row in history if f"{split}/{kind}" in row])
            for split, style in (("train", "o--"), ("val", "o-"))
        ]
        for kind in kinds
    }
    panels_of["learning rate"] = [
        (name, style, [(row["epoch"] + 1, rate) for row, rate in zip(history, rates, strict=True) if rate is not None])
        for (name, rates), style in zip(learning_rates(history).items(), ("o-C2", "o--C2"), strict=False)
    ]
    if not any(points for _, _, points in panels_of["learning rate"]):
        del panels_of["learning rate"]
    columns = min(max(len(panels_of), 1), 3)
    rows = max(math.ceil(len(panels_of) / columns), 1)
    figure = NotebookFigure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(panels_of) :]:
        unused.set_axis_off()
    for axes, (kind, curves) in zip(panels, panels_of.items(), strict=False):
        for name, style, points in curves:
            if points:
                best = dict(points).get(best_epoch) if best_epoch is not None else None
                label = name if best is None else f"{name}: {best:.4g} at epoch {best_epoch}"
                axes.plot(*zip(*points, strict=True), style, markersize=4, label=label)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.5", linestyle=":", zorder=0)
        limits = (history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
        axes.set(ylabel=shorten(kind, 60), xlabel="epoch", xlim=limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def reliability_figure(bins: Sequence[Mapping[str, Any]], ece: float, title: str) -> Figure:
    """Figure of accuracy against confidence, and of the number of images; `bins` as in `metrics_<split>.json`."""
    figure = NotebookFigure(figsize=(4.5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    lows, widths = [entry["low"] for entry in bins], [entry["high"] - entry["low"] for entry in bins]
    upper.bar(lows, [entry["accuracy"] for entry in bins], widths, align="edge", edgecolor="white", label="accuracy")
    upper.plot([0, 1], [0, 1], "k--", linewidth=1, label="perfect calibration")
    upper.plot(
        [entry["confidence"] for entry in bins], [entry["accuracy"] for entry in bins], "o", markersize=4, color="C1"
    )
    figure.suptitle(f"{title}: ECE {ece:.4f}")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="lower right")
    lower.bar(lows, [entry["n"] for entry in bins], widths, align="edge", edgecolor="white", color="C7")
    lower.set(xlabel="confidence", ylabel="images")
    return figure


def augmentations_figure(data: Any, samples: int, seed: int, versions: int = 6) -> Figure:
    """Figure of train images as they are, as they are scored, and as they are trained on in the first epochs.

    `data` is an ImageDataModule; the images are drawn with `seed`.
    """
    images, size = data.split("train"), data.image_size
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:samples].tolist()
    columns = ["as it is", "scored", *(f"epoch {epoch + 1}" for epoch in range(versions))]
    figure = NotebookFigure(figsize=(1.6 * len(columns), 1.75 * len(chosen) + 0.3), layout="constrained")
    panels = figure.subplots(len(chosen), len(columns), squeeze=False)
    for axes, title in zip(panels[0], columns, strict=True):
        axes.set_title(title, fontsize=9)
    for row, index in zip(panels, chosen, strict=True):
        pixels = images.read(index)
        shown = [pixels.float() / 255, _seen(data.eval_transform, pixels, size, index, 0)]
        for epoch in range(versions):
            with seeded_scope("augmentation", data.seed, epoch, index):
                shown.append(_seen(data.train_transform, pixels, size, index, epoch))
        for axes, image in zip(row, shown, strict=True):
            grey = image.shape[0] == 1
            axes.imshow(
                (image[0] if grey else image.permute(1, 2, 0)).numpy(), cmap="gray" if grey else None, vmin=0, vmax=1
            )
            axes.set_axis_off()
        row[0].text(
            0, -0.06, shorten(data.class_names[images.labels[index]]), transform=row[0].transAxes, fontsize=8, va="top"
        )
    return figure


def _seen(transform: Any, pixels: Any, size: int, index: int, epoch: int) -> Any:
    """Image after all stages, with its normalisation undone: float (channels, height, width) in [0, 1]."""
    image = transform([pixels], size, index, epoch)["image"][0]
    if (step := transform.normalisation) is not None:
        image = image * torch.tensor(step.std).view(-1, 1, 1) + torch.tensor(step.mean).view(-1, 1, 1)
    return (image / 255 if image.dtype == torch.uint8 else image).clamp(0, 1)


def drawn(figure: Figure) -> Picture:
    """Render the figure at `DPI` as uint8 (height, width, 3). Rendering is what takes the time, so do it once."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a class name in another script
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save(figure: Figure, path: Path, options: PlotOptions = PNG_WITH_TITLE) -> list[Path]:
    """Write the figure in each format of `options`, with that suffix. Returns the paths."""
    if not options.title:
        figure.suptitle("")
    return [_save(figure, path.with_suffix(f".{form}"), form, options.title) for form in options.formats]


def _save(figure: Figure, path: Path, form: str, title: bool) -> Path:
    room: dict[str, Any] = {} if title else {"bbox_inches": "tight"}  # else the room of the title stays empty
    with atomic_write(path) as temporary:
        if form == "png" and title:
            Image.fromarray(drawn(figure)).save(temporary, format="png", dpi=(DPI, DPI))
        else:
            with warnings.catch_warnings(), rc_context({"pdf.fonttype": 42}):  # TrueType, as publishers ask for
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure.savefig(temporary, format=form, dpi=DPI, **room)
    return path


def _matrix(axes: Axes, values: NDArray[Any], title: str, form: str, greatest: float) -> None:
    few = len(values) <= MOST_NUMBERS
    axes.imshow(values, cmap="Blues", norm=PowerNorm(1.0 if few else 0.5, vmin=0, vmax=greatest))
    order = "" if few else " (confused classes side by side)"
    axes.set(title=title, xlabel=f"predicted{order}", ylabel=f"true{order}")
    if few:
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            colour = "white" if value > greatest / 2 else "black"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=8)

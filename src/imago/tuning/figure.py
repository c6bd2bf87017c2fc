"""The figure of a range test."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imago.files import atomic_write
from imago.tuning.range_test import Curve


def write_curve(curve: Curve, suggestion: float | None, file: Path) -> None:
    """Write a PNG of the losses, single and smoothed, by learning rate, with the suggestion."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, color="0.75", linewidth=1, label="loss of the step")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", linestyle="--", label=f"suggestion: {suggestion:g}")
    axes.set_xscale("log")
    top = max(curve.smoothed[: max(1, len(curve.smoothed) - 2)])
    axes.set_ylim(0.9 * min(curve.smoothed), 1.15 * top)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train loss")
    axes.legend()
    with atomic_write(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)

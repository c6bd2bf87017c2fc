"""Pictures of a search, and one page with all of them that opens offline."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imago.files import atomic_write, write_text
from imago.masking import masked
from imago.search.board import WORDS, count_states, format_value
from imago.search.settings import SearchSettings, sign_of
from imago.search.space import Choice, Interval, Space
from imago.search.study import TrialRecord, best_of
from imago.terminal import plain

DPI = 150
FEWEST = 4
"""Completed trials from which on importances are estimated."""
BEST, DONE, PRUNED = "#b3331d", "#1f5fa8", "#a0a0a0"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em}"
    "img{max-width:100%}table{border-collapse:collapse;font-size:14px}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}tr.best{font-weight:bold}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}img{background:#fff}}"
)


def write_pictures(folder: Path, settings: SearchSettings, space: Space, records: Sequence[TrialRecord]) -> Path:
    """Write history, importances and slices as PNGs to `plots/`, and `search.html` with them; returns the page."""
    names = {key: key.lstrip("+") for key in space.params}
    done = [record for record in records if record.values]
    figures = {"history": history_figure(settings, records)}
    if len(done) >= FEWEST and len(names) > 1:
        figures["importances"] = importances_figure(settings, space, done, names)
    figures["slices"] = slices_figure(settings, space, records, names)
    images: dict[str, bytes] = {}
    for name, figure in figures.items():
        content = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(content, format="png", dpi=DPI)
        images[name] = content.getvalue()
        with atomic_write(folder / "plots" / f"{name}.png") as temporary:
            temporary.write_bytes(images[name])
    write_text(folder / "search.html", _page(settings, names, records, images))
    return folder / "search.html"


def history_figure(settings: SearchSettings, records: Sequence[TrialRecord]) -> Figure:
    """Value of each trial, and the best so far: a panel for each objective."""
    count = len(settings.objectives)
    figure = Figure(figsize=(8, 3.6 * count), layout="constrained")
    for index, (name, direction) in enumerate(zip(settings.objectives, settings.directions, strict=True)):
        axes = figure.add_subplot(count, 1, index + 1)
        done = [record for record in records if record.values]
        pruned = [
            record for record in records if record.state == "pruned" and record.last is not None and not record.values
        ]
        if pruned and count == 1:
            last = np.array([record.last for record in pruned], dtype=float)
            label = "pruned, at its last value"
            axes.scatter([r.number + 1 for r in pruned], last, marker="x", s=22, color=PRUNED, label=label)
        numbers, values = [r.number + 1 for r in done], np.array([r.values[index] for r in done])
        axes.scatter(numbers, values, s=22, color=DONE, label="completed")
        running = sign_of(direction) * np.maximum.accumulate(sign_of(direction) * values)
        axes.step(numbers, running, where="post", color=BEST, label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel(name)
        axes.legend(loc="best", fontsize=8)
        axes.grid(alpha=0.25)
    return figure


def importances_figure(
    settings: SearchSettings, space: Space, done: Sequence[TrialRecord], names: Mapping[str, str]
) -> Figure:
    """How much each setting matters for the first objective."""
    shares = importances(space, done)
    order = sorted(shares, key=lambda key: shares[key])
    figure = Figure(figsize=(8, 0.9 + 0.45 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([names[key] for key in order], [shares[key] for key in order], color=DONE)
    axes.bar_label(bars, [f" {shares[key]:.2f}" for key in order])
    axes.set_xlim(0, 1.12)
    axes.set_xlabel(f"share of the differences in {settings.objectives[0]}, of {len(done)} completed trials")
    return figure


def importances(space: Space, done: Sequence[TrialRecord]) -> dict[str, float]:
    """Setting -> its share of what a random forest, fitted to the trials, loses when its values are shuffled."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.array([[_number(kind, record.params[key]) for key, kind in space.params.items()] for record in done])
    values = np.array([record.values[0] for record in done])
    if np.ptp(values) == 0:
        return dict.fromkeys(space.params, 0.0)
    forest = RandomForestRegressor(100, random_state=0).fit(columns, values)
    result: Any = permutation_importance(forest, columns, values, n_repeats=10, random_state=0)
    means: NDArray[np.float64] = np.clip(result.importances_mean, 0, None)
    total = float(means.sum()) or 1.0
    return {key: float(mean) / total for key, mean in zip(space.params, means, strict=True)}


def slices_figure(
    settings: SearchSettings, space: Space, records: Sequence[TrialRecord], names: Mapping[str, str]
) -> Figure:
    """Value of the first objective by each setting; later trials are darker."""
    columns = min(3, len(space.params))
    rows = math.ceil(len(space.params) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 3.3 * rows), layout="constrained")
    done = [record for record in records if record.values]
    for index, (key, kind) in enumerate(space.params.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        places = [_place(kind, record.params[key]) for record in done]
        shades: dict[str, Any] = {"c": [r.number + 1 for r in done], "cmap": "Blues", "vmin": -len(records)}
        axes.scatter(places, [r.values[0] for r in done], **shades, edgecolors=DONE, linewidths=0.5, s=28)
        if isinstance(kind, Choice):
            axes.set_xticks(range(len(kind.texts)), [text[:14] for text in kind.texts.values()], rotation=20)
            axes.set_xlim(-0.5, len(kind.texts) - 0.5)
        elif kind.is_log:
            axes.set_xscale("log")
        axes.set_xlabel(names[key].rpartition(".")[2])
        axes.set_ylabel(settings.objectives[0] if index % columns == 0 else "")
        axes.grid(alpha=0.25)
    return figure


def _place(kind: Choice | Interval, value: Any) -> float:
    return float(list(kind.texts).index(value)) if isinstance(kind, Choice) else float(value)


def _number(kind: Choice | Interval, value: Any) -> float:
    place = _place(kind, value)
    return math.log(place) if isinstance(kind, Interval) and kind.is_log else place


def _page(
    settings: SearchSettings, names: Mapping[str, str], records: Sequence[TrialRecord], images: Mapping[str, bytes]
) -> str:
    """The page: pictures inside, no script, nothing that is loaded."""
    best = best_of(records, settings.sign)
    head = ["trial", "state", *settings.objectives, *names.values(), "epochs", "folder"]
    rows = "".join(_row(record, settings, names, record is best) for record in records)
    pictures = "".join(
        f'<h2>{name.capitalize()}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for name, image in images.items()
    )
    title = escape(f"Search {settings.study}: {count_states(records)}")
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1>{pictures}<h2>Trials</h2><table><tr>{cells}</tr>{rows}</table></html>\n"
    )


def _row(record: TrialRecord, settings: SearchSettings, names: Mapping[str, str], is_best: bool) -> str:
    values = [f"{value:.4f}" for value in record.values] or [""] * len(settings.objectives)
    params = [format_value(record.params.get(key, "")) for key in names]
    known = [str(record.attributes.get(key) or "") for key in ("epochs", "folder")]
    cells = [str(record.number + 1), WORDS[record.state], *values, *params, *known]
    shown = "".join(f"<td>{escape(plain(masked(cell)))}</td>" for cell in cells)
    return f"<tr{' class=best' if is_best else ''}>{shown}</tr>"

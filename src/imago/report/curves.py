"""Curves of a run in the unit square, for the page."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

FIRST = ("loss", "acc")
FOLDED = ("balanced_acc", "f1", "precision", "recall")  # nearly the curve of acc
MOST_CURVES = 9
LEARNING_RATE = "learning rate"
Row = Mapping[str, float | None]


def curves_of(history: Sequence[Row], best_epoch: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Curves that are `shown` at once, and those that are `folded` away.

    `history` has a row per epoch, with "epoch"; `best_epoch` counts from 1 and is marked. A curve has `title`,
    `series`, `ticks` of both axes and `best` (where its line stands), all coordinates between 0 and 1, y upwards.
    """
    names = {key.partition("/")[2] for row in history for key in row if key.startswith(("train/", "val/"))}
    kinds = sorted(name for name in names if "/" not in name and not name.endswith("_best"))
    kinds.sort(key=lambda kind: FIRST.index(kind) if kind in FIRST else len(FIRST))
    curves: dict[str, list[dict[str, Any]]] = {"shown": [], "folded": []}
    for kind in kinds[:MOST_CURVES]:
        values = {split: [row.get(f"{split}/{kind}") for row in history] for split in ("train", "val")}
        if curve := _curve(kind, history, values, best_epoch):
            curves["folded" if kind in FOLDED else "shown"].append(curve)
    if rates := _curve(LEARNING_RATE, history, learning_rates(history), best_epoch):
        curves["shown"].append(rates)
    return curves


def learning_rates(history: Sequence[Row]) -> dict[str, list[float | None]]:
    """Learning rate of each epoch, for which a logger is needed: the greatest of all parameter groups as `lr`; beside
    it that of the head, if it is in a group by itself."""
    odd = ("-momentum", "-weight_decay")
    of_row = [
        {key: value for key, value in row.items() if key.startswith("lr-") and not key.endswith(odd)} for row in history
    ]
    heads = {key for rates in of_row for key in rates if key.removesuffix("_no_decay").endswith("/head")}

    def greatest(rates: Row, keys: Collection[str]) -> float | None:
        return max((rate for key in keys if (rate := rates.get(key)) is not None), default=None)

    curves = {"lr": [greatest(rates, rates.keys() - heads) for rates in of_row]}
    return curves | ({"lr of the head": [greatest(rates, heads) for rates in of_row]} if heads else {})


def overlaid(histories: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Curves of several runs over each other, one for each of `metrics`, such as `val/acc`, that some run has; as those
    of `curves_of`, and the `kind` of each series has the place of its run."""
    numbers = {name: number for number, name in enumerate(histories)}
    curves = []
    for metric in metrics:
        points_of = {
            name: _points(history, [row.get(metric) for row in history]) for name, history in histories.items()
        }
        if curve := _drawn(metric, points_of, None):
            curves.append(
                curve
                | {
                    "series": [
                        s | {"number": numbers[s["name"]], "kind": f"line line-{numbers[s['name']]}"}
                        for s in curve["series"]
                    ]
                }
            )
    return curves


def _curve(
    title: str, history: Sequence[Row], values: Mapping[str, Sequence[float | None]], best_epoch: int | None
) -> dict[str, Any] | None:
    return _drawn(title, {name: _points(history, column) for name, column in values.items()}, best_epoch, history)


def _points(history: Sequence[Row], column: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(_epoch(row), value) for row, value in zip(history, column, strict=True) if value is not None]


def _epoch(row: Row) -> int:
    return int(row["epoch"] or 0) + 1


def _drawn(
    title: str,
    points_of: Mapping[str, Sequence[tuple[int, float]]],
    best_epoch: int | None,
    history: Sequence[Row] = (),
) -> dict[str, Any] | None:
    """Curve of the points of each series; its axis of epochs is that of `history`, or of the points."""
    numbers = [value for points in points_of.values() for _, value in points]
    if not numbers:
        return None
    epochs = [_epoch(row) for row in history] or sorted(epoch for points in points_of.values() for epoch, _ in points)
    first, last = epochs[0], max(epochs[-1], epochs[0])
    ticks = round_ticks(min(numbers), max(numbers))
    low, high = ticks[0], ticks[-1]

    def x_of(epoch: float) -> float:
        return (epoch - first) / (last - first) if last > first else 0.5

    series = [
        {
            "name": name,
            "points": [(x_of(x), (y - low) / (high - low)) for x, y in points],
            "last": points[-1][1],
            "best": dict(points).get(best_epoch) if best_epoch is not None else None,
        }
        for name, points in points_of.items()
        if points
    ]
    return {
        "title": title,
        "series": series,
        "y_ticks": [(f"{tick:.6g}", (tick - low) / (high - low)) for tick in ticks],
        "x_ticks": [(epoch, x_of(epoch)) for epoch in _whole_ticks(first, last)],
        "best_epoch": best_epoch if best_epoch is not None and first <= best_epoch <= last else None,
        "last": last,
        "best": x_of(best_epoch) if best_epoch is not None and first <= best_epoch <= last else None,
    }


def round_ticks(low: float, high: float) -> list[float]:
    """Round values from below `low` to above `high`, about four steps apart."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-30):
        margin = abs(high) / 2 or 0.5
        low, high = low - margin, high + margin
    return [float(tick) for tick in MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _whole_ticks(first: int, last: int) -> list[int]:
    if first == last:
        return [first]
    ticks = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(first, last)
    return [int(tick) for tick in ticks if first <= tick <= last]

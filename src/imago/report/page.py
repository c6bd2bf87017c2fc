"""The page of a run, `report.html` and `report.md`, made from the files in its folder alone."""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from imago.errors import UserError
from imago.files import read_text, write_text
from imago.report.content import (
    DATA,
    ENVIRONMENT,
    LARGEST,
    ODD,
    PRIVACY,
    SAMPLE,
    SCORE,
    SPLITS,
    format_number,
    format_yaml,
    history,
    read_pictures,
    read_report,
    read_scored_again,
    thumbnails,
)
from imago.run.folder import read_status

log = logging.getLogger(__name__)

CURVES = ("loss", "acc", "f1")
MOST_CELLS = 20  # classes up to which the confusion matrix is drawn
MOST_CLASSES = 40  # rows of the table of classes
CONFUSIONS = 8


def write_report(folder: Path) -> Path:
    """Write both pages again. Returns the path of the HTML page.

    Raises:
        ValueError: The folder holds results that no page can show.
    """
    try:
        facts = gathered(folder)
        pages = {
            name: _templates(name).get_template(f"{name}.j2").render(facts) for name in ("report.html", "report.md")
        }
    except (*ODD, TemplateError) as error:
        raise UserError(f"{folder} holds results that cannot be shown: {type(error).__name__}: {error}") from error
    for name, page in pages.items():
        write_text(folder / name, page)
    return folder / "report.html"


def refresh_report(folder: Path) -> None:
    """Write both pages while a run is under way. Errors are logged: no report should end a run."""
    try:
        write_report(folder)
    except Exception as error:
        log.warning("report.html could not be written: %s", error)
        log.debug("report.html could not be written", exc_info=True)


def gathered(folder: Path) -> dict[str, Any]:
    """Values that the templates show, in the order of the page."""
    status = {"started": "", "heartbeat": ""} | read_status(folder / "status.json")
    scores = {
        split: score for split in SPLITS if (score := read_report(folder, f"reports/metrics_{split}.json", SCORE))
    }
    main = next(iter(scores), None)
    rows = history(folder)
    return {
        "name": folder.name,
        "status": status,
        "scores": {split: _with_interval(score) for split, score in scores.items()},
        "main": main,
        "curves": [curve for kind in _kinds(rows) if (curve := _curve(rows, kind)) is not None],
        "epochs": len(rows),
        "classes": _classes(scores[main]) if main else [],
        "most_classes": MOST_CLASSES,
        "confusion": _confusion(folder, main) if main else None,
        "confusions": _top_confusions(folder, main) if main else [],
        "images": (thumbnails(folder) or ({"mistakes": [], "unsure": []}, ""))[0],
        "data": read_report(folder, "reports/data.json", DATA) or {},
        "samples": read_pictures(read_report(folder, "reports/samples.json", [SAMPLE]) or []),
        "changes": read_report(folder, "reports/changes.json", [{"key!": str, "default!": object, "value!": object}])
        or [],
        "time": _time(status.get("timing") or {}),
        "profile": status.get("profile") or {},
        "privacy": read_report(folder, "reports/privacy.json", PRIVACY) or {},
        "scored_again": read_scored_again(folder),
        "environment": read_report(folder, "reports/environment.json", ENVIRONMENT) or {},
        "checkpoint": "checkpoints/best.ckpt" if (folder / "checkpoints/best.ckpt").is_file() else None,
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% confidence interval of the fraction `share` counted in `n` (Wilson 1927); [0, 1] if `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@cache
def _templates(name: str) -> Environment:
    """Templates of a page. In Markdown too, what looks like HTML in names and errors stays text."""
    options: dict[str, Any] = {} if ".html" in name else {"finalize": _without_tags}
    environment = Environment(
        **options,
        loader=PackageLoader("imago", "report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": lambda share: f"{100 * share:.1f}%",
        "yaml": format_yaml,
        "cell": _cell,
    }
    return environment


def _cell(text: Any) -> str:
    """Escape text for a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def _without_tags(value: Any) -> Any:
    return value.replace("<", "&lt;") if isinstance(value, str) else value


def _with_interval(score: dict[str, Any]) -> dict[str, Any]:
    return score | {"interval": wilson(score["acc"], score["n"])}


def _kinds(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Losses and metrics that have a curve, the usual ones first."""
    names = {key.partition("/")[2] for row in rows for key in row if key.startswith(("train/", "val/"))}
    kinds = sorted(name for name in names if "/" not in name and not name.endswith("_best"))
    return sorted(kinds, key=lambda kind: CURVES.index(kind) if kind in CURVES else len(CURVES))[:6]


def _curve(rows: Sequence[Mapping[str, float]], kind: str) -> dict[str, Any] | None:
    """Points in the unit square, y upwards, with the values at its edges."""
    points_of = {
        split: [
            (int(row["epoch"]) + 1, row[f"{split}/{kind}"]) for row in rows if row.get(f"{split}/{kind}") is not None
        ]
        for split in ("train", "val")
    }
    values = [value for points in points_of.values() for _, value in points]
    if not values:
        return None
    first, last = int(rows[0]["epoch"]) + 1, int(rows[-1]["epoch"]) + 1
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    span = max(last - first, 1)
    series = [
        {
            "split": split,
            "points": [((x - first) / span if last > first else 0.5, (y - low) / (high - low)) for x, y in points],
            "last": points[-1][1],
        }
        for split, points in points_of.items()
        if points
    ]
    return {"title": kind, "series": series, "low": low, "high": high, "first": first, "last": last}


def _classes(score: dict[str, Any]) -> list[dict[str, Any]]:
    """Row per class with the 95% interval of its recall; the worst first, if not all are shown."""
    rows = [{"name": name, **values} for name, values in score["per_class"].items()]
    for row in rows:
        row["low"], row["high"] = wilson(row["recall"], int(row["support"]))
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row["f1"])[:MOST_CLASSES]
    return rows


def _counts(folder: Path, split: str) -> tuple[list[str], list[list[int]]]:
    path = folder / "reports" / f"confusion_matrix_{split}.csv"
    if not path.is_file():
        return [], []
    try:
        header, *rows = list(csv.reader(read_text(path, LARGEST).splitlines()))
        return header[1:], [[int(value) for value in row[1 : len(header)]] for row in rows[: len(header) - 1]]
    except (ValueError, csv.Error):
        return [], []


def _confusion(folder: Path, split: str) -> dict[str, Any] | None:
    names, counts = _counts(folder, split)
    if not names or len(names) > MOST_CELLS:
        return None
    rows = [
        {"name": name, "cells": [(value, value / max(sum(row), 1)) for value in row]}
        for name, row in zip(names, counts, strict=True)
    ]
    return {"names": names, "rows": rows}


def _top_confusions(folder: Path, split: str) -> list[dict[str, Any]]:
    names, counts = _counts(folder, split)
    pairs: list[dict[str, Any]] = [
        {"label": names[i], "prediction": names[j], "n": value, "share": value / sum(row)}
        for i, row in enumerate(counts)
        for j, value in enumerate(row)
        if i != j and value
    ]
    return sorted(pairs, key=lambda pair: -pair["n"])[:CONFUSIONS]


def _time(timing: dict[str, float]) -> dict[str, Any] | None:
    """Seconds and fractions of waiting for data, computing and the rest."""
    parts = {kind: timing[kind] for kind in ("data", "compute", "other") if kind in timing}
    total = sum(parts.values())
    if not total:
        return None
    shares = {kind: {"seconds": seconds, "share": seconds / total} for kind, seconds in parts.items()}
    return {"total": total, "parts": shares, "images_per_second": timing.get("images_per_second")}

"""What the page shows of one scored split."""

import math
from pathlib import Path
from typing import Any

from imago.report.confusion import MOST_NUMBERS, confusions_of
from imago.report.content import read_images
from imago.report.explained import read_explained

CLASSES_OF_BARS = 100  # rows that draw their interval
BARS = 20  # of the histogram of F1
NO_IMAGES: dict[str, list[Any]] = {"mistakes": [], "unsure": []}


def split_section(folder: Path, split: str, score: dict[str, Any]) -> dict[str, Any]:
    """Values of the section of a split: classes, confusions, reliability and pictures."""
    images = read_images(folder, split)
    return {
        "split": split,
        "score": score,
        "classes": class_rows(score),
        "bars": len(score["per_class"]) <= CLASSES_OF_BARS,
        "histogram": histogram(score) if len(score["per_class"]) > MOST_NUMBERS else [],
        **confusions_of(folder, split),
        "bins": reliability_bars(score),
        "images": images or NO_IMAGES,
        "has_pictures": images is not None,
        "explained": read_explained(folder, split),
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% confidence interval of the fraction `share` counted in `n` (Wilson 1927); [0, 1] if `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def class_rows(score: dict[str, Any]) -> list[dict[str, Any]]:
    """Row per class with the 95% interval of its recall. Many classes are sorted by F1, equal ones by size."""
    rows = [{"name": name, **values} for name, values in score["per_class"].items()]
    for row in rows:
        row["low"], row["high"] = wilson(row["recall"], int(row["support"]))
    if len(rows) > MOST_NUMBERS:
        rows.sort(key=lambda row: (row["f1"], -row["support"]))
    return rows


def histogram(score: dict[str, Any]) -> list[dict[str, Any]]:
    """Number of classes in each twentieth of F1, and as a fraction of the greatest one; without empty classes."""
    counts = [0] * BARS
    for values in score["per_class"].values():
        if values["support"]:
            counts[min(max(int(values["f1"] * BARS), 0), BARS - 1)] += 1
    most = max(*counts, 1)
    return [
        {"low": place / BARS, "high": (place + 1) / BARS, "n": count, "height": count / most}
        for place, count in enumerate(counts)
    ]


def reliability_bars(score: dict[str, Any]) -> list[dict[str, Any]]:
    """Bins of the reliability diagram, with their number of images as a fraction of the greatest one."""
    most = max([entry["n"] for entry in score["reliability"]], default=1) or 1
    return [entry | {"height": entry["n"] / most} for entry in score["reliability"]]

"""The page of a cross-validation, `cv.html`, made from the content of its `cv.json`."""

import base64
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imago.files import write_text
from imago.report.content import NONE
from imago.report.page import page_frame, templates

METRICS = ("acc", "f1", "cross_entropy")


def write_folds_page(folder: Path, content: Mapping[str, Any], figure: Path | None) -> Path:
    """Write the page of the cross-validation in `folder`, with the confusion matrix in the PNG `figure`. Returns its
    path."""
    page = (
        templates("folds.html")
        .get_template("folds.html.j2")
        .render(
            **page_frame(),
            name=folder.name,
            content=content,
            command=shlex.join(["ml-cv", *content["command"]]),
            metrics=METRICS,
            has_test=any("test" in fold for fold in content["folds"]),
            figure=base64.b64encode(figure.read_bytes()).decode() if figure is not None else None,
            number=_number,
            deviation=lambda own: NONE if own is None else f"{_number(own['mean'])} ± {_number(own['sd'])}",
        )
    )
    write_text(folder / "cv.html", page)
    return folder / "cv.html"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"

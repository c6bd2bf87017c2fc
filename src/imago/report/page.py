"""The pages of a run, `report.html`, `report.md` and `model_card.md`, made from the files in its folder alone."""

import base64
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from imago.definitions import rounded_up
from imago.errors import UserError
from imago.files import quoted_path, write_text
from imago.report.content import (
    DATA,
    ENVIRONMENT,
    HEAD_EPOCH,
    NONE,
    ODD,
    PRIVACY,
    SAMPLE,
    SCORE,
    SPLITS,
    best_epoch,
    card_rows,
    describe_answer,
    describe_doubt,
    describe_label_errors,
    format_number,
    format_yaml,
    history,
    read_pictures,
    read_report,
    read_scored_again,
)
from imago.report.curves import curves_of
from imago.report.model_card import CARD_FILE, model_card_facts
from imago.report.split import split_section, wilson
from imago.run.folder import read_status
from imago.terminal import percent_down, threshold_text

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("html") / "script.js"
MARKS = re.compile(r"[\\`*\[\]~|&$]|(?<!\w)_|_(?!\w)|(?<=:)(?=//)|^#")
"""Characters that Markdown takes for more than text: emphasis, code, links and pictures, formulas, headings."""
MOST_ROWS = 40  # of a table of classes that are shown without scrolling, and in report.md


def write_report(folder: Path) -> Path:
    """Write both pages again and, once the run was scored, its model card. Returns the path of the HTML page.

    Raises:
        ValueError: The folder holds results that no page can show.
    """
    try:
        facts = gathered(folder)
        names = ["report.html", "report.md"]
        if (model := model_card_facts(folder, facts)) is not None:
            facts, names = {**facts, "model": model}, [*names, CARD_FILE]
        pages = {name: templates(name).get_template(f"{name}.j2").render(facts) for name in names}
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
    status = {"status": "", "started": "", "heartbeat": "", "error": None} | read_status(folder / "status.json")
    scores = {
        split: score for split in SPLITS if (score := read_report(folder, f"reports/metrics_{split}.json", SCORE))
    }
    rows = history(folder)
    data = read_report(folder, "reports/data.json", DATA) or {}
    changes = read_report(folder, "reports/changes.json", [{"key!": str, "default!": object, "value!": object}]) or []
    sections = [split_section(folder, split, scores[split]) for split in _with_section(scores)]
    epochs = sum(row["epoch"] != HEAD_EPOCH for row in rows)
    return {
        "name": folder.name,
        **page_frame(),
        "status": status,
        "card": card_rows(status.get("card", {})),
        "warnings": status.get("warnings", []),
        "notes": [note for note in data.get("notes", []) if note not in status.get("warnings", [])],
        "scores": {split: score | {"interval": wilson(score["acc"], score["n"])} for split, score in scores.items()},
        "main": next(iter(scores), None),
        "sections": sections,
        "curves": curves_of(rows if epochs else [], best_epoch(folder)),  # the head alone would be a dot
        "epochs": epochs,
        "head": status.get("head", {}),
        "labels": list(dict.fromkeys(name for score in scores.values() for name in score["per_class"])),
        "excluded": [quoted_path(path) for path in data.get("excluded", [])],
        "corrections": list(data.get("corrections", {}).items()),
        "most_rows": MOST_ROWS,
        "data": data,
        "samples": read_pictures(read_report(folder, "reports/samples.json", [SAMPLE]) or []),
        "changes": changes,
        "no_pictures": _no_pictures(changes, sections),
        "time": _time(status.get("timing") or {}),
        "profile": status.get("profile") or {},
        "privacy": read_report(folder, "reports/privacy.json", PRIVACY) or {},
        "scored_again": read_scored_again(folder),
        "environment": read_report(folder, "reports/environment.json", ENVIRONMENT) or {},
        "checkpoint": "checkpoints/best.ckpt" if (folder / "checkpoints/best.ckpt").is_file() else None,
    }


def _no_pictures(changes: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]]) -> str:
    """Why there are no pictures, and how to have them; empty unless they are turned off."""
    values = {change["key"]: change["value"] for change in changes}
    if values.get("report.pictures") is not False and all(section["has_pictures"] for section in sections):
        return ""
    if not str(values.get("strategy._target_")).startswith("imago.dp."):
        return "Pictures are left out (report.pictures=false). Type report.pictures=true to show them."
    return (
        "Pictures are left out, because strategy=dp sets report.pictures=false: they would show private images. Type "
        "report.pictures=true to show them to those who may see the images."
    )


def _with_section(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Splits that have a section of their own: not test, where it is val once more."""
    return [split for split, score in scores.items() if score["split"] == split or score["split"] not in scores]


def page_frame() -> dict[str, Any]:
    """Values that every page needs: the script, and the hash by which a browser knows it."""
    script = _script()
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_hash": hashed}  # a file of Imago: nothing from data gets into it


@cache
def _script() -> str:
    return SCRIPT.read_text(encoding="utf-8")


@cache
def templates(name: str) -> Environment:
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
        "percent": lambda fraction: f"{fraction:.1%}",
        "promised": percent_down,
        "threshold": threshold_text,
        "short": lambda value: NONE if value is None else value if isinstance(value, str) else f"{value:.4g}",
        "compact": _compact,
        "bound": lambda value: value if isinstance(value, str) or not isfinite(value) else rounded_up(value),
        "yaml": format_yaml,
        "cell": markdown_text,
        "quoted_path": quoted_path,
        "label_errors": describe_label_errors,
        "doubt": lambda entry: describe_doubt(entry["label"], entry["prediction"], entry["probability"]),
        "answer": lambda entry: describe_answer(entry["label"], entry["prediction"], entry["probability"]),
    }
    environment.tests["unicode"] = _is_unicode
    return environment


def _compact(count: int) -> str:
    """Number of images in four characters: 950, 9.5k, 95k."""
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def _is_unicode(path: str) -> bool:
    """Whether a browser can write the path: names in another encoding hold lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in path)


def markdown_text(text: Any) -> str:
    """Escape text for one line of Markdown, also in a table: names show no pictures, no links."""
    return MARKS.sub(r"\\\g<0>", " ".join(str(text).split()))


def _without_tags(value: Any) -> Any:
    return value.replace("<", "&lt;") if isinstance(value, str) and not isinstance(value, Markup) else value


def _time(timing: dict[str, float]) -> dict[str, Any] | None:
    """Seconds and fractions of waiting for data, computing and the rest."""
    parts = {kind: timing[kind] for kind in ("data", "compute", "other") if kind in timing}
    total = sum(parts.values())
    if not total:
        return None
    shares = {kind: {"seconds": seconds, "share": seconds / total} for kind, seconds in parts.items()}
    return {"total": total, "parts": shares, "images_per_second": timing.get("images_per_second")}

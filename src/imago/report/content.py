"""What a run folder holds for its report. The folder may be a stranger's."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.errors import UserError
from imago.files import MISFIT, NUMBER, TEXT, UnreadableError, fitting, read_json, read_text
from imago.run.folder import CARD
from imago.run.overview import SCORED_AGAIN
from imago.terminal import counted

log = logging.getLogger(__name__)

SPLITS = ("test", "val", "calibration", "train")
NONE = "\N{EN DASH}"
Json = Any
AGAIN = {
    **dict.fromkeys(("time!", "folder!", "checkpoint!", "asked!", "split!"), str),
    "n!": int,
    **dict.fromkeys(("acc!", "f1!"), NUMBER),
    "loss!": (*NUMBER, type(None)),
}
LARGEST = 2**26
"""Greatest size of a file that a report reads, in bytes."""
OPTIONAL = (*NUMBER, type(None))
MOST_PICTURES, MOST_AGAIN = 48, 20
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of values that have the right type and make no sense."""
# What is shown of the files of a run. The folder may be a stranger's.
EMBEDDED = "data:image/jpeg;base64,"
SAMPLE = {"label!": str, "path!": str, "image!": str}
PICTURE = {**SAMPLE, "prediction!": str, "probability!": NUMBER, "label_probability!": NUMBER}
LABEL_ERROR = {
    **PICTURE,
    "contradicted": bool,
    "other": str,
    "held_out": bool,
    "neighbours": [SAMPLE],
    "margin": NUMBER,
}
IMAGES = {"mistakes!": [PICTURE], "unsure!": [PICTURE], "possibly_mislabelled": [LABEL_ERROR]}
BIN = dict.fromkeys(("low!", "high!", "n!"), NUMBER) | dict.fromkeys(("accuracy!", "confidence!"), OPTIONAL)
SCORE = {
    **dict.fromkeys(("acc!", "f1!", "baseline_acc!"), NUMBER),
    **dict.fromkeys(("loss!", "ece!"), OPTIONAL),
    "top5_acc": NUMBER,
    "n!": int,
    "split!": str,
    "per_class!": {"*": dict.fromkeys(("precision!", "recall!", "f1!", "support!"), NUMBER)},
    "reliability!": [BIN],
    "calibrated": {
        **dict.fromkeys(("temperature!", "target_accuracy!", "accepted_share!"), NUMBER),
        **dict.fromkeys(("threshold!", "confidence!", "accepted_acc!"), OPTIONAL),
        "fitted_here!": bool,
    },
}
DATA = {
    **dict.fromkeys(("root!", "fingerprint!"), str),
    "class_names!": [str],
    "counts!": {"*": {"*": int}},
    **{key: [str] for key in ("notes!", "skipped!", "excluded!")},
    "corrections": {"*": str},
}
PRIVACY = {
    "epsilon!": (str, *NUMBER),
    **dict.fromkeys(("delta!", "max_grad_norm!", "sample_rate!"), NUMBER),
    "noise_multiplier!": OPTIONAL,
    "steps!": int,
    **dict.fromkeys(("mechanism!", "accountant!", "unit!", "counted!"), str),
    "not_covered!": [str],
}
HEAD_EPOCH = -1
"""The "epoch" of the row about the head alone: epochs count from 0 in files, and from 1 where they are shown."""
HERE = {
    **dict.fromkeys(("command!", "folder!", "platform!", "time"), str),
    "versions!": {"*": str},
    "git!": {"commit!": TEXT, "dirty!": (bool, type(None))},
    "cpu_threads!": int,
}
ENVIRONMENT = {**HERE, "resumed": [HERE]}


def history(folder: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl`, one per epoch; that of a head that was fitted before them has the epoch -1.

    Raises:
        ValueError: A row is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in read_text(path, LARGEST).splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    epochs = fitting(rows, [{"*": (*NUMBER, type(None))}])
    if epochs is MISFIT or any("epoch" not in row for row in epochs):
        raise UserError(f"{path} is damaged: a row of it is not that of an epoch.")
    return epochs


def best_epoch(folder: Path) -> int | None:
    """Epoch of the best validation, counted from 1; None if `status.json` does not know it."""
    status = read_report(folder, "status.json", {"best_epoch": (int, type(None))})
    return status.get("best_epoch") if status else None


def read_images(folder: Path, split: str) -> dict[str, list[dict[str, Any]]] | None:
    """Pictures of `images_<split>.json` by kind: `mistakes`, `unsure`, `possibly_mislabelled`; None without any."""
    images = read_report(folder, f"reports/images_{split}.json", IMAGES)
    return {kind: read_pictures(images[kind]) for kind in images} if images is not None else None


def thumbnails(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], str] | None:
    """Worst mistakes and least certain answers, and the split they belong to; None without any."""
    for split in SPLITS:
        if (images := read_images(folder, split)) is not None:
            return images, split
    return None


def read_pictures(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries whose pictures are embedded in the page; at most as many as Imago writes."""
    embedded = [entry for entry in entries if entry["image"].startswith(EMBEDDED)][:MOST_PICTURES]
    return [
        entry | {"neighbours": [near for near in entry["neighbours"] if near["image"].startswith(EMBEDDED)]}
        if "neighbours" in entry
        else entry
        for entry in embedded
    ]


def read_scored_again(folder: Path) -> list[dict[str, Any]]:
    """Newest rows of `scored_again.jsonl`, at most `MOST_AGAIN`."""
    path = folder / SCORED_AGAIN
    if not path.is_file():
        return []
    try:
        rows = fitting([json.loads(line) for line in read_text(path, LARGEST).splitlines()], [AGAIN])
    except (ValueError, RecursionError):
        rows = MISFIT
    if rows is MISFIT:
        log.warning("The report leaves %s out: it is damaged", path)
        return []
    return rows[-MOST_AGAIN:]


def read_report(folder: Path, name: str, shape: Any) -> Json:
    """Content of a JSON file of the run, as far as it has this shape; None if the file is missing or damaged."""
    try:
        return read_json(folder / name, shape, LARGEST)
    except FileNotFoundError:  # not there yet
        return None
    except (OSError, UnreadableError) as error:
        log.warning("The report leaves it out: %s", error)
        return None


def is_of_best(folder: Path, file: Path) -> bool:
    """Whether a file about `best.ckpt` is there, and was written after it."""
    best = folder / "checkpoints" / "best.ckpt"
    return file.is_file() and not (best.is_file() and file.stat().st_mtime < best.stat().st_mtime)


def describe_answer(label: str, prediction: str, probability: float) -> str:
    """Caption of a picture: `bees, rightly 50.3%` or `bees taken for ants 98.0%`."""
    answer = f"{label}, rightly" if label == prediction else f"{label} taken for {prediction}"
    return f"{answer} {probability:.1%}"


def card_rows(card: dict[str, Any]) -> dict[str, str]:
    """Rows of the card of a run, the entry `card` of `status.json`, as far as its facts are there."""
    shown = [name for name in CARD if name not in ("trained_parameters", "stamps")]
    rows = {name: str(card[name]) for name in shown if card.get(name) is not None}
    total, trained = card.get("parameters"), card.get("trained_parameters")
    if total is not None:
        part = f" ({format_count(trained)} trained)" if trained is not None and trained != total else ""
        rows["parameters"] = f"{format_count(total)}{part}"
    rows |= {name: f"{card[name]:g}" for name in ("learning_rate", "head_learning_rate") if name in rows}
    if "images" in card:
        rows["images"] = ", ".join(f"{split} {count}" for split, count in card["images"].items())
    return {name.replace("_", " "): text for name, text in rows.items()}


def describe_doubt(label: str, prediction: str, probability: float) -> str:
    """Caption of a picture whose label is in doubt: `ants; the network agrees, unsurely 63.0%`."""
    if label != prediction:
        return describe_answer(label, prediction, probability)
    return f"{label}; the network agrees, unsurely {probability:.1%}"


def describe_label_errors(entries: Sequence[Mapping[str, Any]]) -> str:
    """Number of listed images, and of those whose label is contradicted confidently."""
    contradicted = sum(entry.get("contradicted", False) for entry in entries)
    return (
        f"{counted(len(entries), 'image')} to look at, {contradicted} of them contradicted: another class is as "
        "probable as it is, on average, for its own images."
    )


def format_count(count: int) -> str:
    """Format a number of parameters: `1,610` or `11.2 M`."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def format_number(value: float | None) -> str:
    """Format a number with four decimals; None as a dash."""
    return NONE if value is None else f"{value:.4f}"


def format_yaml(value: Any) -> str:
    """Format a setting as in YAML; None as a dash."""
    return NONE if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value

"""The model card of a run, `model_card.md`: what somebody has to know of its network before using it.

Its header is metadata of the Hugging Face Hub, so that it can be uploaded as it is. The author chooses the licence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from imago.files import NUMBER
from imago.report.content import OPTIONAL, format_count, is_of_best, read_report
from imago.run.folder import read_status
from imago.run.saved_yaml import read_yaml
from imago.run.spent import is_private_run

CARD_FILE = "model_card.md"
MOST_WEAK, MOST_PAIRS, MOST_NAMED = 5, 3, 40
CALIBRATION_FILE = "checkpoints/best.calibration.json"
CALIBRATION = {
    **dict.fromkeys(("temperature!", "target_accuracy!"), NUMBER),
    "threshold!": OPTIONAL,
    "confidence!": OPTIONAL,
    "settings": [str],
}
STAGES = ("box", "pixels", "batch")


def model_card_facts(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Values that the template shows beside the `facts` of the report; None before a training was scored.

    Also None where the description of the data, or of the privacy of a private training, is missing or damaged: no card
    goes out without them. Of private training, scores and counts are left out: they tell of images that epsilon does
    not cover.
    """
    card = read_status(folder / "status.json").get("card") or {}
    section = next((entry for entry in facts["sections"] if entry["split"] in ("test", "val")), None)
    if section is None or "network" not in card or not facts["data"]:
        return None
    is_private = is_private_run(folder)
    if is_private and not facts["privacy"]:
        return None
    name, split = folder.resolve().name, section["split"]
    weak = sorted(section["classes"], key=lambda row: (row["recall"], -row["support"]))
    return {
        "header": Markup(_header(name, card, facts["data"], None if is_private else section)),
        "title": name,
        "network": card["network"],
        "parameters": format_count(card["parameters"]),
        "weights": _weights(str(card.get("weights", "unknown weights"))),
        "scored": None if is_private else split,
        "tested": [] if is_private else [entry for entry in facts["sections"] if entry["split"] != "train"],
        "weak": [row for row in weak if row["recall"] < 1][:MOST_WEAK],
        "confused": section["pairs"][:MOST_PAIRS],
        "calibration": _calibration(folder) if facts["checkpoint"] and not is_private else None,
        "looks": _looks(read_yaml(folder / "config.yaml", "data") or {}),
        "most_named": MOST_NAMED,
    }


def _weights(start: str) -> str:
    """Say what the training started from; of a file only its name, since its folders may name people."""
    return re.sub(r"^(from |pretrained \().*[/\\]", r"\1", start)


def _calibration(folder: Path) -> dict[str, Any] | None:
    """The calibration that `ml-eval calibrate=true` has fitted to `best.ckpt`; None if that was written since."""
    is_there = is_of_best(folder, folder / CALIBRATION_FILE)
    content = read_report(folder, CALIBRATION_FILE, CALIBRATION) if is_there else None
    return None if content is None else {"settings": []} | content


def _header(name: str, card: Mapping[str, Any], data: Mapping[str, Any], section: Mapping[str, Any] | None) -> str:
    """YAML between the lines of dashes. No path is in it, only the name of the data folder."""
    header: dict[str, Any] = {
        "library_name": "imago",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "imago", str(card["network"])],
    }
    if section is not None:
        score = section["score"]
        values = {"accuracy": ("Accuracy", score["acc"]), "f1": ("F1 (macro)", score["f1"])}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {
                "name": Path(data.get("root", "")).name or "unknown",
                "type": "imagefolder",
                "split": section["split"],
            },
            "metrics": [
                {"type": kind, "name": title, "value": round(value, 4)}
                for kind, (title, value) in values.items()
                if isfinite(value)
            ],
        }
        header |= {"metrics": [*values], "model-index": [{"name": name, "results": [result]}]}
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _looks(data: Mapping[str, Any]) -> dict[str, str]:
    """Steps of an image on its way to the network, and besides in training, as far as the config says it."""
    size = data.get("image_size")
    sides = " x ".join(map(str, size)) if isinstance(size, Sequence) else f"{size} x {size}"
    rows = {"size": f"{sides} pixels, fit: {data.get('fit')}, interpolation: {data.get('interpolation')}"}
    seen, trained = data.get("eval_transform") or {}, data.get("train_transform") or {}
    rows["prediction"] = ", ".join(_steps(seen))
    rows["training"] = ", ".join(_steps(trained))
    return {what: text for what, text in rows.items() if text}


def _steps(transform: Mapping[str, Any]) -> Iterator[str]:
    """Classes of the steps of a transform with their arguments, in order."""
    for stage in STAGES:
        node = transform.get(stage) or {}
        for step in [node] if "_target_" in node else node.values():
            if isinstance(step, Mapping) and "_target_" in step:
                arguments = ", ".join(f"{key}={value}" for key, value in step.items() if not key.startswith("_"))
                yield f"{str(step['_target_']).rpartition('.')[2]}({arguments})"

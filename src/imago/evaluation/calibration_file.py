"""The file of a calibration, beside its checkpoint, and its copy in an export."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imago.definitions import is_export
from imago.errors import UserError
from imago.evaluation.calibration import LOOK, Calibration
from imago.evaluation.from_config import looks
from imago.evaluation.promise import GRID
from imago.files import MISFIT, NUMBER, fitting, read_json, write_json

log = logging.getLogger(__name__)

SHAPE = {
    **dict.fromkeys(("temperature!", "target_accuracy!", "coverage!"), NUMBER),
    **dict.fromkeys(("threshold!", "confidence!"), (*NUMBER, type(None))),
    "set_thresholds!": [NUMBER],
    "n!": int,
    **dict.fromkeys(("fingerprint!", "checkpoint!"), str),
    "evidence": {"*": (int, type(None))},
    "held_out": {"*": NUMBER},
    "why_not": (str, type(None)),
    "settings": [str],
    "looks": [
        {
            **dict.fromkeys(("target_accuracy!", "confidence!"), NUMBER),
            **{"n!": int, "threshold!": (*NUMBER, type(None)), "fingerprint!": str},
        }
    ],
}
"""The content of a calibration file."""
FRACTIONS = ("threshold", "confidence", "target_accuracy")
FORMER = "quantile"
"""Entry of the files of earlier versions, whose threshold was not tested and whose sets were those of all classes."""


def key_of(timestamp: str, data: DictConfig) -> str:
    """Key of a calibration: the time stamp of the checkpoint, and a hash of image size and evaluation transform."""
    return f"{timestamp} {hashlib.sha256(json.dumps(looks(data), sort_keys=True).encode()).hexdigest()[:16]}"


def file_beside(checkpoint: Path) -> Path:
    """Path of the calibration of a checkpoint."""
    return checkpoint.with_suffix(".calibration.json")


def write(calibration: Calibration, path: Path) -> Calibration:
    """Write the calibration as JSON. Returns it with the `looks` of the one that it replaces; that one is another look,
    unless it asked the same of the same images."""
    looks = _looks_in(path)
    if calibration.confidence is not None:
        looks = [look for look in looks if _question(look) != _question(calibration.look)]
    calibration = replace(calibration, looks=looks)
    write_json(path, asdict(calibration))
    return calibration


def _looks_in(path: Path) -> list[dict[str, Any]]:
    """The looks in a file, and that which it is itself; none if there is no such file, or one of an earlier version."""
    if not path.is_file():
        return []
    try:
        content = read_json(path, SHAPE)
    except (OSError, ValueError) as error:
        log.warning("How often its images were looked at before is not known: %s", error)
        return []
    own = [{key: content[key] for key in LOOK}] if content["confidence"] is not None else []
    return [look for look in content.get("looks", []) + own if _are_fractions(look[key] for key in FRACTIONS)]


def _question(look: Mapping[str, Any]) -> list[Any]:
    return [look[key] for key in LOOK if key != "threshold"]


def calibration_of(entry: Mapping[str, Any], data: DictConfig, checkpoint: Path) -> Calibration:
    """Read the calibration of a checkpoint with the entry `imago` and the settings `data`: that in an export, or the
    file beside the checkpoint.

    Raises:
        ValueError: There is none, or it is for another checkpoint or transform.
    """
    key, classes = key_of(entry["timestamp"], data), len(entry["class_names"])
    if not is_export(checkpoint):
        return read(file_beside(checkpoint), key, classes)
    how = "Type ml-eval ckpt_path=RUN calibrate=true, and then ml-export ckpt_path=RUN again."
    content = entry.get("calibration")
    if content is None:
        raise UserError(f"There is no calibration in {checkpoint}. {how}")
    _check_version(content, checkpoint, how)
    return _checked(fitting(content, SHAPE), checkpoint, key, classes, how)


def calibration_if_any(
    entry: Mapping[str, Any], data: DictConfig, checkpoint: Path, without: str
) -> Calibration | None:
    """Read it as `calibration_of` does; None if there is none and, with a warning that begins with `without`, if it is
    for another checkpoint or transform."""
    is_there = entry.get("calibration") is not None if is_export(checkpoint) else file_beside(checkpoint).is_file()
    if not is_there:
        return None
    try:
        return calibration_of(entry, data, checkpoint)
    except UserError as error:
        log.warning("%s: %s", without, error)
        return None


def read(path: Path, checkpoint: str, classes: int) -> Calibration:
    """Read the calibration in a file, for the checkpoint with that `key_of` and number of classes.

    Raises:
        ValueError: There is none, or it is for another checkpoint.
    """
    file = path.with_name(path.name.replace(".calibration.json", ".ckpt"))
    how = f"To fit it: ml-eval ckpt_path={file} calibrate=true"
    if not path.is_file():
        raise UserError(f"There is no calibration at {path}. {how}")
    try:
        is_former = FORMER in read_json(path, {"*": object})
        content = read_json(path, {"*": object} if is_former else SHAPE)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a calibration ({error}). {how}") from error
    _check_version(content, path, how)
    return _checked(content, path, checkpoint, classes, how)


def _check_version(content: Any, path: Path, how: str) -> None:
    if isinstance(content, dict) and FORMER in content:
        raise UserError(
            f"The calibration in {path} is that of an earlier Imago, whose threshold promises nothing. {how}"
        )


def _is_in_range(content: Mapping[str, Any], classes: int) -> bool:
    """Whether the numbers of a calibration file can be those of a calibration."""
    are_fractions = _are_fractions([*(content[key] for key in (*FRACTIONS, "coverage")), *content["set_thresholds"]])
    return are_fractions and len(content["set_thresholds"]) == classes and 0 < content["temperature"] < math.inf


def _are_fractions(values: Iterable[float | None]) -> bool:
    return all(value is None or 0 <= value <= 1 for value in values)


def _checked(content: Any, path: Path, checkpoint: str, classes: int, how: str) -> Calibration:
    if content is MISFIT or not _is_in_range(content, classes):
        raise UserError(f"The calibration in {path} is damaged. {how}")
    calibration = Calibration(**content)
    if calibration.threshold is not None and calibration.threshold > GRID[0]:
        raise UserError(
            f"The calibration in {path} is that of an earlier Imago: 32-bit probabilities, as exported files return "
            f"them, cannot be compared with its threshold. {how}"
        )
    if calibration.checkpoint != checkpoint:
        typed = f" (it was fitted with {' '.join(calibration.settings)})" if calibration.settings else ""
        raise UserError(f"{path} was fitted for another checkpoint, or with another transform{typed}. {how}")
    if calibration.why_not is not None:
        log.warning("%s leaves the probabilities as they are (temperature 1): %s", path.name, calibration.why_not)
    return calibration

"""Find a checkpoint, and read it safely."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from imago.checkpoint.guard import ForeignError, look_over
from imago.definitions import EXPORT_SUFFIX
from imago.errors import MissingFileError, UserError
from imago.files import MISFIT, NUMBER, did_you_mean, fitting
from imago.run.find import LATEST, find_run, path_of
from imago.terminal import CONTROL

log = logging.getLogger(__name__)

Checkpoint = dict[str, Any]
KEY = "ckpt_path"
"""The setting that names a checkpoint."""
SCHEMA = 2
"""Version of the entry `imago` of a checkpoint; raised when older versions of Imago could no longer read it."""
BEST = "checkpoints/best.ckpt"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
RESUMABLE = (LAST, PREVIOUS, "best.ckpt")
REQUIRED = ("config", "history", "timestamp", "data", "drawn_val", "strategy", "progress")
URL = re.compile(r"\w+://")
OTHERS = {  # suffix of a foreign file -> what it is
    EXPORT_SUFFIX: "contains weights only. To predict with an export of ml-export, and to score it on photos in class "
    "folders, type ml-inference ckpt_path={path} source=PHOTOS, or use imago.load_classifier. To train with the "
    "weights, type model.init_from={path}",
    ".onnx": "is an ONNX model",
    ".h5": "is a Keras model",
    ".keras": "is a Keras model",
    ".pb": "is a TensorFlow model",
    ".tflite": "is a TensorFlow Lite model",
}


class OtherVersionError(UserError):
    """The checkpoint is intact, but of a version of Imago whose checkpoints this one does not read."""


def find_checkpoint(name: str, log_dir: Path, key: str = KEY) -> Path:
    """Path of the checkpoint `name`: a file, the best of a run folder or its export, or the best of the `latest` run.

    `key` is the setting that holds `name`, for messages.

    Raises:
        ValueError: There is none.
    """
    if URL.match(name):
        raise UserError(
            f"{key}={name} is a URL. Download the file first, and type its path:\n  curl -L -o best.ckpt '{name}'"
        )
    if name == LATEST:
        return find_run(name, log_dir, holding=BEST) / BEST
    path = path_of(name)
    if not path.exists():
        raise MissingFileError(f"{key}={name} does not exist.{did_you_mean(name, LATEST)}")
    if not path.is_dir():
        return path
    best = path / BEST
    if not best.is_file():
        if len(exports := list(path.glob(f"*{EXPORT_SUFFIX}"))) == 1:  # the folder of an ml-export
            return exports[0]
        files = sorted([*path.rglob("*.ckpt"), *path.rglob(f"*{EXPORT_SUFFIX}")])
        there = ", ".join(map(str, files[:5]))
        raise UserError(
            f"{key}={path} is a folder without checkpoints/best.ckpt. Type a run folder or a file"
            + (f"; it has {there}" if there else "")
        )
    return best


def read_checkpoint(path: str | Path, mmap: bool = False, key: str = KEY) -> Checkpoint:
    """Read a checkpoint to the CPU. Nothing in the file is executed.

    With `mmap`, the weights stay in the file until they are used. `key` is the setting that names it, for messages.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a checkpoint, is damaged, is from a newer version, or holds more than plain types.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder. Type a file in it, for example {path}/checkpoints/best.ckpt.")
    if not path.is_file():
        raise MissingFileError(f"{key}={path} does not exist.")
    try:
        look_over(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except ForeignError as error:
        raise UserError(f"{key}={path} {error}") from error
    except Exception as error:  # torch has no common error class for damaged files
        raise UserError(f"{key}={path} {_what_it_is(path, str(error))}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "imago"} <= checkpoint.keys():
        raise UserError(f"{key}={path} is not a checkpoint of Imago: it {_whose(checkpoint)}")
    check_entry(checkpoint, f"{key}={path}")
    weights = checkpoint["state_dict"]
    if fitting(getattr(weights, "_metadata", {}), {"*": {"*": (int, str)}}) is MISFIT:  # the versions of layers
        checkpoint["state_dict"] = dict(weights)
    return checkpoint


def last_readable(folder: Path) -> Path | None:
    """Checkpoint to resume from: `last.ckpt`, the previous one if that is damaged, or the best; None without any.

    Raises:
        OtherVersionError: Another version of Imago wrote them.
        UserError: There are some, and all are damaged.
    """
    paths = [folder / name for name in RESUMABLE if (folder / name).is_file()]
    for path in paths:
        try:
            read_checkpoint(path, mmap=True)
        except OtherVersionError:
            raise
        except (OSError, ValueError) as error:
            log.warning("%s cannot be used: %s", path, error)
            continue
        if path != paths[0]:
            log.warning("Resuming from %s", path)
        return path
    if paths:
        raise UserError(f"No checkpoint in {folder} can be read. To start again, remove that folder.")
    return None


def check_entry(checkpoint: Checkpoint, where: str) -> None:
    """Raise ValueError unless the entry `imago` has the expected types. It may come from a stranger."""
    entry, weights = checkpoint["imago"], checkpoint["state_dict"]
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if type(schema) is not int:
        raise OtherVersionError(f"{where} has no config: it was written by an earlier version of Imago. Train again.")
    if schema < SCHEMA:
        raise OtherVersionError(f"{where} was written by Imago 0.1. Train again, or install Imago 0.1.")
    if schema > SCHEMA:
        versions = entry.get("versions")
        written_by = versions.get("imago") if isinstance(versions, dict) else "(unknown version)"
        raise OtherVersionError(
            f"{where} has schema {schema}, written by Imago {written_by}. This version reads schemas up to {SCHEMA}: "
            "install a newer one."
        )
    names = entry.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"{where} is damaged: its class names are not a list of different names.")
    if odd := next((name for name in names if CONTROL.search(name) or not name.strip()), None):
        raise UserError(f"{where}: the class name {odd!r} has control characters. It was not used.")
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise UserError(f"{where} is damaged: its state_dict is not valid.")
    versions = entry.get("versions")
    are_texts = isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values())
    if not are_texts or not isinstance(entry.get("timestamp"), str):
        raise UserError(f"{where} is damaged: its versions or its timestamp are not text.")
    if missing := [name for name in REQUIRED if name not in entry]:
        raise UserError(f"{where} is damaged: it lacks {', '.join(missing)}.")
    data = entry["data"]
    shape = {"fingerprint!": str, "counts!": {"*": {"*": int}}, "*": object}
    if not isinstance(data, dict) or fitting({"counts": {}} | data, shape) is MISFIT:
        raise UserError(f"{where} is damaged: its entry about the data is not valid.")
    draws = [entry.get(key) for key in ("drawn_val", "drawn_test", "drawn_calibration")]
    if not all(isinstance(draw, dict | None) for draw in draws) or any(
        draw and fitting(draw.get(key, {}), {"*": NUMBER}) is MISFIT
        for draw in draws
        for key in ("edges", "lows", "highs")
    ):
        raise UserError(f"{where} is damaged: it does not say how its splits were drawn.")
    for split in ("train", "val"):
        seen = entry.get(f"{split}_images")
        if seen is not None and not (isinstance(seen, torch.Tensor) and seen.dtype == torch.int64 and seen.ndim == 1):
            raise UserError(f"{where} is damaged: its {split} images are not a list of numbers.")
    aside = entry.get("calibration_images")
    if aside is not None and not (
        isinstance(aside, torch.Tensor) and aside.dtype == torch.int64 and aside.shape == (len(aside), 2)
    ):
        raise UserError(f"{where} is damaged: its calibration images are not a list of pairs of numbers.")


def _what_it_is(path: Path, error: str) -> str:
    """Describe a file that torch cannot load."""
    if path.suffix in OTHERS:
        return f"is not a checkpoint of Imago: it {OTHERS[path.suffix].format(path=path)}."
    return error if error.startswith("is ") else "is damaged, or not a checkpoint of Imago."


def _whose(content: Any) -> str:
    if not isinstance(content, dict) or not content:
        return f"holds a {type(content).__name__}."
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return (
            f"is a state dict of {len(content)} tensors. To train with it, type model.net.weights=PATH "
            "model.net.name=NAME."
        )
    if "pytorch-lightning_version" in content:
        return "comes from another Lightning project. To train from its weights, save its state_dict alone."
    for entry in ("model", "state_dict", "model_state_dict", "net", "teacher"):
        if isinstance(content.get(entry), dict):
            return f"has its weights under {entry!r}. Save that part alone, and train with model.net.weights=PATH."
    return f"holds {', '.join([key for key in content if isinstance(key, str)][:5])}."

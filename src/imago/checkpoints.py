"""Finding a checkpoint, reading it safely, and saying what is wrong with one that does not fit."""

import errno
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from imago.checkpoint_file import ForeignError, look_over
from imago.reading import MISFIT, fitting
from imago.run_folder import LATEST, find_run
from imago.terminal import CONTROL

log = logging.getLogger(__name__)

Checkpoint = dict[str, Any]

KEY = "ckpt_path"
"""The setting that names a checkpoint."""
SCHEMA = 1
"""Of the entry `imago` of a checkpoint; raised when an older version could not read it any more."""
BEST = "checkpoints/best.ckpt"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
TO_GO_ON = (LAST, PREVIOUS, "best.ckpt")
REQUIRED = ("config", "history", "timestamp", "data", "drawn_val", "strategy", "progress")
URL = re.compile(r"\w+://")
OTHERS = {  # how the files of others begin, or end -> what they are
    ".safetensors": "holds plain weights; model.net.weights= of ml-train takes them",
    ".onnx": "is an ONNX model",
    ".h5": "is a Keras model",
    ".keras": "is a Keras model",
    ".pb": "is a TensorFlow model",
    ".tflite": "is a TensorFlow Lite model",
}


def find_checkpoint(given: str, log_dir: Path, key: str = KEY) -> Path:
    """The file that `given` stands for: itself, the best of a run folder, or the best of the `latest` run.

    `key` is the setting that says it, for messages.

    Raises:
        ValueError: There is none.
    """
    if URL.match(given):
        raise ValueError(
            f"{key}={given} is a URL: nothing is loaded from there. Fetch it first, and type the file:\n"
            f"  curl -L -o best.ckpt '{given}'"
        )
    if given == LATEST:
        return find_run(given, log_dir, holding=BEST) / BEST
    path = Path(given).expanduser().absolute()
    if not path.is_dir():
        return path
    best = path / BEST
    if not best.is_file():
        there = ", ".join(str(file) for file in sorted(path.rglob("*.ckpt"))[:5])
        raise ValueError(
            f"{key}={path} is a folder without checkpoints/best.ckpt: give a run folder or a file"
            + (f"; there are {there}" if there else "")
        )
    return best


def read_checkpoint(path: str | Path, mmap: bool = False, key: str = KEY) -> Checkpoint:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    With `mmap` the weights stay in the file until they are used. `key` is the setting that names it, for messages.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no checkpoint, damaged, of a newer version, or holds more than plain types.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder: give a file in it, {path}/checkpoints/best.ckpt for example.")
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path} is not there.")
    try:
        look_over(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except ForeignError as error:
        raise ValueError(f"{key}={path} {error}") from error
    except Exception as error:  # torch has no common class for what a damaged file raises
        raise ValueError(f"{key}={path} {_what_it_is(path, str(error))}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "imago"} <= checkpoint.keys():
        raise ValueError(f"{key}={path} is no checkpoint of Imago: it {_whose(checkpoint)}")
    _check_told(checkpoint, path)
    weights = checkpoint["state_dict"]
    if fitting(getattr(weights, "_metadata", {}), {"*": {"*": (int, str)}}) is MISFIT:  # versions of layers
        checkpoint["state_dict"] = dict(weights)
    return checkpoint


def last_readable(folder: Path) -> Path | None:
    """The checkpoint to go on from: `last.ckpt`, or the one before where that is damaged, or the best.

    Raises:
        ValueError: There are some, and all are damaged.
    """
    found = [folder / name for name in TO_GO_ON if (folder / name).is_file()]
    for path in found:
        try:
            read_checkpoint(path, mmap=True)
        except (OSError, ValueError) as error:
            log.warning("%s cannot be used: %s", path, error)
            continue
        if path != found[0]:
            log.warning("The run goes on from %s", path)
        return path
    if found:
        raise ValueError(f"No checkpoint in {folder} can be read. To begin anew, remove that folder.")
    return None


def check_whole(path: Path) -> None:
    """Raises OSError unless every part of a checkpoint has the checksum that was written with it."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise OSError(errno.EIO, f"{path} reads back differently than it was written ({damaged})")


def _check_told(checkpoint: Checkpoint, path: Path) -> None:
    """Raises ValueError unless the entry `imago` is of a kind that we read; it may come from a stranger."""
    told, weights = checkpoint["imago"], checkpoint["state_dict"]
    schema = told.get("schema") if isinstance(told, dict) else None
    if type(schema) is not int:
        raise ValueError(f"ckpt_path={path} does not carry its run: an earlier Imago wrote it. Train again.")
    if schema > SCHEMA:
        versions = told.get("versions")
        written_by = versions.get("imago") if isinstance(versions, dict) else "of a newer version"
        raise ValueError(
            f"ckpt_path={path} is of schema {schema}, written by Imago {written_by}; this one reads up to {SCHEMA}: "
            "install a newer version."
        )
    names = told.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"ckpt_path={path} is damaged: its class names are not a list of different names.")
    if odd := next((name for name in names if CONTROL.search(name) or not name.strip()), None):
        raise ValueError(f"ckpt_path={path}: the class name {odd!r} has control characters. It was not used.")
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"ckpt_path={path} is damaged: its state_dict is none.")
    versions = told.get("versions")
    are_texts = isinstance(versions, dict) and all(isinstance(each, str) for each in versions.values())
    if not are_texts or not isinstance(told.get("timestamp"), str):
        raise ValueError(f"ckpt_path={path} is damaged: its versions or its time stamp are no texts.")
    if missing := [name for name in REQUIRED if name not in told]:
        raise ValueError(f"ckpt_path={path} is damaged: it lacks {', '.join(missing)}.")
    if fitting(told["data"], {"fingerprint!": str, "counts": {"*": {"*": int}}, "*": object}) is MISFIT:
        raise ValueError(f"ckpt_path={path} is damaged: what it says of its data is none of that.")
    seen = told.get("train_images")
    if seen is not None and not (isinstance(seen, torch.Tensor) and seen.dtype == torch.int64 and seen.ndim == 1):
        raise ValueError(f"ckpt_path={path} is damaged: its train images are no list of numbers.")


def _what_it_is(path: Path, error: str) -> str:
    """Of a file that torch does not load."""
    if path.suffix in OTHERS:
        return f"is not a checkpoint of Imago: it {OTHERS[path.suffix]}."
    return error if error.startswith("is ") else "is damaged, or not a checkpoint of Imago."


def _whose(content: Any) -> str:
    if not isinstance(content, dict) or not content:
        return f"holds a {type(content).__name__}."
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return (
            f"is a state dict of {len(content)} tensors. Train with it: model.net.weights=PATH "
            "model.net.name=NAME of ml-train."
        )
    if "pytorch-lightning_version" in content:
        return "is one of another Lightning project. Its weights can be trained on: save its state_dict alone."
    for entry in ("model", "state_dict", "model_state_dict", "net", "teacher"):
        if isinstance(content.get(entry), dict):
            return (
                f"holds weights under {entry!r}: save that part alone, and give it as model.net.weights= to ml-train."
            )
    return f"holds {', '.join([key for key in content if isinstance(key, str)][:5])}."


class LabelledImages(Protocol):
    """What is asked of a data module: its classes, and how val was drawn."""

    sets: Any

    @property
    def class_names(self) -> list[str]:
        """By label."""


def check_fits(checkpoint: Checkpoint, model: nn.Module, data: LabelledImages, path: str | Path) -> None:
    """Raises ValueError unless the checkpoint holds this network for these classes, and trained on none of this val."""
    check_data(checkpoint["imago"], data, path)
    check_weights(checkpoint, model, path)


def check_data(told: dict[str, Any], data: LabelledImages, path: str | Path) -> None:
    """Raises ValueError unless `told`, the entry `imago` of a checkpoint, knows the classes of `data`, and its val."""
    check_draw(told, data, path)
    trained, given = told["class_names"], data.class_names
    if trained != given:
        raise ValueError(
            f"ckpt_path={path} was trained on other classes.\n"
            f"  checkpoint: {', '.join(trained)}\n  data:       {', '.join(given)}"
        )


def check_draw(told: dict[str, Any] | Mapping[str, Any], data: LabelledImages, path: str | Path) -> None:
    """Raises ValueError where val was drawn from train in another way than for the checkpoint."""
    drawn, now = told["drawn_val"], data.sets.drawn_val
    if drawn is not None and now is not None and drawn != now:
        which = f"ckpt_path={path}" if path else "The checkpoint"
        what = f"{which} was trained with another draw of val from train, so it has seen images of this one. "
        if drawn.get("by") != now.get("by"):
            raise ValueError(f"{what}It is of an earlier Imago. Train again, or give data with a val split.")
        raise ValueError(f"{what}Type seed={drawn['seed']} data.val_ratio={drawn['val_ratio']}")


def check_weights(checkpoint: Checkpoint, model: nn.Module, path: str | Path) -> None:
    """Raises ValueError unless the checkpoint holds this network."""
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    lacking = sorted(ours.keys() - theirs.keys())
    foreign = sorted(theirs.keys() - ours.keys())
    reshaped = sorted(name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape)
    if lacking or foreign or reshaped:
        counts = {"missing in it": lacking, "unknown to this network": foreign, "of another shape": reshaped}
        found = "; ".join(f"{len(names)} {what} ({names[0]}, …)" for what, names in counts.items() if names)
        raise ValueError(
            f"ckpt_path={path} holds another network than this run's: {found}.\n"
            "Type the same model= and model.net.name= as in the run that wrote it; where its config comes along, leave "
            "model= and experiment= out."
        )


def load_weights(model: nn.Module, data: LabelledImages, path: str | Path) -> Checkpoint:
    """Loads the weights of a checkpoint into `model`, if it fits; returns the checkpoint."""
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, model, data, path)
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint

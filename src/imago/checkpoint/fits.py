"""Checks that a checkpoint fits the network and the data."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from imago.checkpoint.read import Checkpoint, read_checkpoint
from imago.config.own_code import MAKERS, own_file, own_files
from imago.definitions import HELD_OUT
from imago.errors import UserError
from imago.terminal import shortened

log = logging.getLogger(__name__)

MOST_NAMES = 6
NET_CODE = "net_code"
"""Key of the entry `imago` of a checkpoint: `code_digests` of its network."""
_OF_LIBRARIES = (
    "Type the same model= and model.net.name= as in the run that wrote it. Commands that read its config need neither "
    "model= nor experiment=."
)
_OF_OWN = (
    "Its code, or a setting below model.net, has changed since the checkpoint was written. Restore it, and write the "
    "changed network as a class of another name. To train that one from the weights that still fit, type "
    "model.init_from={}"
)


class LabelledImages(Protocol):
    """The part of a data module that the checks read: its classes, and how val and test were drawn."""

    sets: Any

    @property
    def class_names(self) -> list[str]:
        """Class names, indexed by label."""


def check_fits(checkpoint: Checkpoint, model: nn.Module, data: LabelledImages, path: str | Path) -> None:
    """Raise ValueError unless the checkpoint holds this network for these classes and was not trained on this val."""
    check_data(checkpoint["imago"], data, path)
    check_weights(checkpoint, model, path)


def check_data(entry: dict[str, Any], data: LabelledImages, path: str | Path, splits: Sequence[str] = HELD_OUT) -> None:
    """Raise ValueError unless `entry` (`imago` in a checkpoint) has the classes of `data` and its draw of `splits`."""
    check_draw(entry, data, path, splits)
    trained, data_names = entry["class_names"], data.class_names
    if trained != data_names:
        raise UserError(
            f"ckpt_path={path} was trained on other classes.\n"
            f"  checkpoint: {', '.join(trained)}\n  data:       {', '.join(data_names)}"
        )


def check_draw(
    entry: dict[str, Any] | Mapping[str, Any],
    data: LabelledImages,
    path: str | Path,
    splits: Sequence[str] = HELD_OUT,
) -> None:
    """Raise ValueError if one of `splits` was drawn differently than for the checkpoint, or if test or calibration were
    drawn from images that trained or chose it without saying so."""
    which = f"ckpt_path={path}" if path else "The checkpoint"
    draws = {split: (entry.get(f"drawn_{split}"), getattr(data.sets, f"drawn_{split}")) for split in HELD_OUT}
    for split, (drawn, now) in draws.items():
        if split in splits and drawn is not None and now is not None and drawn != now:
            source = "val" if split == "calibration" else "train"
            what = (
                f"{which} was trained with a different {split} split drawn from {source} and has seen images of this "
                "one. "
            )
            if drawn.get("by") != now.get("by") and "fold" not in {*drawn, *now}:
                raise UserError(
                    f"{what}It was written by an earlier Imago. Train again, or use data with a {split} split."
                )
            settings = ("fold", "folds", "seed", "by") if "fold" in drawn else (f"{split}_ratio", "seed")
            if all(drawn.get(key) == now.get(key) for key in settings):
                raise UserError(
                    f"{what}The images have changed since. Make the data with recorded=, the entry `imago` of the "
                    "checkpoint, which repeats its draw."
                )
            raise UserError(f"{what}Type {_retyped(drawn, now, split)}")
    if draws["test"][0] is None and draws["test"][1] is not None and entry.get("train_images") is None:
        raise UserError(
            f"{which} does not record its training images, and it was trained without data.test_ratio, so it may have "
            "seen images of this test split. Type data.test_ratio=null"
        )
    if "calibration" in splits and draws["calibration"][0] is None and _chose_by_all(entry, data):
        raise UserError(
            f"{which} was trained without data.calibration_ratio, so all images of val chose it. Type "
            "data.calibration_ratio=0, or train a new run with it"
        )


def _chose_by_all(entry: Mapping[str, Any], data: LabelledImages) -> bool:
    """Whether the calibration split of `data` was drawn from the val split of a checkpoint."""
    if data.sets.drawn_calibration is None or entry["drawn_val"] != data.sets.drawn_val:
        return False
    counts = entry["data"].get("counts", {}).get("val", {})
    return sum(counts.values()) == sum(len(data.sets.splits[split]) for split in ("val", "calibration"))


def _retyped(drawn: Mapping[str, Any], now: Mapping[str, Any], split: str) -> str:
    """Settings by which the recorded draw `drawn` is repeated in place of `now`."""
    words = [f"seed={drawn['seed']}"] if "seed" in drawn else []
    words += [f"data.{name}={drawn[name]}" for name in (f"{split}_ratio", "folds", "fold") if name in drawn]
    words += [f"data.{name}=null" for name in ("folds", "fold") if name in now and name not in drawn]
    return " ".join(words)


def check_weights(checkpoint: Checkpoint, model: nn.Module, path: str | Path) -> None:
    """Raise ValueError unless the checkpoint holds this network; warn if the code of one's own network was edited."""
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    lines = {
        "only in the checkpoint": sorted(theirs.keys() - ours.keys()),
        "only in the network": sorted(ours.keys() - theirs.keys()),
        "of another shape": [
            f"{name} {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name].shape != theirs[name].shape
        ],
    }
    shown = [f"  {what}: {shortened(names, MOST_NAMES)}" for what, names in lines.items() if names]
    net = getattr(model, "net", model)
    file = own_file(type(net).__module__)
    if shown:
        name = f"{type(net).__module__}.{type(net).__qualname__} in {file}" if file is not None else type(net).__name__
        head = f"ckpt_path={path} does not fit the network of this run, {name}:"
        raise UserError("\n".join([head, *shown, _OF_OWN.format(path) if file is not None else _OF_LIBRARIES]))
    if broken := [n for n, _ in model.named_parameters() if n in theirs and not _is_finite(theirs[n])]:
        raise UserError(
            f"ckpt_path={path} has weights that are no finite numbers: {shortened(broken, MOST_NAMES)}. Whatever the "
            "image, its answer means nothing. Use another checkpoint, or train again."
        )
    written, now = checkpoint["imago"].get(NET_CODE), code_digests(net)
    known = written if isinstance(written, dict) else {}
    if changed := [name for name in now if name in known and known[name] != now[name]]:
        log.warning(
            "%s %s changed since %s was written: if the network computes something else now, the scores differ from "
            "those of the training",
            " and ".join(str(file) for name, file in _code_of(net).items() if name in changed),
            "has" if len(changed) == 1 else "have",
            path,
        )


def _is_finite(weights: Tensor) -> bool:
    return not weights.is_floating_point() or weights.element_size() == 1 or bool(weights.isfinite().all())


def code_digests(net: nn.Module) -> dict[str, str]:
    """Module -> SHA-256 of its file, for the modules of one's own that define a network and its layers, or the function
    that makes it, and for those that these import at their top. Empty for networks of Imago and installed packages."""
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in _code_of(net).items()}


def _code_of(net: nn.Module) -> dict[str, Path]:
    parts = {type(module) for module in net.modules()} | {MAKERS.get(net, type(net))}
    files = own_files({str(getattr(part, "__module__", "")) for part in parts})
    return {name: file for name, file in files.items() if file.is_file()}


def load_weights(model: nn.Module, data: LabelledImages, path: str | Path) -> Checkpoint:
    """Load the weights of a checkpoint into `model`, if it fits. Returns the checkpoint."""
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, model, data, path)
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint

"""Initial weights from another run, with a new head if the classes differ."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from imago.checkpoint.exported import NET, metadata_of, read_model
from imago.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from imago.config.root import PROJECT_ROOT
from imago.errors import UserError
from imago.model.weight_files import WEIGHT_FILES, StateDict, read_weights
from imago.terminal import shortened

log = logging.getLogger(__name__)


def start_from(net: nn.Module, name: str, class_names: Sequence[str], head: set[str]) -> Tensor | None:
    """Load into `net` the tensors that fit from `name`, a run, checkpoint or weights file, and log what was left out.

    `head` holds the names of the tensors that depend on the number of classes: they stay new unless the weights are
    known to be for the same classes. Returns the digests of the images that the weights were trained on, int64
    (images,), or None.

    Raises:
        FileNotFoundError, ValueError: It does not exist, holds no weights, or none that fit.
    """
    weights, trained_names, seen = _weights(name)
    own = net.state_dict()
    same = trained_names == list(class_names)
    fits = {
        name: tensor
        for name, tensor in weights.items()
        if name in own and tensor.shape == own[name].shape and (same or name not in head)
    }
    body = fits if own.keys() <= head else fits.keys() - head  # a network may be a head alone
    loaded = [name for name in body if not name.endswith("num_batches_tracked")]
    if not loaded:
        raise UserError(
            f"model.init_from={name} has no weights that fit this network. {_difference(weights, own)}. "
            "Type the model= and model.net.name= of that run."
        )
    state = OrderedDict(own | fits)
    state._metadata = getattr(weights, "_metadata", None)  # type: ignore[attr-defined]
    net.load_state_dict(state)
    new, unused = sorted(own.keys() - fits.keys()), sorted(weights.keys() - fits.keys())
    log.info("model.init_from=%s: loaded %d of the network's %d tensors", name, len(fits), len(own))
    if new:
        why = "" if same or not set(new) & head else " (the head: the classes differ, or are unknown)"
        remark = "" if set(new) <= head else ", not only in the head"
        (log.warning if remark else log.info)("Newly initialised%s%s: %s", remark, why, shortened(new, 20))
    if unused:
        log.info("Not used: %s", shortened(unused, 20))
    return seen


def _difference(weights: StateDict, own: StateDict) -> str:
    """Say why no tensor fits: by the shapes that differ, or by the names if none is in both."""
    shapes = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if shapes:
        return f"Shapes differ: {shortened(shapes)}"
    if weights.keys() & own.keys():
        return "Only tensors of the head, which depends on the classes, have the same names and shapes"
    return f"It has {shortened(weights)}; the network has {shortened(own)}"


def _weights(source: str) -> tuple[StateDict, list[str] | None, Tensor | None]:
    """Tensors of the network, and the class names and images that they were trained on, if known."""
    if "imago" in metadata_of(source):
        checkpoint = read_model(Path(source).expanduser(), "model.init_from")
        return _of_net(checkpoint), list(checkpoint["imago"]["class_names"]), None
    if Path(source).suffix in WEIGHT_FILES:
        return read_weights(Path(source).expanduser(), "model.init_from"), None, None
    path = find_checkpoint(source, PROJECT_ROOT / "logs", "model.init_from")
    checkpoint = read_checkpoint(path, key="model.init_from")
    entry = checkpoint["imago"]
    return _of_net(checkpoint), list(entry["class_names"]), entry.get("train_images")


def _of_net(checkpoint: Checkpoint) -> StateDict:
    weights: StateDict = checkpoint["state_dict"]
    return {name.removeprefix(NET): tensor for name, tensor in weights.items() if name.startswith(NET)}

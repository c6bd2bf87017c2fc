"""Weights to start training from: those of another run, with the head anew where the classes are others."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from imago.checkpoint.read import find_checkpoint, read_checkpoint
from imago.config.root import PROJECT_ROOT
from imago.errors import UserError
from imago.model.torchvision import WEIGHT_FILES, StateDict, read_weights
from imago.terminal import shortened

log = logging.getLogger(__name__)

NET = "net."  # before the names of the network's weights in a checkpoint


def start_from(net: nn.Module, given: str, class_names: Sequence[str], head: set[str]) -> Tensor | None:
    """Loads into `net` what fits of the run, checkpoint or file of weights `given`, and says what was left out; returns
    the digests of the images that it was trained on, if it says so.

    `head` are the names of the tensors that depend on the number of classes: they stay new unless the weights are known
    to be for the same classes.

    Raises:
        FileNotFoundError, ValueError: It is not there, holds no weights, or none that fit.
    """
    weights, trained_names, seen = _weights(given)
    own = net.state_dict()
    same = trained_names == list(class_names)
    fits = {
        name: tensor
        for name, tensor in weights.items()
        if name in own and tensor.shape == own[name].shape and (same or name not in head)
    }
    loaded = [name for name in fits if name not in head and not name.endswith("num_batches_tracked")]
    if not loaded:
        raise UserError(
            f"model.init_from={given} holds no weights that fit this network: it has {shortened(weights)}; the network "
            f"has {shortened(own)}. Type the model= and model.net.name= of that run."
        )
    state = OrderedDict(own | fits)
    state._metadata = getattr(weights, "_metadata", None)  # type: ignore[attr-defined]
    net.load_state_dict(state)
    new, unused = sorted(own.keys() - fits.keys()), sorted(weights.keys() - fits.keys())
    log.info("model.init_from=%s: %d of the network's %d tensors are from there", given, len(fits), len(own))
    if new:
        why = "" if same or not set(new) & head else " (the head: the classes are others, or not known)"
        others = "" if set(new) <= head else ", some of them besides the head"
        (log.warning if others else log.info)("New%s%s: %s", others, why, shortened(new, 20))
    if unused:
        log.info("Left out: %s", shortened(unused, 20))
    return seen


def _weights(given: str) -> tuple[StateDict, list[str] | None, Tensor | None]:
    """The tensors of the network, and the class names and images that they are for, if known."""
    if Path(given).suffix in WEIGHT_FILES:
        return read_weights(Path(given).expanduser(), "model.init_from"), None, None
    path = find_checkpoint(given, PROJECT_ROOT / "logs", "model.init_from")
    checkpoint = read_checkpoint(path, key="model.init_from")
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    found = {name.removeprefix(NET): tensor for name, tensor in weights.items() if name.startswith(NET)}
    return found, list(checkpoint["imago"]["class_names"]), checkpoint["imago"].get("train_images")

"""Weights in files of others: read without running anything, and loaded into a network except for its head."""

import logging
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from imago.checkpoint.guard import ForeignError, check_legacy, look_over
from imago.errors import MissingFileError, UserError

log = logging.getLogger(__name__)

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # in files from before torch 0.4
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
StateDict = dict[str, Tensor]


def names_a_file(weights: str) -> bool:
    """Whether `model.net.weights` is a file, and not the name of pretrained weights."""
    return Path(weights).suffix in WEIGHT_FILES or Path(weights).is_file()


def read_weights(path: Path, key: str = "model.net.weights") -> StateDict:
    """Read the tensors of a .safetensors file or of a state dict saved by torch. Nothing in the file is executed.

    `key` is the setting that names the file, for messages.
    """
    if not path.is_file():
        raise MissingFileError(f"{key}={path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        look_over(path) if zipfile.is_zipfile(path) else check_legacy(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ForeignError as error:
        raise UserError(f"{key}={path} {error}") from error
    except Exception as error:
        raise UserError(f"{key}={path} has no weights that can be read safely: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}={path} is not a state dict (name -> tensor).")
    return state


def load_weights(net: nn.Module, pretrained: StateDict, head: set[str], what: str) -> None:
    """Load `pretrained` into `net`. The tensors of its `head`, by name, stay new where the shapes differ.

    Raises:
        UserError: Tensors besides the head are missing or of another shape. `what` names the weights in the message.
    """
    own = net.state_dict()
    renamed = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in pretrained.items()}
    fits = {name: tensor for name, tensor in renamed.items() if name in own and tensor.shape == own[name].shape}
    # files from before torch 0.4.1, torchvision's resnets among them, lack these counters
    left_out = {name for name in own.keys() - fits.keys() if not name.endswith("num_batches_tracked")}
    if not left_out <= head:
        wrong = sorted(left_out - head)
        raise UserError(
            f"The {what} do not fit: besides the head, {len(wrong)} tensors are missing or of a different shape "
            f"({', '.join(wrong[:3])}…). Use weights of the same network, or type model.net.weights=null."
        )
    state = OrderedDict(own | fits)
    state._metadata = getattr(pretrained, "_metadata", None)  # type: ignore[attr-defined]  # mnasnet's version
    net.load_state_dict(state)
    log.info("Loaded the %s%s", what, f"; newly initialised: {', '.join(sorted(left_out))}" if left_out else "")

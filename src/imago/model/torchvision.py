"""Classification models of torchvision, by name, with weights by name or from a file.

Another library of networks is a file like this one, an option in configs/model/, and a row in config/targets.py.
"""

import logging
import re
import socket
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from imago.checkpoint.guard import ForeignError, check_legacy, look_over
from imago.config.targets import check_name
from imago.errors import DownloadError, MissingFileError, UserError
from imago.model.origin import mark
from imago.model.surgery import head_names

log = logging.getLogger(__name__)

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # in files from before torch 0.4
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
StateDict = dict[str, Tensor]


def torchvision_net(
    num_classes: int, name: str = "resnet18", weights: str | None = "auto", image_size: int | Sequence[int] = 224
) -> nn.Module:
    """Classification model of torchvision with a head for `num_classes` classes.

    Args:
        num_classes: Outputs of the head.
        name: A name in `torchvision.models.list_models(module=torchvision.models)`.
        weights: `auto` (pretrained if cached or downloadable, otherwise from scratch with a warning), a name of
            torchvision such as `DEFAULT` or `IMAGENET1K_V1`, a file (.safetensors, .pth, .pt), or None.
        image_size: Side of the images in pixels, or height and width. Only the vision transformers (vit, maxvit) need
            it, and they take square images. Pretrained positions are interpolated.
    """
    check_name(name)
    side = image_size if isinstance(image_size, int) else _side(name, image_size)
    build = partial(_build, name, image_size=side)
    net = build(num_classes=num_classes)
    mark(net, name, None)
    if weights is None:
        return net
    origin = weights
    if weights == "auto":
        try:
            origin, pretrained = _named_weights(name, "DEFAULT")
        except ConnectionError as error:
            log.warning(
                "model.net.weights=auto: training %s from scratch, because there are no weights (%s)",
                name,
                error.__cause__,
            )
            return net
    elif Path(weights).suffix in WEIGHT_FILES or Path(weights).is_file():
        pretrained = read_weights(Path(weights))
    else:
        origin, pretrained = _named_weights(name, weights)
    if isinstance(net, VisionTransformer):
        pretrained = interpolate_embeddings(side, net.patch_size, OrderedDict(pretrained))
    _load(net, pretrained, head_names(build, num_classes), f"{weights} weights of {name}")
    mark(net, name, origin)
    if hasattr(net, "transform_input"):
        # googlenet and inception_v3 were trained with another normalisation, and undo ours
        net.transform_input = True  # type: ignore[assignment]
    return net


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


def _side(name: str, image_size: Sequence[int]) -> int:
    if name.startswith(("vit_", "maxvit_")) and len(set(image_size)) > 1:
        raise UserError(
            f"data.image_size={list(image_size)}: {name} needs square images. Type data.image_size={image_size[0]}"
        )
    return image_size[0]


def _build(name: str, num_classes: int, image_size: int) -> nn.Module:
    # by default these two warn about their initialisation, and have a second output in training
    special: dict[str, Any] = (
        {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    )
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        if image_size % patch:
            raise UserError(
                f"data.image_size={image_size}: {name} divides images into patches of {patch} pixels. "
                f"Type data.image_size={max(1, round(image_size / patch)) * patch}"
            )
        special["image_size"] = image_size
    if name == "maxvit_t":
        special["input_size"] = (image_size, image_size)
    return models.get_model(name, weights=None, num_classes=num_classes, **special)


def _named_weights(name: str, weights: str) -> tuple[str, StateDict]:
    """Name of the weights, `IMAGENET1K_V1` for example where `weights` is `DEFAULT`, and their tensors."""
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        raise UserError(
            f"model.net.weights of {name} must be {', '.join(known.__members__)}, auto, null (from scratch), or a "
            f".safetensors or .pth file; got {weights}."
        )
    choice = known[weights]
    file = Path(torch.hub.get_dir(), "checkpoints", Path(choice.url).name)
    if not file.is_file():
        log.info("Downloading %s to %s", choice.url, file)
    try:
        with _connecting_at_most(20):
            state = choice.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
            return choice.name, state
    except OSError as error:  # no network, a time-out, a cache that cannot be written
        raise DownloadError(
            f"The weights of {name} are not cached and could not be downloaded ({error}). Either\n"
            f"  type model.net.weights=null to train from scratch, or\n"
            f"  download {choice.url} yourself and save it as {file}"
        ) from error
    except Exception as error:
        raise UserError(f"{file} has no weights that can be read safely ({error}). Remove it and try again.") from error


@contextmanager
def _connecting_at_most(seconds: float) -> Iterator[None]:
    """Limit the time to connect: torch.hub waits for ever if a firewall drops packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load(net: nn.Module, pretrained: StateDict, head: set[str], what: str) -> None:
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

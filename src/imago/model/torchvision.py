"""Classification models of torchvision, by name, with weights by name or from a file.

Another library of networks is a file like this one, an option in configs/model/, and a row in config/targets.py.
"""

import logging
import socket
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from imago.config.targets import check_name
from imago.errors import DownloadError, UserError
from imago.model.origin import mark
from imago.model.surgery import head_names
from imago.model.weight_files import StateDict, load_weights, names_a_file, read_weights

log = logging.getLogger(__name__)


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
    elif names_a_file(weights):
        pretrained = read_weights(Path(weights))
    else:
        origin, pretrained = _named_weights(name, weights)
    if isinstance(net, VisionTransformer):
        pretrained = interpolate_embeddings(side, net.patch_size, OrderedDict(pretrained))
    load_weights(net, pretrained, head_names(build, num_classes), f"{weights} weights of {name}")
    mark(net, name, origin)
    if hasattr(net, "transform_input"):
        # googlenet and inception_v3 were trained with another normalisation, and undo ours
        net.transform_input = True  # type: ignore[assignment]
    return net


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

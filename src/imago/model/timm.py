"""Classifiers of timm, by name, with weights by tag, from a hub or from a file."""

import importlib.util
import logging
import socket
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from imago.config.targets import check_timm_name
from imago.errors import DownloadError, UserError
from imago.model.origin import mark
from imago.model.surgery import head_names
from imago.model.weight_files import load_weights, names_a_file, read_weights

log = logging.getLogger(__name__)

HUB = "hf-hub:"  # prefix of a repository on the Hugging Face hub, as timm writes it
FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository


def timm_net(
    num_classes: int, name: str = "resnet18", weights: str | None = "auto", image_size: int | Sequence[int] = 224
) -> nn.Module:
    """Classifier of timm with a head for `num_classes` classes.

    Args:
        num_classes: Outputs of the head.
        name: A name in `timm.list_models()`; with a tag, as in `resnet50.a1_in1k`, it also chooses the weights.
        weights: `auto` (pretrained if cached or downloadable, otherwise from scratch with a warning), `DEFAULT`, a tag
            such as `a1_in1k`, a repository (`hf-hub:OWNER/NAME`) with weights of this network, a file with timm's
            tensor names (.safetensors, .pth, .pt), or None.
        image_size: Side of the images in pixels, or height and width, for networks whose size is fixed when they are
            made, such as vision transformers. Pretrained positions are interpolated.

    Raises:
        UserError: The name is unknown, the weights do not fit, or the network has no linear head.
        DownloadError: The weights are not cached and could not be downloaded.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError("timm_net needs the package timm, which is not installed: pip install 'imago[timm]'")
    check_timm_name(name)
    architecture = name.partition(".")[0]
    build = partial(_build, image_size=image_size)
    is_file = weights is not None and names_a_file(weights)
    head = head_names(partial(build, architecture), num_classes)
    if weights is None or is_file:
        net, origin = build(architecture, num_classes=num_classes), weights
    else:
        net, origin = _pretrained(build, num_classes, name, weights)
    if not head or not _has_linear_head(net):
        raise UserError(
            f"model.net.name={name} has no linear head that timm knows of: it does not classify. Type another "
            "model.net.name="
        )
    if is_file:
        load_weights(net, read_weights(Path(str(weights))), head, f"{weights} weights of {name}")
    mark(net, name, origin)
    return net


def _pretrained_config(name: str) -> Any:
    """timm's facts about the weights of a network, those of its default tag if `name` has none."""
    import timm

    return timm.get_pretrained_cfg(name)


def _build(name: str, num_classes: int, image_size: int | Sequence[int], **options: Any) -> nn.Module:
    import timm

    if _pretrained_config(name.partition(".")[0]).fixed_input_size:
        options["img_size"] = image_size if isinstance(image_size, int) else tuple(image_size)
    net: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
    return net


def _has_linear_head(net: nn.Module) -> bool:
    heads = net.get_classifier()  # type: ignore[operator]  # a method, which nn.Module cannot know
    return all(isinstance(head, nn.Linear) for head in (heads if isinstance(heads, tuple) else (heads,)))


def _pretrained(
    build: Callable[..., nn.Module], num_classes: int, name: str, weights: str
) -> tuple[nn.Module, str | None]:
    """The network with the weights that `weights`, or the tag of `name`, stands for, and their name; None for `auto`
    where there are none."""
    import timm

    architecture, _, tag = name.partition(".")
    overlay: dict[str, Any] = {}
    full_name = origin = architecture
    if weights.startswith(HUB):
        overlay, origin = {"hf_hub_id": weights.removeprefix(HUB), "custom_load": False}, weights
    else:
        tags = timm.list_pretrained(f"{architecture}.*")
        if not tags and weights == "auto":
            log.warning("model.net.weights=auto: training %s from scratch, because timm has no weights of it", name)
            return build(architecture, num_classes=num_classes), None
        if weights not in ("auto", "DEFAULT"):
            tag = weights
        tag = tag or _pretrained_config(architecture).tag
        full_name = origin = f"{architecture}.{tag}"
        if full_name not in tags:
            known = ", ".join(known.partition(".")[2] for known in tags)
            raise UserError(
                f"model.net.weights of {architecture} must be {known or '(timm has none)'}, DEFAULT, auto, null (from "
                f"scratch), {HUB}OWNER/NAME, or a .safetensors or .pth file; got {tag}."
            )
    try:
        overlay |= _cached(full_name, overlay)
        net = build(full_name, num_classes=num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except OSError as error:  # no network, no such repository, a cache that cannot be written
        if weights == "auto":
            what = "model.net.weights=auto: training %s from scratch, because there are no weights (%s)"
            log.warning(what, architecture, error)
            return build(architecture, num_classes=num_classes), None
        raise DownloadError(
            f"The weights {origin} are not cached and could not be downloaded ({error}). Either\n"
            f"  type model.net.weights=null to train from scratch, or\n"
            f"  type model.net.weights=FILE, a file of weights with timm's names of tensors"
        ) from error
    except Exception as error:
        raise UserError(f"The weights {origin} do not fit {architecture}, or cannot be read safely: {error}") from error
    log.info("Loaded the weights %s", origin)
    return net, origin


def _cached(name: str, overlay: dict[str, Any]) -> dict[str, Any]:
    """Options that make timm read the file that is cached already, so that it asks no server for a newer one.

    Raises:
        ConnectionError: It is not cached, and there is no connection: the hub's own client would try for a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    config = _pretrained_config(name)
    repository = overlay.get("hf_hub_id") or config.hf_hub_id
    if not repository:
        return {}
    for file in (config.hf_hub_filename,) if config.hf_hub_filename and not overlay else FILES:
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str) and not config.custom_load:
            return {"file": path}
        if isinstance(path, str):
            return {}
    server = urlsplit(constants.ENDPOINT)
    if not urllib.request.getproxies():
        try:
            socket.create_connection((server.hostname, server.port or 443), timeout=20).close()
        except OSError as error:
            raise ConnectionError(f"{server.hostname}: {error}") from error
    return {}

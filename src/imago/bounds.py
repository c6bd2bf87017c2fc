"""What the config in a stranger's checkpoint may cost: its network is made without memory, and compared, before that.

A file of a few kilobytes can ask for a network, or an image, of any size.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from imago.checkpoints import Checkpoint, check_weights
from imago.messages import message_of

MOST_NUMBER = 4096
"""Sizes in a config may be so large, or as the largest of the weights is."""
MOST_CALLS = 200_000
"""Of torch, while the network is made."""
MOST_VALUES = 2**24
"""That are kept besides the weights; and of an image."""
MOST_BYTES = 2**29
"""Of a batch of images, or of what one layer makes of it."""
SMALL = 2**16
NOT_SIZES = ("seed", "batch_size", "num_workers", "max_epochs", "max_steps")


class CostError(ValueError):
    """The checkpoint asks for more than its weights need."""


def check_cost(cfg: DictConfig, checkpoint: Checkpoint, path: str | Path) -> None:
    """Raises ValueError where `model` and `data` of a stranger's checkpoint would take more than its weights need."""
    try:
        _check_numbers(cfg, checkpoint)
        model = _without_memory(cfg, checkpoint, path)
        batch_size = cfg.data.get("batch_size")
        images = batch_size if isinstance(batch_size, int) else 32
        size, channels = cfg.data.image_size, _check_transform(cfg)
        _check_batch("A batch of images", images * channels * size * size, images)
        _check_batch("A layer", images * _largest_output(model, channels, size), images)
    except CostError as error:
        raise ValueError(
            f"ckpt_path={path}: {error}. If you know who wrote it, type the settings yourself, or train it again"
        ) from error


def _check_numbers(cfg: DictConfig, checkpoint: Checkpoint) -> None:
    most = max([MOST_NUMBER, *(side for tensor in checkpoint["state_dict"].values() for side in tensor.shape)])
    for group in ("model", "data", "callbacks"):
        for key, number in _numbers(cfg.get(group), str(group)):
            if abs(number) > most and not key.endswith(NOT_SIZES):
                raise CostError(f"{key}={number} is larger than anything in its weights")


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, DictConfig):
        for name in value:
            with suppress(InterpolationResolutionError, InterpolationKeyError):  # of a part that is not made here
                yield from _numbers(value[name], f"{key}.{name!s}")
    elif isinstance(value, ListConfig):
        for entry in value:
            yield from _numbers(entry, key)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield key, value


def _without_memory(cfg: DictConfig, checkpoint: Checkpoint, path: str | Path) -> nn.Module:
    """The network on the meta device, whose weights have the sizes of the checkpoint's."""
    from imago.classifier import built_model

    allowed = sum(tensor.numel() for tensor in checkpoint["state_dict"].values()) + MOST_VALUES
    try:
        with MetaMemory(allowed):
            model = built_model(cfg.model, checkpoint["imago"]["class_names"])
    except Exception as error:  # whatever a network does with odd arguments
        raise CostError(f"its network cannot be made: {message_of(error)}") from error
    check_weights(checkpoint, model, path)
    return model


class MetaMemory(TorchFunctionMode):
    """Inside, new tensors that are not small have no memory; `CostError` where they would have more than `allowed`
    values in all, or where there is no end of them."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed = 2 * allowed  # some are made twice: first empty, then filled
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise CostError("its network has no end")
        if func not in NEW or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        values = func(*args, **kwargs | {"device": "meta"})
        self.allowed -= values.numel()
        if self.allowed < 0:
            raise CostError("its network is larger than its weights")
        return values if values.numel() > SMALL else func(*args, **kwargs)


NEW = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange),
    *(torch.linspace, torch.randint, torch.randperm, torch.empty_like, torch.zeros_like, torch.ones_like),
}


def _check_transform(cfg: DictConfig) -> int:
    """The channels of an image, which goes through all stages: none of them may make it huge."""
    try:
        transform = instantiate(cfg.data.eval_transform, _convert_="all")
        return _channels(transform, min(cfg.data.image_size, 64))
    except CostError:
        raise
    except Exception as error:
        raise CostError(f"its transform cannot be made: {message_of(error)}") from error


def _channels(transform: Any, size: int) -> int:
    channels = 3 if transform.normalisation is None else len(transform.normalisation.mean)
    image = torch.zeros(channels, size, size, dtype=torch.uint8)
    for step in transform.pixels:
        image = step(image)
        if not isinstance(image, Tensor) or image.numel() > MOST_VALUES:
            raise CostError("its transform makes images too large")
    batch: dict[str, Any] = {"image": image[None], "label": torch.zeros(1).long(), "index": torch.zeros(1).long()}
    batch["epoch"] = 0
    for step in transform.batch.steps.values():
        batch |= step(batch)
        if any(isinstance(value, Tensor) and value.numel() > MOST_VALUES for value in batch.values()):
            raise CostError("its transform makes images too large")
    return channels


class _Largest(TorchDispatchMode):
    """Notes the values of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            self.values = max(self.values, each.numel() if isinstance(each, Tensor) else 0)
        return result


def _largest_output(model: Any, channels: int, size: int) -> int:
    """Values of the largest tensor that the network makes of one image, as far as it runs without memory."""
    model = model.to("meta").eval()
    batch = {"image": torch.empty(1, channels, size, size, device="meta"), "epoch": 0}
    batch |= {key: torch.zeros(1, dtype=torch.long, device="meta") for key in ("label", "index")}
    with _Largest() as largest, suppress(Exception), torch.inference_mode():  # it may ask for values: there are none
        model(batch)
    return largest.values


def _check_batch(what: str, values: int, images: int) -> None:
    if 4 * values > MOST_BYTES:
        most = max(1, images * MOST_BYTES // (4 * values))
        raise CostError(
            f"{what} would take {4 * values / 1e9:.1f} GB of memory, more than a file that is not yours may ask for. "
            f"Type data.batch_size={most}, or a smaller data.image_size="
        )

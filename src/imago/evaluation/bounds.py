"""Limits on the cost of the config in a stranger's checkpoint: its network is first built, and run, without memory.

A file of a few kilobytes can ask for a network, or an image, of any size.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from imago.checkpoint.fits import check_weights
from imago.checkpoint.read import Checkpoint
from imago.data.crops import pair
from imago.errors import UserError, message_of
from imago.evaluation.from_config import eval_transform_of, image_size_of, make

log = logging.getLogger(__name__)

MOST_NUMBER = 4096
"""Greatest number in a config, unless a side of the weights is larger."""
MOST_CALLS = 200_000
"""Greatest number of torch calls that build the network."""
MOST_VALUES = 2**24
"""Greatest number of values besides the weights, and in an image."""
MOST_BYTES = 2**29
"""Greatest size of a batch of images, or of the output of one layer for it, in bytes."""
SMALL = 2**16
NOT_SIZES = ("seed", "data.range", "batch_size", "num_workers", "max_epochs", "max_steps")


class CostError(UserError):
    """The checkpoint asks for more than its weights need."""


def check_cost(cfg: DictConfig, checkpoint: Checkpoint, path: str | Path) -> None:
    """Raise ValueError if `model` and `data` of a stranger's checkpoint would take more than its weights need."""
    try:
        _check_numbers(cfg, checkpoint)
        model = _without_memory(cfg, checkpoint, path)
        _check_metrics(cfg, checkpoint)
        batch_size = cfg.data.get("batch_size")
        images = batch_size if isinstance(batch_size, int) else 32
        (height, width), channels = pair(image_size_of(cfg.data)), _check_transform(cfg)
        values = channels * height * width
        if not cfg.get("trusted_targets"):
            values = max(values, _largest_output(model, (channels, height, width)))
        most = MOST_BYTES // (4 * values)
        if most < 1:
            raise CostError(f"an image takes {4 * values / 1e9:.1f} GB of memory in its network")
        if images > most and cfg.data.get("batch_size") is not None:
            log.warning("data.batch_size=%d of %s would need too much memory: using %d", images, path, most)
            cfg.data.batch_size = most
    except CostError as error:
        raise UserError(
            f"ckpt_path={path}: {error}. If you trust its author, type the settings yourself, or train it again"
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
            with suppress(InterpolationResolutionError, InterpolationKeyError):  # in a part that is not built here
                yield from _numbers(value[name], f"{key}.{name!s}")
    elif isinstance(value, ListConfig):
        for entry in value:
            yield from _numbers(entry, key)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield key, value


def _without_memory(cfg: DictConfig, checkpoint: Checkpoint, path: str | Path) -> nn.Module:
    """Build the network on the meta device, and check that its weights have the shapes of the checkpoint's."""
    from imago.evaluation.from_config import make_model

    allowed = sum(tensor.numel() for tensor in checkpoint["state_dict"].values()) + MOST_VALUES
    try:
        with MetaMemory(allowed):
            model = make_model(cfg.model, checkpoint["imago"]["class_names"])
    except Exception as error:  # a network can do anything with odd arguments
        raise CostError(f"its network cannot be created: {message_of(error)}") from error
    check_weights(checkpoint, model, path)
    return model


class MetaMemory(TorchFunctionMode):
    """Mode in which new tensors that are not small have no memory. Raises CostError if they would have more than
    `allowed` values in all, or never end."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed = 2 * allowed  # some are made twice: first empty, then filled
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise CostError("its network takes too many operations to create")
        if func not in NEW:
            return func(*args, **kwargs)
        values = func(*args, **kwargs | {"device": "meta"})
        self.allowed -= values.numel()
        if self.allowed < 0:
            raise CostError("its network is larger than its weights")
        return values if values.numel() > SMALL else func(*args, **kwargs | {"device": "cpu"})


NEW = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange),
    *(torch.linspace, torch.randint, torch.randperm, torch.empty_like, torch.zeros_like, torch.ones_like),
}


def _check_transform(cfg: DictConfig) -> int:
    """Run an image through all stages, none of which may make it huge. Returns its number of channels."""
    try:
        return _channels(eval_transform_of(cfg.data), min(*pair(image_size_of(cfg.data)), 64))
    except CostError:
        raise
    except Exception as error:
        raise CostError(f"its transform cannot be created: {message_of(error)}") from error


def _channels(transform: Any, size: int) -> int:
    channels = 3 if transform.normalisation is None else len(transform.normalisation.mean)
    image = torch.zeros(channels, size, size, dtype=torch.uint8)
    with _Largest(MOST_VALUES):
        for step in transform.pixels.values():
            image = step(image)
        batch: dict[str, Any] = {"image": image[None], "label": torch.zeros(1).long(), "index": torch.zeros(1).long()}
        transform.batch(batch | {"epoch": 0})
    return channels


def _check_metrics(cfg: DictConfig, checkpoint: Checkpoint) -> None:
    """Raise CostError if the metrics, which keep tables by class and threshold, are too large."""
    node = OmegaConf.select(cfg, "callbacks.metrics")
    if node is None:
        return
    try:
        with MetaMemory(MOST_VALUES):
            make(node).metrics(num_classes=len(checkpoint["imago"]["class_names"]))
    except Exception as error:
        raise CostError(f"its metrics cannot be created: {message_of(error)}") from error


class _Largest(TorchDispatchMode):
    """Mode that records the number of values of the largest new tensor. Raises CostError if it is more than `most`."""

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.values = 0
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            self.values = max(self.values, value.numel() if isinstance(value, Tensor) else 0)
        if self.values > self.most:
            raise CostError("its transform makes images too large")
        return result


def _largest_output(model: Any, shape: tuple[int, int, int]) -> int:
    """Number of values of the largest tensor made from one image, plus those of all tensors left in the batch."""
    model = model.to("meta").eval()
    batch = {"image": torch.empty(1, *shape, device="meta"), "epoch": 0}
    batch |= {key: torch.zeros(1, dtype=torch.long, device="meta") for key in ("label", "index")}
    try:
        with _Largest() as largest, torch.inference_mode():
            batch = model(batch)
    except Exception as error:
        raise CostError(f"its network does not run on the meta device ({message_of(error)}), so its memory is "
                        "unknown") from error  # fmt: skip
    return largest.values + sum(value.numel() for value in batch.values() if isinstance(value, Tensor))

"""Changes to networks: the head's tensors, group normalisation, frozen layers."""

import inspect
import logging
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from imago.errors import UserError
from imago.model.stages import freeze_until

log = logging.getLogger(__name__)

UNTIL = "until:"
LEAST_CHANNELS = 4  # per group
Build = Callable[..., nn.Module]


def head_names(build: Build, num_classes: int) -> set[str]:
    """Names of the tensors of `build(num_classes=…)` whose shape depends on the number of classes."""
    with _WithoutMemory():
        state, larger_state = (build(num_classes=n).state_dict() for n in (num_classes, num_classes + 1))
    return {name for name in state if name not in larger_state or state[name].shape != larger_state[name].shape}


class _WithoutMemory(TorchFunctionMode):
    """Mode in which layers create their weights on the meta device, through `torch.empty`.

    `torch.device("meta")` would catch more, and the regnets compute their widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def with_group_norm(net: nn.Module, but: Sequence[nn.Module] = ()) -> list[str]:
    """Replace each BatchNorm that is not in `but`, in place, by a new GroupNorm. Returns their names.

    A GroupNorm has at most 32 groups, as in Opacus' ModuleValidator, but at least 4 channels in each: a channel by
    itself would lose its brightness. For vectors it has one group.
    """
    kept = set(map(id, but))
    norms = [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and id(layer) not in kept
    ]
    for name, layer in norms:
        groups = math.gcd(32, layer.num_features)
        while groups > 1 and layer.num_features < LEAST_CHANNELS * groups:
            groups //= 2
        groups = 1 if isinstance(layer, nn.BatchNorm1d) else groups
        net.set_submodule(name, nn.GroupNorm(groups, layer.num_features, layer.eps, affine=layer.affine))
    return [name for name, _ in norms]


def head_layer(net: nn.Module, names: Collection[str]) -> nn.Linear | None:
    """The Linear of `net` whose weight and bias are all of `names`, the tensors of its head; None if there is none."""
    path = next(iter(names), "").rpartition(".")[0]
    layer = net.get_submodule(path)
    is_whole = set(names) == {f"{path}.weight", f"{path}.bias"}
    return layer if is_whole and isinstance(layer, nn.Linear) else None


def freeze_layers(net: nn.Module, freeze: str | None, batch_norm: bool, head: Collection[str]) -> list[nn.Module]:
    """Freeze layers of `net`. Returns those that have to stay in evaluation mode, so that they keep their statistics.

    Args:
        net: The network.
        freeze: `backbone` freezes all tensors that are not in `head`, `until:LAYER` what stands before a layer; None
            freezes none of them.
        batch_norm: Freeze scale and shift of each BatchNorm, as torchvision's FrozenBatchNorm2d does.
        head: Names of the head's tensors.

    Raises:
        UserError: `freeze` is none of them, or there is no such layer.
    """
    frozen: list[nn.Module] = []
    if freeze is not None and freeze.startswith(UNTIL):
        frozen = freeze_until(net, freeze.removeprefix(UNTIL))
    elif freeze == "backbone":
        for name, parameter in net.named_parameters():
            parameter.requires_grad = name in head
        frozen = [module for module in net.modules() if is_frozen(module)]
    elif freeze is not None:
        raise UserError(
            "model.freeze must be backbone (train the head only), until:LAYER (train this layer and those above), or "
            f"null, got {freeze}."
        )
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if batch_norm and not norms:
        log.warning("model.freeze_batch_norm=true: %s has no BatchNorm, so nothing is frozen", type(net).__name__)
    for layer in norms if batch_norm else []:
        layer.requires_grad_(False)
        frozen.append(layer)
    return frozen


def to_channels_last(net: nn.Module) -> None:
    """Lay out the weights of convolutions channels-last (NHWC)."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def without_weights(net: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`net` without the pretrained weights that it would load."""
    return partial(net, weights=None) if "weights" in inspect.signature(net).parameters else net


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer has tensors of its own, none of which is trainable."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and not any(tensor.requires_grad for tensor in own)

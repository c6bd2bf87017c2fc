"""Changes to networks: the head's tensors, group normalisation, frozen layers."""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from imago.errors import UserError

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


def freeze_layers(
    net: nn.Module, make: Callable[..., nn.Module], freeze: str, class_names: Sequence[str]
) -> list[nn.Module]:
    """Freeze all of `net`, which `make` created, except its head. Returns the layers without trainable parameters.

    Raises:
        UserError: `freeze` is not `backbone`.
    """
    if freeze != "backbone":
        raise UserError(f"model.freeze must be backbone (train the head only) or null, got {freeze}.")
    head = head_names(without_weights(make), len(class_names))
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in head
    return [module for module in net.modules() if is_frozen(module)]


def without_weights(net: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`net` without the pretrained weights that it would load."""
    return partial(net, weights=None) if "weights" in inspect.signature(net).parameters else net


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer has tensors of its own, none of which is trainable."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and not any(tensor.requires_grad for tensor in own)

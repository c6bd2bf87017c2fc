"""Stages of a network, from the input to the head, and freezing up to a layer."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import nn

from imago.errors import UserError
from imago.terminal import shortened

LEAST_STAGES = 4
"""Below the head; a network with fewer is unfolded further, the largest module first."""


@dataclass
class Stage:
    """Neighbouring modules of a network, and the names of their parameters that are not of the head."""

    modules: dict[str, nn.Module]
    names: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The path of its first module."""
        return next(iter(self.modules))


def stages_of(net: nn.Module, head: Collection[str]) -> list[Stage]:
    """The stages below the head: layer1 to layer4 of a ResNet, the blocks of a transformer, each element of `features`.

    They are the modules of `net` in the order of registration; one without matrices (a norm) belongs to the stage
    before it, and tensors of an unfolded module itself (positions, tokens) to the first stage.
    """
    parts = _children("", net)
    while sum(_has_matrices(part, name, head) for name, part in parts.items()) < LEAST_STAGES:
        sizes = {name: _size(part, name, head) for name, part in parts.items() if _is_divisible(part)}
        largest = max(sizes, key=lambda name: sizes[name], default=None)
        if largest is None or not sizes[largest]:
            break
        parts = {
            path: module
            for name, part in parts.items()
            for path, module in (_children(name, part) if name == largest else {name: part}).items()
        }
    stages: list[Stage] = []
    for name, part in parts.items():
        if not _names(part, name, head) and any(True for _ in part.parameters()):
            continue  # the head
        if stages and not _has_matrices(part, name, head):
            stages[-1].modules[name] = part
        else:
            stages.append(Stage({name: part}))
    placed: set[str] = set()
    for stage in stages:
        stage.names = [n for name, part in stage.modules.items() for n in _names(part, name, head)]
        placed |= set(stage.names)
    if stages:
        rest = [name for name, _ in net.named_parameters() if name not in placed and name not in head]
        stages[0].names = rest + stages[0].names
    return stages


def _children(prefix: str, module: nn.Module) -> dict[str, nn.Module]:
    return {f"{prefix}.{name}" if prefix else name: child for name, child in module.named_children()}


def _is_divisible(module: nn.Module) -> bool:
    return not isinstance(module, nn.MultiheadAttention) and any(True for _ in module.children())


def _names(module: nn.Module, path: str, head: Collection[str]) -> list[str]:
    return [name for name, _ in module.named_parameters(prefix=path) if name not in head]


def _size(module: nn.Module, path: str, head: Collection[str]) -> int:
    return sum(p.numel() for name, p in module.named_parameters(prefix=path) if name not in head)


def _has_matrices(module: nn.Module, path: str, head: Collection[str]) -> bool:
    return any(p.ndim > 1 for name, p in module.named_parameters(prefix=path) if name not in head)


def freeze_until(net: nn.Module, layer: str) -> list[nn.Module]:
    """Freeze what stands before `layer`, a module of `net`, in the order of registration. Returns the modules that are
    frozen as a whole.

    Raises:
        UserError: There is no such module, or nothing stands before it.
    """
    paths = [path for path, module in net.named_modules() if path and any(True for _ in module.parameters())]
    if layer not in paths:
        close = difflib.get_close_matches(layer, paths, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        shown = shortened([path for path in paths if path.count(".") < 2], 20)
        raise UserError(
            f"model.freeze=until:{layer}: {type(net).__name__} has no layer {layer}.{meant} It has {shown}."
        )
    before = []
    for path, module in net.named_modules():
        if path == layer:
            break
        before.append(module)
    parameters = [parameter for module in before for parameter in module.parameters(recurse=False)]
    if not parameters:
        raise UserError(
            f"model.freeze=until:{layer} freezes nothing: {layer} is the first layer. Type model.freeze=null"
        )
    for parameter in parameters:
        parameter.requires_grad = False
    return [module for module in before if _has_tensors(module)]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))

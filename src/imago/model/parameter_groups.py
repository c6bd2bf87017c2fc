"""Groups of parameters with a learning rate or a weight decay of their own."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from imago.errors import UserError


@dataclass(frozen=True)
class ParameterGroups:
    """How the optimizer treats the parts of a network; by default all alike, in one group.

    Args:
        head_lr: Learning rate of the head; None: that of the optimizer.
        layer_decay: A layer at depth k below the head has the optimizer's learning rate times `layer_decay ** k`.
        decay_norms_and_biases: Whether weight decay acts on norms and biases too, that is, on tensors of at most one
            dimension, and on those that the network names in `no_weight_decay()`, as timm's do.

    Raises:
        UserError: A value is out of range.
    """

    head_lr: float | None = None
    layer_decay: float | None = None
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        if self.head_lr is not None and self.head_lr < 0:
            raise UserError(f"model.head_lr must be 0 or more, or null, got {self.head_lr}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"model.layer_decay must be above 0 and at most 1, or null, got {self.layer_decay}.")

    @property
    def by_layer(self) -> list[str]:
        """The settings by which the learning rate of a parameter depends on its layer."""
        return [f"model.{name}" for name in ("head_lr", "layer_decay") if getattr(self, name) is not None]

    @property
    def settings(self) -> list[str]:
        """The settings that divide the parameters."""
        return [*self.by_layer, *([] if self.decay_norms_and_biases else ["model.decay_norms_and_biases=false"])]

    def divide(self, module: nn.Module, net: nn.Module, head: Collection[str]) -> list[Any]:
        """The trainable parameters of `module` in groups with "params", "name" and "depth", as an optimizer takes them;
        a plain list if nothing divides them.

        Args:
            module: `net` and what else is trained, which counts as depth 0.
            net: The network.
            head: Names of the tensors of its head.

        Raises:
            UserError: The head has a learning rate, but is unknown.
        """
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        if not self.settings:
            return [parameter for _, parameter in named]
        if self.head_lr is not None and not head:
            raise UserError(
                "model.head_lr: this network has no head, a tensor whose shape depends on the number of classes. Type "
                "model.head_lr=null"
            )
        depth = depths(net, head) if self.by_layer else {}
        exempt = set() if self.decay_norms_and_biases else set(getattr(net, "no_weight_decay", set)())
        name_of = {id(parameter): name for name, parameter in net.named_parameters()}
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in named:
            name = name_of.get(id(parameter), name)
            level = depth.get(name, 0)
            label = self._label("head" if name in head else f"depth_{level:02d}")
            if not self.decay_norms_and_biases and (parameter.ndim <= 1 or name.endswith(".bias") or name in exempt):
                label += NO_DECAY
            groups.setdefault(label, {"params": [], "name": label, "depth": level})["params"].append(parameter)
        return list(groups.values())

    def _label(self, layer: str) -> str:
        if not self.by_layer:
            return "all"
        return layer if layer == "head" or self.layer_decay is not None else "backbone"

    def apply(self, optimizer: Optimizer) -> None:
        """Set learning rates and weight decay of an optimizer whose groups come from `divide`.

        Raises:
            UserError: It has no weight decay that could be left out.
        """
        for group in optimizer.param_groups if self.settings else []:
            group["lr"] *= (self.layer_decay or 1) ** group["depth"]
            if self.head_lr is not None and group["name"].removesuffix(NO_DECAY) == "head":
                group["lr"] = self.head_lr
            if not self.decay_norms_and_biases and "weight_decay" not in group:
                raise UserError(
                    f"model.decay_norms_and_biases=false: {type(optimizer).__name__} has no weight decay. Remove it."
                )
            if group["name"].endswith(NO_DECAY):
                group["weight_decay"] = 0.0


NO_DECAY = "_no_decay"


def depths(net: nn.Module, head: Collection[str]) -> dict[str, int]:
    """Depth of each parameter from the top: 0 for the head, 1 for the layer below it.

    Layers are those of timm's `group_matcher` where the network has one, otherwise `layers_of(net)`.

    Raises:
        UserError: timm is needed, and not installed.
    """
    if hasattr(net, "group_matcher"):
        try:
            from timm.models import group_parameters
        except ImportError as error:
            raise UserError(
                "model.layer_decay needs timm for a network with group_matcher: pip install 'imago[timm]'"
            ) from error
        numbers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        top = max(numbers.values())
        return {name: int(top - number) for name, number in numbers.items()} | dict.fromkeys(head, 0)
    layers = [[name for name in layer if name not in head] for layer in layers_of(net)]
    layers = [layer for layer in layers if layer]
    top = len(layers) - (0 if head else 1)
    return {name: top - number for number, layer in enumerate(layers) for name in layer} | dict.fromkeys(head, 0)


def layers_of(net: nn.Module) -> list[list[str]]:
    """Names of the parameters of each layer, from the input to the head.

    The layers are the modules of `net` in the order of registration. Sequential, ModuleList and ModuleDict are
    unfolded, and so is a module with more than half of the network's parameters: a backbone, or an encoder. A module
    whose tensors have at most one dimension (a norm) belongs to the layer before it, like the tensors that an unfolded
    module has itself (positions, tokens).
    """
    layers: list[list[str]] = [[]]
    has_weights = False
    for names, is_layer in _units(net, "", _size(net) / 2):
        if is_layer and has_weights:
            layers.append([])
        has_weights |= is_layer
        layers[-1] += names
    return layers


def _units(module: nn.Module, prefix: str, half: float) -> Iterator[tuple[list[str], bool]]:
    """Names of the parameters of each unfolded module, and whether it is a layer by itself."""
    yield [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)], False
    for name, child in module.named_children():
        is_container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if is_container or (_size(child) > half and any(True for _ in child.children())):
            yield from _units(child, f"{prefix}{name}.", half)
        else:
            parameters = dict(child.named_parameters(prefix=f"{prefix}{name}"))
            yield list(parameters), any(parameter.ndim > 1 for parameter in parameters.values())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

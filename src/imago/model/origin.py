"""Where the weights of a network come from: for the card of a run, and for `model.freeze`."""

from typing import Any

from torch import nn

from imago.config.targets import families_of

SCRATCH, OWN = "from scratch", "weights made by"


def mark(net: nn.Module, name: str, weights: str | None) -> None:
    """Note at a network that was just made its name, and the name of its pretrained weights; None: from scratch."""
    net.imago_origin = (name, weights)  # type: ignore[assignment]  # no parameter: it is in no state dict


def name_of(net: nn.Module) -> str:
    """Name of a network: `resnet18`, or that of its class."""
    name: str = getattr(net, "imago_origin", (type(net).__name__, None))[0]
    return name


def weights_of(net: nn.Module, target: str, arguments: dict[str, Any]) -> str:
    """What a network starts from: `pretrained (NAME)` or `from scratch`. Only the code of a network of one's own
    knows: `weights made by TARGET`.

    Args:
        net: The network.
        target: What makes it, the `_target_` of `model.net`.
        arguments: The arguments of `model.net`.
    """
    origin: Any = getattr(net, "imago_origin", None)
    if origin is not None:
        return f"pretrained ({origin[1]})" if origin[1] is not None else SCRATCH
    if not target.startswith(("imago.", "torchvision.", "torch.")):
        return f"{OWN} {target}"
    downloads = [name for family in families_of(target) for name in family.downloads]
    named = [arguments[name] for name in downloads if arguments.get(name)]
    return f"pretrained ({named[0]})" if named else SCRATCH

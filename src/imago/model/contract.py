"""The contract of networks, forward passes and losses of one's own, with a message for each way to break it."""

import functools
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import nll_loss

from imago.config.own_code import MAKERS
from imago.definitions import Batch
from imago.errors import MissingKeyError, UserError, kind_of
from imago.wiring import ComposeTransform

RESULTS = ("logits", "prediction")
ENDS = {"SoftmaxBackward0": "a softmax", "SigmoidBackward0": "a sigmoid", "ReluBackward0": "a ReLU"}
"""Name that autograd gives the last operation of a network -> its own, for those that do not make logits."""
NOT_LOG = 0.01
"""Difference of summed probabilities from 1 (as a logarithm) at which they are none, in any precision."""


def make_net(net: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """Make the network; what its constructor raises says so in a note."""
    try:
        made = net(num_classes=num_classes)
    except Exception as error:
        error.add_note("while creating model.net")
        raise
    if not isinstance(made, nn.Module):
        raise UserError(f"model.net: its _target_ returns {kind_of(made)}. It must return a torch.nn.Module.")
    check_registered(made)
    while isinstance(net, functools.partial):
        net = net.func
    MAKERS[made] = net
    return made


def check_registered(net: nn.Module) -> None:
    """Raise UserError for layers in a plain list or dict, which PyTorch neither trains, nor moves, nor saves."""
    known = {id(parameter) for parameter in net.parameters()}
    for module in net.modules():
        for name, value in vars(module).items():
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            layers = [entry for entry in entries if isinstance(entry, nn.Module)] if not name.startswith("_") else []
            if any(id(parameter) not in known for layer in layers for parameter in layer.parameters()):
                kind = "ModuleDict" if isinstance(value, dict) else "ModuleList"
                raise UserError(
                    f"{type(module).__name__}.{name} is a {type(value).__name__} of layers, which are neither trained "
                    f"nor saved. Write self.{name} = nn.{kind}(…)."
                )


def failed_layer(net: nn.Module, error: Exception) -> str | None:
    """The innermost layer of `net` that was being called when `error` was raised: `MyNet.head (Linear)`; None if none
    was."""
    names = {id(module): name for name, module in net.named_modules()}
    layers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layer = next((layer for layer in reversed(layers) if id(layer) in names), None)
    if layer is None:
        return None
    name = names[id(layer)]
    return f"{type(net).__name__}.{name} ({type(layer).__name__})" if name else type(net).__name__


def wrong_width(layer: str, error: Exception, shape: Sequence[int]) -> str | None:
    """Message for a linear layer that was called with the values of a whole image and has another width; `shape` is
    that of the images, (n, channels, height, width)."""
    widths = re.search(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", str(error))
    if widths is None or int(widths[1]) != math.prod(shape[1:]):
        return None
    size = " * ".join(map(str, shape[1:]))
    return (
        f"{layer} takes {widths[2]} values, and an image here has {size} = {widths[1]}. Type "
        f"model.net.in_features={widths[1]}, or what your network calls it."
    )


def check_output(net: nn.Module, output: Any) -> None:
    """Raise UserError unless a network returns a tensor."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"{type(net).__name__} returns {kind_of(output)}. A network must return one tensor, the logits, of "
            "shape (images, classes)."
        )


def bind_net(forward_fn: ComposeTransform, net: nn.Module) -> None:
    """Pass `net` to the steps of `model.forward_fn`. Raises UserError, with the step, if it takes other arguments."""
    try:
        forward_fn.bind(net)
    except UserError as error:
        raise UserError(f"model.forward_fn.{error}") from error


def run_forward_fn(forward_fn: ComposeTransform, batch: Batch) -> Batch:
    """Run `model.forward_fn`. Raises UserError if a step lacks a key, or if logits and prediction are not added."""
    try:
        batch = forward_fn(batch)
    except MissingKeyError as error:
        raise MissingKeyError(f"model.forward_fn.{error}") from error
    if missing := [key for key in RESULTS if key not in batch]:
        raise UserError(
            f"model.forward_fn: no step adds {' and '.join(missing)} to the batch, which has "
            f"{', '.join(sorted(batch))}. Name the result of a step with new_key: {missing[0]}"
        )
    return batch


def check_logits(maker: str, batch: Batch, num_classes: int) -> None:
    """Raise UserError unless there is a logit per image and class; `maker` has computed them."""
    shape, needed = tuple(batch["logits"].shape), (len(batch["label"]), num_classes)
    if len(shape) == 2 and shape[0] == needed[0] and shape[1] != num_classes:
        raise UserError(
            f"{maker} returns {shape[1]} columns of logits (shape {shape}), and the data have {num_classes} classes. "
            "There must be one column for each class: make the last layer of size num_classes, the argument that a "
            f"network gets, for example nn.Linear(width, num_classes). Here it is {num_classes}."
        )
    if shape != needed:
        raise UserError(
            f"{maker} returns logits of shape {shape} for {needed[0]} images and {num_classes} classes. Their shape "
            f"must be {needed}. A network is created with num_classes={num_classes}, the size of its last layer."
        )


def end_warning(maker: str, logits: Tensor) -> str | None:
    """Warning about a network whose last operation does not make logits; None if it does."""
    end = ENDS.get(type(logits.grad_fn).__name__)
    if end is None:
        return None
    return (
        f"{maker} ends with {end}, but what a network returns is taken as logits, of any size and sign: cross-entropy "
        "and the scores compute the softmax themselves. It will learn less, and be less confident. Return the values "
        f"before {end.removeprefix('a ')}"
    )


def check_log_probabilities(criterions: Mapping[str, Any], mapping: Mapping[str, Any], logits: Tensor) -> None:
    """Raise UserError for a negative log-likelihood of logits, which falls without end."""
    for name, loss in criterions.items():
        is_nll = isinstance(loss, nn.NLLLoss) or getattr(loss, "func", loss) is nll_loss
        if (
            is_nll
            and mapping.get(name, {"logits": "input"}).get("logits") == "input"
            and logits.float().logsumexp(dim=1).abs().max() > NOT_LOG
        ):
            raise UserError(
                f"model.criterions.criterions.{name}: the negative log-likelihood needs log-probabilities, and the "
                f"network returns logits. Type model.criterions.criterions.{name}._target_=torch.nn.CrossEntropyLoss, "
                "which computes them, or end the network with log_softmax."
            )


def check_loss(loss: Tensor) -> None:
    """Raise UserError unless a loss is one number that depends on the weights."""
    if loss.numel() != 1:
        raise UserError(
            f"The loss has the shape {tuple(loss.shape)}. A loss must return one number, the mean over the batch."
        )
    if not loss.requires_grad:
        raise UserError("The loss does not depend on the weights: it is detached, or computed from the prediction.")

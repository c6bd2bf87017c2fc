"""A trial batch through the network and the losses, with words for what does not fit."""

import logging
from typing import Any

from torch import Tensor

from imago.errors import UserError
from imago.model.contract import check_log_probabilities, check_logits, end_warning, failed_layer, wrong_width
from imago.model.module import DictModule

log = logging.getLogger(__name__)


def forward(model: DictModule, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the output of the network.

    Raises:
        UserError: The network takes other images, or its output is no logits.
    """
    shape = "x".join(map(str, batch["image"].shape[1:]))
    try:
        batch = model(batch)
    except Exception as error:
        if (layer := failed_layer(model.net, error)) is not None:
            if (why := wrong_width(layer, error, batch["image"].shape)) is not None:
                raise UserError(why) from error
            error.add_note(f"while calling {layer}; images here are {shape}")
        raise
    check_logits(_maker(model), batch, len(model.class_names))
    return batch


def check_logits_of(model: DictModule, logits: Tensor) -> None:
    """Look whether what is called logits, and has its gradients, are logits."""
    if (warning := end_warning(_maker(model), logits)) is not None:
        log.warning(warning)
    check_log_probabilities(model.criterions.criterions, model.criterions.mapping, logits.detach())


def _maker(model: DictModule) -> str:
    return type(model.net).__name__ if model.forward_fn is None else "model.forward_fn"


def losses_of(model: DictModule, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Losses of `batch`; the attributes that the criterions change are restored."""
    before = [(module, dict(vars(module))) for module in model.criterions.modules()]
    try:
        return model.criterions(batch)
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)

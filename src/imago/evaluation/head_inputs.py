"""The inputs of a network's head while it is scored: features, at no further pass over the images."""

from typing import Any

import torch
from torch import Tensor, nn

from imago.data.features import COPIES
from imago.model.module import DictModule
from imago.resources import free_memory


class HeadInputs:
    """Keeper of the inputs of the Linear layer that gives the logits.

    Args:
        model: Its last Linear with an output for each class is taken for the head, and each batch is checked.
        images: Number of images, whose features have to fit into memory with what is made of them.
    """

    def __init__(self, model: DictModule, images: int) -> None:
        classes = len(model.class_names)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
        self._calls: list[tuple[Tensor, Tensor]] = []
        fits = bool(layers) and 8 * COPIES * images * layers[-1].in_features <= free_memory()
        self._hook = layers[-1].register_forward_hook(self._keep, with_kwargs=True) if fits else None

    def take(self, logits: Tensor) -> Tensor | None:
        """Inputs of the head, float32 (n, d), for the batch that has these logits; None if it did not make them."""
        calls, self._calls = self._calls, []
        if len(calls) != 1 or calls[0][0].ndim != 2 or not torch.equal(calls[0][1], logits):
            return None
        return calls[0][0].float().cpu()

    def close(self) -> None:
        """Stop keeping."""
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        """Steps of a `forward_fn` pass arguments by name."""
        self._calls.append((next(iter((*inputs, *named.values()))).detach(), output.detach()))

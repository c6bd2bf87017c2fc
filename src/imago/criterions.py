"""Losses by name, their weighted total, and their means over an epoch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imago.transforms import Batch, arguments

Criterion = Callable[..., Tensor]


class CriterionsComposition(nn.Module):
    """Each loss by its name, and their weighted sum as `total`.

    Args:
        criterions: Name -> loss, each the mean over the batch. An entry that is None is left out.
        weights: Name -> weight in the total; 1 where not given.
        mapping: Name -> (key of the batch -> argument of the loss); `logits: input, label: target` where not given.
    """

    def __init__(
        self,
        criterions: Mapping[str, Criterion | None],
        weights: Mapping[str, float] | None = None,
        mapping: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.criterions = {name: loss for name, loss in criterions.items() if loss is not None}
        self.registered = nn.ModuleList(loss for loss in self.criterions.values() if isinstance(loss, nn.Module))
        for option, given in (("weights", weights), ("mapping", mapping)):
            unknown = sorted(set(given or {}) - set(criterions))
            if unknown:
                raise ValueError(
                    f"{option} names {', '.join(unknown)}, but the criterions are {', '.join(criterions)}."
                )
        if "total" in self.criterions or not self.criterions:
            raise ValueError("Give at least one criterion, and call none of them 'total': that is their weighted sum.")
        self.weights = dict(weights or {})
        self.class_weights: Tensor | None = None
        """By label: each image's loss is multiplied with that of its class before the mean, so that it does not depend
        on which others are in the batch, as it does with the `weight` of torch's losses."""
        self.mapping = {name: dict(names) for name, names in (mapping or {}).items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.class_weights is not None:
            return {name: losses.mean() for name, losses in self.per_image(batch).items()}
        return self._with_total(
            {name: criterion(**self._arguments(name, batch)) for name, criterion in self.criterions.items()}
        )

    def per_image(self, batch: Batch) -> dict[str, Tensor]:
        """The same for each of the n images by itself, (n,); the `weight` of a loss is not divided by its sum.

        Raises:
            ValueError: A loss cannot say what an image adds to it.
        """
        losses = {name: _per_image(name, loss, self._arguments(name, batch)) for name, loss in self.criterions.items()}
        if self.class_weights is not None:
            if self.class_weights.device != batch["label"].device:
                self.class_weights = self.class_weights.to(batch["label"].device)
            weights = self.class_weights[batch["label"]]
            losses = {name: loss * weights for name, loss in losses.items()}
        return self._with_total(losses)

    def _arguments(self, name: str, batch: Batch) -> Batch:
        try:
            return arguments(batch, self.mapping.get(name, {"logits": "input", "label": "target"}))
        except KeyError as error:
            raise KeyError(f"model.criterions.mapping.{name}: {error.args[0]}") from error

    def _with_total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weighted = [self.weights[name] * loss if name in self.weights else loss for name, loss in losses.items()]
        return losses | {"total": weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(dim=0)}


def _per_image(name: str, criterion: Any, given: Batch) -> Tensor:
    if getattr(criterion, "reduction", None) != "mean":
        raise ValueError(
            f"model.criterions.criterions.{name}: the loss of each single image is needed, which losses of torch.nn "
            "with reduction=mean can give."
        )
    criterion.reduction = "none"
    try:
        losses = criterion(**given)
    finally:
        criterion.reduction = "mean"
    if not losses.ndim:
        raise ValueError(f"model.criterions.criterions.{name} gives one number for a batch, whatever its reduction is.")
    return losses if losses.ndim == 1 else losses.flatten(1).mean(dim=1)


class MeanLosses:
    """Means over samples of losses that are means over batches; summed up on the device of the losses."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self._sums = torch.zeros(len(self.names))
        self._count = 0

    def update(self, losses: Mapping[str, Tensor], samples: int) -> None:
        """Adds a batch of `samples` samples."""
        batch = torch.stack([losses[name].detach().float() for name in self.names])
        if self._sums.device != batch.device:
            self._sums = self._sums.to(batch.device)
        self._sums.add_(batch, alpha=samples)
        self._count += samples

    def compute(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """Name -> mean over what all processes, which call this together, have seen; they exchange it by `device`."""
        total = torch.cat([self._sums, self._sums.new_tensor([self._count])])
        total = total.to(device)  # in a process that had no batch they are still on the CPU
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return dict(zip(self.names, total[:-1] / total[-1], strict=True))

    def state(self) -> dict[str, Any]:
        """What this process has summed up: plain types and a tensor on the CPU."""
        return {"sums": self._sums.to("cpu", copy=True), "count": self._count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes `state()`."""
        self._sums, self._count = state["sums"].clone(), state["count"]

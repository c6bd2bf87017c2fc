"""Losses by name, their weighted total, and their means over an epoch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from imago.transforms import Batch, arguments

Criterion = Callable[..., Tensor]


class CriterionsComposition(nn.Module):
    """Each loss by its name, and their weighted sum as `total`.

    Args:
        criterions: Name -> loss, each the mean over the batch. An entry that is None is left out.
        weights: Name -> weight in the total; 1 where not given.
        mapping: Name -> (argument of the loss -> key of the batch); `input: logits, target: label` where not given.
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
        self.mapping = {name: dict(names) for name, names in (mapping or {}).items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = {
            name: criterion(**arguments(batch, self.mapping.get(name, {"input": "logits", "target": "label"})))
            for name, criterion in self.criterions.items()
        }
        total = torch.stack([self.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        return losses | {"total": total}


class MeanLosses(Metric):
    """Means over samples of losses that are means over batches."""

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(len(names)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, losses: Mapping[str, Tensor], samples: int) -> None:
        """Adds a batch of `samples` samples."""
        self.sums += samples * torch.stack([losses[name].detach().float() for name in self.names])
        self.count += samples

    def compute(self) -> dict[str, Tensor]:
        """Name -> mean."""
        return dict(zip(self.names, self.sums / self.count, strict=True))

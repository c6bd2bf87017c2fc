"""Losses by name, their weighted total, and their means over an epoch."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imago.definitions import PARTNER_LABEL, SHARE, Batch
from imago.distributed import all_gather_objects
from imago.errors import DivergenceError, MissingKeyError, UserError, kind_of
from imago.terminal import shortened
from imago.wiring import arguments, check_names, shapes_of

DIVERGENCE_HINT = (
    "Earlier checkpoints are kept. Try a smaller model.optimizer.lr=, or trainer.gradient_clip_val=1. "
    "To skip single batches, type model.on_bad_loss=skip."
)


Criterion = Callable[..., Tensor]


class CriterionsComposition(nn.Module):
    """Losses by name, and their weighted sum as `total`.

    Args:
        criterions: Name -> loss, the mean over the batch. None entries are left out.
        weights: Name -> weight in the total; 1 by default.
        mapping: Name -> (key of the batch -> argument of the loss); `logits: input, label: target` by default.
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
        for option, entries in (("weights", weights), ("mapping", mapping)):
            check_names(f"model.criterions.{option}", entries or {}, criterions, "criterions")
        if "total" in self.criterions or not self.criterions:
            raise UserError(
                "There must be at least one criterion, and none may be named 'total', which is their weighted sum."
            )
        self.weights = dict(weights or {})
        self.class_weights: Tensor | None = None
        """Weights by label, float32 (classes,). Each image's loss is multiplied by that of its class before the mean,
        so that it does not depend on the rest of the batch, as it does with the `weight` of torch's losses."""
        self.mapping = {name: dict(names) for name, names in (mapping or {}).items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean of each loss over the batch, and `total`: scalars by name. For mixed images it is the mean of those for
        both labels, weighted by their shares."""
        if PARTNER_LABEL not in batch:
            return self._means(batch)
        own, partner = self._means(batch), self._means(batch | {"label": batch[PARTNER_LABEL]})
        return {name: torch.lerp(partner[name], loss, batch[SHARE]) for name, loss in own.items()}

    def _means(self, batch: Batch) -> dict[str, Tensor]:
        if self.class_weights is not None:
            return {name: losses.mean() for name, losses in self.per_image(batch).items()}
        return self._with_total({name: self._mean(name, batch) for name in self.criterions})

    def _mean(self, name: str, batch: Batch) -> Tensor:
        inputs = self._arguments(name, batch)
        try:
            loss = self.criterions[name](**inputs)
        except Exception as error:
            error.add_note(f"while computing model.criterions.criterions.{name} of {shapes_of(inputs)}")
            raise
        return _scalar(name, loss)

    def per_image(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of each of the n images, and `total`, (n,) by name; the `weight` of a loss is not divided by its sum.

        Raises:
            ValueError: A loss has no values for single images.
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
            loss = self.criterions[name]
            call = loss.forward if isinstance(loss, nn.Module) else loss
            return arguments(batch, self.mapping.get(name, {"logits": "input", "label": "target"}), call)
        except MissingKeyError as error:
            raise MissingKeyError(f"model.criterions.mapping.{name}: {error}") from error

    def _with_total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weighted = [self.weights[name] * loss if name in self.weights else loss for name, loss in losses.items()]
        return losses | {"total": weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(dim=0)}


def _scalar(name: str, loss: Any) -> Tensor:
    """The value of a loss, without dimensions. Raises UserError if it is anything else than one number."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss if loss.ndim == 0 else loss.reshape(())
    returned = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else kind_of(loss)
    how = "Leave out .item(): a number has no gradients" if isinstance(loss, float) else "End it with .mean()"
    raise UserError(
        f"model.criterions.criterions.{name} returns {returned}. A loss returns one number (a scalar tensor), the mean "
        f"over the batch. {how}."
    )


def _per_image(name: str, criterion: Any, inputs: Batch) -> Tensor:
    if getattr(criterion, "reduction", None) != "mean":
        raise UserError(
            f"model.criterions.criterions.{name}: a loss value per image is needed. Losses of torch.nn with "
            "reduction=mean provide it."
        )
    criterion.reduction = "none"
    try:
        losses = criterion(**inputs)
    finally:
        criterion.reduction = "mean"
    if not losses.ndim:
        raise UserError(f"model.criterions.criterions.{name} returns one number per batch, even with reduction=none.")
    return losses if losses.ndim == 1 else losses.flatten(1).mean(dim=1)


def with_losses(batch: Batch, losses: Mapping[str, Tensor]) -> Batch:
    """Add `loss`, the total, and `losses`, all by name and without gradients, to a batch."""
    return batch | {"loss": losses["total"], "losses": {name: value.detach() for name, value in losses.items()}}


class MeanLosses:
    """Means over samples of losses that are means over batches, summed on the device of the losses."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = torch.zeros(len(self.names))
        self._count = 0

    def update(self, losses: Mapping[str, Tensor], samples: int) -> None:
        """Add a batch of `samples` samples by its mean `losses`, scalars."""
        self._add(self._stacked(losses), samples)

    def compute(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """Name -> mean over the samples of all processes, a float32 scalar. All processes call this together, and
        exchange sums on `device`."""
        total = self._total().to(device)  # without a batch, the sums are still on the CPU
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return self._means(total)

    def state_dict(self) -> dict[str, Any]:
        """Sums of this process: plain types and a tensor on the CPU."""
        return {"sums": self._sums.to("cpu", copy=True), "count": self._count}

    def load_state_dict(self, *states: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, or add up those of several processes."""
        self._sums, self._count = sum(state["sums"] for state in states), sum(state["count"] for state in states)

    def _stacked(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([losses[name].detach().float() for name in self.names])

    def _add(self, batch: Tensor, samples: int) -> None:
        if self._sums.device != batch.device:
            self._sums = self._sums.to(batch.device)
        self._sums.add_(batch, alpha=samples)
        self._count += samples

    def _total(self) -> Tensor:
        """Sums and number of samples, float32 (losses + 1,)."""
        return torch.cat([self._sums, self._sums.new_tensor([self._count])])

    def _means(self, total: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, total[:-1] / total[-1], strict=True))


class OrderedMeanLosses(MeanLosses):
    """Means over batches that are dealt in turn to the processes, equal to the bit for any number of these: the sums of
    floats depend on their order, which is that of a single process."""

    def reset(self) -> None:
        super().reset()
        self._batches: list[tuple[Tensor, int]] = []

    def update(self, losses: Mapping[str, Tensor], samples: int) -> None:
        if torch.distributed.is_initialized():
            self._batches.append((self._stacked(losses), samples))
        else:
            super().update(losses, samples)

    def compute(self, device: torch.device | None = None) -> dict[str, Tensor]:
        if not torch.distributed.is_initialized():
            return super().compute(device)
        own = torch.stack([batch for batch, _ in self._batches]).cpu() if self._batches else torch.empty(0)
        parts = all_gather_objects((own, [samples for _, samples in self._batches]))
        dealt = [(batches.to(device), samples) for batches, samples in parts]
        super().reset()
        for turn in range(len(parts[0][1])):  # the first process has the most batches
            for batches, samples in dealt:
                if turn < len(samples):
                    self._add(batches[turn], samples[turn])
        return self._means(self._total().to(device))


class FiniteLosses:
    """Losses of train batches that are checked together: on a GPU, reading each one would stall the device."""

    def __init__(self) -> None:
        self._unchecked: list[tuple[Tensor, int, int, int]] = []

    def note(self, loss: Tensor, epoch: int, batch: int, step: int) -> None:
        """Keep a loss, a scalar, until `check`."""
        self._unchecked.append((loss, epoch, batch, step))

    def check(self) -> None:
        """Raise DivergenceError, with the step, if a loss since the last call was not finite."""
        losses, self._unchecked = self._unchecked, []
        if not losses:
            return
        values = torch.stack([loss for loss, *_ in losses]).tolist() if len(losses) > 1 else [losses[0][0].item()]
        for (_, *where), value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                raise DivergenceError(f"{bad_loss(value, *where)}. {DIVERGENCE_HINT}")


def bad_loss(value: float, epoch: int, batch: int, step: int) -> str:
    """Message about a loss that is not finite. `epoch` and `batch` count from 0, in the message from 1."""
    return f"The loss became {value} in epoch {epoch + 1}, batch {batch + 1} (step {step})"


def class_weight_tensor(
    weights: Mapping[str, float] | Sequence[float] | str,
    class_names: Sequence[str],
    setting: str = "model.class_weights",
) -> Tensor:
    """Weight of each class, float32 (classes,), in the order of `class_names`; 1 by default. Messages name `setting`.

    training/class_frequencies.py has replaced `auto` and `effective` by numbers before.

    Raises:
        UserError: A name is not a class, or a weight is negative or not finite.
    """
    if isinstance(weights, str):
        raise UserError(
            "model.class_weights must be auto, effective, or class names with weights such as {NAME: 5}; got "
            f"{weights}."
        )
    if isinstance(weights, Mapping):
        if unknown := [str(name) for name in weights if str(name) not in class_names]:
            close = difflib.get_close_matches(unknown[0], class_names, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            known = f"the classes are {shortened(class_names, 20)}"
            raise UserError(f"{setting} names {', '.join(unknown)}, but {known}.{meant}")
        class_weights = {str(name): weight for name, weight in weights.items()}
        weights = [class_weights.get(name, 1.0) for name in class_names]
    if len(weights) != len(class_names):
        raise UserError(f"{setting} has {len(weights)} weights for {len(class_names)} classes.")
    if any(not isinstance(weight, int | float) or not 0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"{setting} must be numbers of 0 or more, not all 0; got {list(weights)}.")
    return torch.tensor(weights, dtype=torch.float32)

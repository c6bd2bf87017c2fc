"""Losses of class indices besides torch's cross-entropy: focal, one-vs-all, and with adjusted logits."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from imago.definitions import AtLeast, Below
from imago.errors import UserError

AUTO_COUNTS: Literal["auto"] = "auto"


class _ClassLoss(nn.Module):
    """A loss with a value per image, and their mean: `reduction` is `mean` or `none`, as in torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Map logits, float (n, classes), and labels, int64 (n,), to the mean loss, or to losses (n,)."""
        losses = self.per_image(input, target)
        return losses.mean() if self.reduction == "mean" else losses

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses (n,) of logits (n, classes)."""
        raise NotImplementedError


class FocalLoss(_ClassLoss):
    """Cross-entropy times `(1 - p)^gamma`, where p is the probability of the label: images that the network has
    learned weigh little ([Lin et al. 2017](https://arxiv.org/abs/1708.02002), here for exclusive classes).

    Args:
        gamma: 0 is the cross-entropy; larger values shift the weight further to hard images.
    """

    def __init__(self, gamma: Annotated[float, AtLeast(0)] = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise UserError(f"FocalLoss: gamma must be 0 or more, got {gamma}.")
        self.gamma = gamma

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = -functional.cross_entropy(logits, labels, reduction="none")
        # 1 - exp(log_p) is 0 in float32 where p rounds to 1, and the gradient of 0^gamma is infinite for gamma < 1
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(rest**self.gamma) * log_p


class OneVsAllLoss(_ClassLoss):
    """Binary cross-entropy of each class against all others, summed over the classes
    ([Wightman et al. 2021](https://arxiv.org/abs/2110.00476), [Beyer et al. 2020](https://arxiv.org/abs/2006.07159)).

    Predictions remain the softmax of the logits: the order of the classes is that of the sigmoids.

    Args:
        label_smoothing: Targets are 1 - s + s / classes for the label and s / classes for the others.
    """

    def __init__(self, label_smoothing: Annotated[float, AtLeast(0), Below(1)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = _checked_smoothing(self, label_smoothing)

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


class LogitAdjustedLoss(_ClassLoss):
    """Cross-entropy of `logits + tau * log(class frequencies)`, for train images with rare classes
    ([Menon et al. 2021](https://arxiv.org/abs/2007.07314)).

    Predictions use the plain logits, which then favour no class for being frequent. The losses of val and test are
    adjusted like that of train.

    Args:
        class_counts: Train images of each class, by label; in a config `auto`.
        tau: 0 is the cross-entropy, 1 minimises the mean error of the classes.
        label_smoothing: As in torch.nn.CrossEntropyLoss.

    Raises:
        UserError: A value is out of range.
    """

    prior: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Literal["auto"] = AUTO_COUNTS,
        tau: Annotated[float, AtLeast(0)] = 1.0,
        label_smoothing: Annotated[float, AtLeast(0), Below(1)] = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(class_counts, str):
            raise UserError(
                f"LogitAdjustedLoss: class_counts must be the train images of each class, got {class_counts}. A config "
                "may say auto, which a training replaces by them."
            )
        counts = torch.tensor(list(class_counts), dtype=torch.float64)
        if not len(counts) or not bool((counts > 0).all()):
            raise UserError(f"LogitAdjustedLoss: class_counts must be above 0, got {list(class_counts)}.")
        if tau < 0:
            raise UserError(f"LogitAdjustedLoss: tau must be 0 or more, got {tau}.")
        self.label_smoothing = _checked_smoothing(self, label_smoothing)
        self.register_buffer("prior", (tau * (counts / counts.sum()).log()).float(), persistent=False)

    def per_image(self, logits: Tensor, labels: Tensor) -> Tensor:
        if len(self.prior) != logits.shape[1]:
            raise UserError(
                f"LogitAdjustedLoss: class_counts has {len(self.prior)} numbers for {logits.shape[1]} classes."
            )
        adjusted = logits + self.prior
        return functional.cross_entropy(adjusted, labels, reduction="none", label_smoothing=self.label_smoothing)


def _checked_smoothing(loss: nn.Module, value: float) -> float:
    if not 0 <= value < 1:
        raise UserError(f"{type(loss).__name__}: label_smoothing must be 0 or more and below 1, got {value}.")
    return value

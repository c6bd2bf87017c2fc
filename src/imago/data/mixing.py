"""Mixtures of the images of a train batch."""

import torch
from torch import Tensor, nn

from imago.definitions import PARTNER_LABEL, SHARE, Batch
from imago.errors import UserError


class MixUp(nn.Module):
    """Average each image (n, channels, height, width) with the one before it in the batch, at random
    ([Zhang et al. 2018](https://arxiv.org/abs/1710.09412)).

    The batch gets `share`, the weight of an image's own label, from 0.5 to 1, and `partner_label`, the label of the
    other image, int64 (n,): `CriterionsComposition` averages the losses with these weights. Metrics count `label`.

    Args:
        alpha: Both parameters of the Beta distribution of the share, above 0. Small ones mix little.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        if not alpha > 0:
            raise UserError(f"{type(self).__name__}: alpha must be above 0, got {alpha}.")
        self.alpha = alpha

    def forward(self, batch: Batch) -> Batch:
        if PARTNER_LABEL in batch:
            raise UserError(
                "The images are mixed already: MixUp and CutMix cannot both be in data.train_transform.batch"
            )
        drawn = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        image, share = self._mixed(batch["image"], batch["image"].roll(1, dims=0), max(drawn, 1 - drawn))
        return {"image": image, SHARE: share, PARTNER_LABEL: batch["label"].roll(1)}

    def _mixed(self, image: Tensor, partner: Tensor, share: float) -> tuple[Tensor, float]:
        """The mixture, and the share of `image` in it."""
        if not image.is_floating_point():
            raise UserError("MixUp averages images after normalize. List it there, in data.train_transform.batch")
        return torch.lerp(partner, image, share), share


class CutMix(MixUp):
    """Replace a random rectangle of each image by that of the one before it in the batch
    ([Yun et al. 2019](https://arxiv.org/abs/1905.04899)).

    Entries of the batch are those of `MixUp`; the share is the part of the area that is left of an image.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def _mixed(self, image: Tensor, partner: Tensor, share: float) -> tuple[Tensor, float]:
        bounds = []
        for side in image.shape[-2:]:
            middle, half = float(torch.rand(())) * side, side * (1 - share) ** 0.5 / 2
            bounds.append(slice(max(round(middle - half), 0), min(round(middle + half), side)))
        mixed = image.clone()
        mixed[..., bounds[0], bounds[1]] = partner[..., bounds[0], bounds[1]]
        replaced = mixed[0, 0, bounds[0], bounds[1]].numel() / mixed[0, 0].numel()
        return mixed, 1 - replaced

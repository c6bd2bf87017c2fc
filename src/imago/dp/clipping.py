"""Clipping of the gradients of single images before they are summed."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from imago.dp.secret import SecretDraws
from imago.dp.terms import GradTerm


class Clipping:
    """`flat` clipping: the gradient of an image over all parameters has at most the L2 norm `norm`."""

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def clipped(self, parts: Mapping[str, GradTerm], count: int) -> Iterator[tuple[str, Tensor]]:
        """Yield name and sum over the images of clipped gradients, in the shape of the parameter; `count` parameters
        are trained."""
        norms = torch.stack([part.squared_norms() for part in parts.values()]).sum(dim=0).sqrt()
        self._look_at(norms)
        factors = self._factors(norms, self.norm)
        for name, part in parts.items():
            yield name, part.weighted_sum(factors)

    def noise_std(self, noise_multiplier: float) -> float:
        """Standard deviation of the noise on the summed gradients."""
        return noise_multiplier * self.norm

    def adapt(self, draws: SecretDraws, noise_multiplier: float, expected: float) -> None:
        """Adapt the norm after a step on `expected` images in the mean."""

    def _look_at(self, norms: Tensor) -> None:
        """Observe the gradient norms (n,) of a part of the batch, before it is clipped."""

    @staticmethod
    def _factors(norms: Tensor, norm: float) -> Tensor:
        return (norm / norms.clamp_min(1e-12)).clamp(max=1.0)


class PerLayer(Clipping):
    """`per_layer` clipping: the gradient of each of k parameters has at most the L2 norm `norm` / sqrt(k)."""

    def clipped(self, parts: Mapping[str, GradTerm], count: int) -> Iterator[tuple[str, Tensor]]:
        for name, part in parts.items():
            yield name, part.weighted_sum(self._factors(part.squared_norms().sqrt(), self.norm / count**0.5))


class Adaptive(Clipping):
    """`adaptive` clipping: `flat`, with a norm that follows a quantile of the norms (Andrew et al. 2021, algorithm 1).

    The number of gradients below the norm is queried with noise of its own. The gradients get a little more noise, so
    that both together spend what gradients with the noise multiplier of the run would.
    """

    QUANTILE, RATE = 0.5, 0.2

    def __init__(self, norm: float) -> None:
        super().__init__(norm)
        self._below: Tensor | float = 0.0  # sum of 1/2 per norm below, and -1/2 per norm above: at most 1/2 per image

    def noise_std(self, noise_multiplier: float) -> float:
        if noise_multiplier == 0:
            return 0.0
        counting = self._std_of_count(noise_multiplier)
        return self.norm * (noise_multiplier**-2 - (2 * counting) ** -2) ** -0.5

    def adapt(self, draws: SecretDraws, noise_multiplier: float, expected: float) -> None:
        below = torch.as_tensor(self._below, dtype=torch.float64)
        noisy = below + draws.normal(torch.zeros((), dtype=torch.float64), self._std_of_count(noise_multiplier)).to(
            below.device
        )
        share = min(1.0, max(0.0, float(noisy) / expected + 0.5))
        self.norm *= float(torch.exp(torch.tensor(-self.RATE * (share - self.QUANTILE))))
        self._below = 0.0

    def _look_at(self, norms: Tensor) -> None:
        self._below = self._below + ((norms <= self.norm).double() - 0.5).sum()

    @staticmethod
    def _std_of_count(noise_multiplier: float) -> float:
        """Standard deviation of the noise on the count, such that the gradients need 2% more noise."""
        return noise_multiplier * 2.5


CLIPPINGS: dict[str, type[Clipping]] = {"flat": Clipping, "per_layer": PerLayer, "adaptive": Adaptive}
"""Clipping classes by their names in `strategy.clipping`."""

"""Gradients of single images as terms that are summed without being written out."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from imago.errors import UserError


class UnknownGradientError(UserError):
    """A parameter is used in a way for which the per-sample gradient is not known."""


class GradTerm(ABC):
    """Gradients of one use of a parameter for each of n samples, in float32 or float64."""

    @abstractmethod
    def whole(self) -> Tensor:
        """Return the gradients (n, *shape of the parameter)."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Return the squared L2 norms of the gradients, (n,)."""

    @abstractmethod
    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Return the sum of the gradients weighted by `factors` (n,), in the shape of the parameter."""

    @abstractmethod
    def without(self, samples: Tensor) -> "GradTerm":
        """Return the term with the gradients of `samples`, bool (n,), set to 0, whatever they were."""


def _zeroed(values: Tensor, samples: Tensor) -> Tensor:
    return values.masked_fill(samples.view(-1, *[1] * (values.ndim - 1)), 0.0)


@dataclass
class DenseGrads(GradTerm):
    """Gradients written out, (n, *shape of the parameter)."""

    gradients: Tensor

    def without(self, samples: Tensor) -> "GradTerm":
        return type(self)(_zeroed(self.gradients, samples))

    def whole(self) -> Tensor:
        return self.gradients

    def squared_norms(self) -> Tensor:
        rows = self.gradients.flatten(2) if self.gradients.ndim > 2 else self.gradients[:, None]
        return torch.linalg.vector_norm(rows, dim=2).square().sum(dim=1)  # in one step it is off by 1e-3 for large ones

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return (factors @ self.gradients.flatten(1)).view(self.gradients.shape[1:])


class KernelGrads(DenseGrads):
    """Gradients of a convolution written out, as (n, out, height, width, in)."""

    def whole(self) -> Tensor:
        return self.gradients.permute(0, 1, 4, 2, 3)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return super().weighted_sum(factors).permute(0, 3, 1, 2)


@dataclass
class LinearGrads(GradTerm):
    """Gradients of a matrix by inputs (n, T, in) and gradients of the outputs (n, T, out)."""

    inputs: Tensor
    outputs: Tensor

    def without(self, samples: Tensor) -> "GradTerm":
        return replace(self, inputs=_zeroed(self.inputs, samples), outputs=_zeroed(self.outputs, samples))

    def whole(self) -> Tensor:
        return self.outputs.transpose(1, 2) @ self.inputs

    def squared_norms(self) -> Tensor:
        return _gram_norms(self.inputs, self.outputs)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        weighted = self.outputs * factors.view(-1, 1, 1)
        return weighted.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    @property
    def prefers_gram(self) -> bool:
        """Whether the Gram matrices are cheaper."""
        _, places, inputs = self.inputs.shape
        return _prefers_gram(places, inputs, self.outputs.shape[2])


@dataclass
class ConvGrads(GradTerm):
    """Gradients of a kernel by inputs (n, in, height, width) and gradients of the outputs (n, out, height', width')."""

    inputs: Tensor
    outputs: Tensor
    kernel: torch.Size
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def without(self, samples: Tensor) -> "GradTerm":
        return replace(self, inputs=_zeroed(self.inputs, samples), outputs=_zeroed(self.outputs, samples))

    def whole(self) -> Tensor:
        return self.kernels().whole()

    def kernels(self) -> "KernelGrads":
        """Write the gradients out, in the memory order in which they are computed."""
        patches, outputs = self._matrices()
        out, inputs, height, width = self.kernel
        return KernelGrads((outputs.transpose(1, 2) @ patches).view(-1, out, height, width, inputs))

    def squared_norms(self) -> Tensor:
        return _gram_norms(*self._matrices()).view(-1, self.groups).sum(dim=1)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        weighted = self.outputs * factors.view(-1, 1, 1, 1)
        sizes = (self.stride, self.padding, self.dilation)
        empty = self.inputs.new_empty(1).expand(self.kernel)  # only its shape is read
        _, summed, _ = torch.ops.aten.convolution_backward(
            weighted, self.inputs, empty, None, *sizes, False, [0, 0], self.groups, [False, True, False]
        )
        return summed

    @property
    def prefers_gram(self) -> bool:
        """Whether the Gram matrices are cheaper."""
        return _prefers_gram(
            self.outputs[0, 0].numel(), math.prod(self.kernel[1:]), self.outputs.shape[1] // self.groups
        )

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the gradients: (n * groups, T, values of a patch), and (n * groups, T, out / groups).

        Channels come last, as in the memory of most networks, which is twice as fast as `unfold`.
        """
        count, out, height, width = self.outputs.shape
        _, channels, down, across = self.kernel
        (top, left), (step_down, step_across) = self.padding, self.stride
        pixels = self.inputs.permute(0, 2, 3, 1)
        if top or left:
            pixels = F.pad(pixels, (0, 0, left, left, top, top))
        image, row, column, channel = (pixels := pixels.contiguous()).stride()
        patches = pixels.as_strided(
            (count, self.groups, height, width, down, across, channels),
            (
                *(image, channels * channel, row * step_down, column * step_across),
                *(row * self.dilation[0], column * self.dilation[1], channel),
            ),
        )
        outputs = self.outputs.view(count, self.groups, out // self.groups, height, width).permute(0, 1, 3, 4, 2)
        return (
            patches.reshape(count * self.groups, height * width, -1),
            outputs.reshape(count * self.groups, height * width, -1),
        )


@dataclass
class WithNorms(GradTerm):
    """Term whose squared norms (n,) are known."""

    part: GradTerm
    norms: Tensor

    def without(self, samples: Tensor) -> "GradTerm":
        return WithNorms(self.part.without(samples), _zeroed(self.norms, samples))

    def whole(self) -> Tensor:
        return self.part.whole()

    def squared_norms(self) -> Tensor:
        return self.norms

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return self.part.weighted_sum(factors)


def _gram_norms(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Compute the squared norms (n,) of `outputs.transpose(1, 2) @ inputs`, both (n, T, …)."""
    if inputs.shape[1] == 1:
        return inputs.square().sum(dim=(1, 2)) * outputs.square().sum(dim=(1, 2))
    products = (inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))
    rounding = torch.finfo(products.dtype).eps * products.abs().sum(dim=(1, 2))  # so that no norm is too small
    return products.sum(dim=(1, 2)).clamp_min(0) + rounding


def _prefers_gram(places: int, inputs: int, outputs: int) -> bool:
    return places * (inputs + outputs) < inputs * outputs


def to_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32: under autocast, gradients come in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

"""The order of batches, as a function of seed and epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from imago.data.images import Images
from imago.definitions import SampleKey
from imago.randomness import derive_seed


class Placement(NamedTuple):
    """Rank of a process, and number of processes of the run."""

    rank: int = 0
    processes: int = 1


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """This process's part of the train batches, as (epoch, index); the order is a function of (seed, epoch).

    A batch of the run has the same images for any number of processes, and is divided among them as evenly as it can
    be. In a last batch that is too small for all, the last processes have no part: the first two images of the batch
    stand in, with the weight 0. A last batch of a single image is left out (unless it is the only batch), because
    BatchNorm cannot train on one value. Which image this is changes with every epoch. `fixed_order` repeats the order
    of epoch 0. If images are removed from the data, the remaining ones keep their order.

    With `weights` of the images, float64 (n,), an epoch draws each as often as its weight says, and has keys with the
    number of earlier draws of an image.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        fixed_order: bool = False,
        rank: int = 0,
        processes: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        self.images = images
        self.size = len(images)
        self.batch_size = batch_size
        self.seed = seed
        self.fixed_order = fixed_order
        self.rank = rank
        self.processes = processes
        self.weights = weights
        self.epoch = 0
        self.announced_from: int | None = 0
        """The first batch of which the images take note; None if their decoded pixels are cached."""

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest > 1 or (rest == 1 and full == 0))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._order()
        repeats = None if self.weights is None else _earlier_draws(order)
        for number in range(len(self)):
            images, first = self._images_of(number), number * self.batch_size
            if self.announced_from is not None and number >= self.announced_from:
                self.images.announce(order, first)
            part = self._part_of(images) or range(min(2, images))
            these = slice(first + part.start, first + part.stop)
            indices = order[these].tolist()
            if repeats is None:
                yield [(self.epoch, index) for index in indices]
            else:
                yield [(self.epoch, *key) for key in zip(indices, repeats[these].tolist(), strict=True)]

    def weight(self, number: int) -> float:
        """Weight of the mean over this process's part of batch `number`: with it, the mean over the processes is that
        over the images of the batch. It is 0 if this process has no part."""
        images = self._images_of(number)
        return len(self._part_of(images)) * self.processes / images

    def _images_of(self, number: int) -> int:
        """Images of the whole batch `number`."""
        return min(self.batch_size, self.size - number * self.batch_size)

    def _part_of(self, images: int) -> range:
        """Positions of this process's part in a batch: two images or more for BatchNorm, if the batch size allows."""
        least = 2 if self.batch_size >= 2 * self.processes else 1
        active = min(self.processes, max(1, images // least))
        if self.rank >= active:
            return range(0)
        return range(images * self.rank // active, images * (self.rank + 1) // active)

    def _order(self) -> Tensor:
        epoch = 0 if self.fixed_order else self.epoch
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order = torch.randperm(self.images.total or self.size, generator=generator)
        if self.images.numbers is not None:
            order = torch.from_numpy(self.images.places())[order]
            order = order[order >= 0]
        if self.weights is not None:
            order = self._drawn(order, generator)
        return self.images.order(order, generator)

    def _drawn(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Draw as many images as there are from a random `order`: each as often as its weight says, rounded up or down
        at random (systematic sampling), and so is each class."""
        assert self.weights is not None
        labels = torch.as_tensor(np.asarray(self.images.labels, np.int64))
        order = order[torch.argsort(labels[order], stable=True)]
        ends = self.weights[order].cumsum(0)
        ends *= self.size / ends[-1].clone()
        offset = torch.rand((), dtype=torch.float64, generator=generator)
        upto = (ends - offset).ceil().clamp(0, self.size).long()  # draws at offset, offset + 1, …
        upto[-1] = self.size  # whatever the sum is rounded to
        drawn = order.repeat_interleave(upto.diff(prepend=upto.new_zeros(1)))
        return drawn[torch.randperm(self.size, generator=generator)]


def _earlier_draws(order: Tensor) -> Tensor:
    """Count how often each entry of an order stands before it in the order, int64 (n,)."""
    by_index = torch.argsort(order, stable=True)
    _, sizes = torch.unique_consecutive(order[by_index], return_counts=True)
    firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    earlier = torch.empty_like(order)
    earlier[by_index] = torch.arange(len(order)) - firsts
    return earlier


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every `processes`-th of all batches, or of the first `most`, in order, as (epoch, index). Batches are not
    divided, so that they are the same for any number of processes and no image is seen twice."""

    epoch = 0

    def __init__(self, size: int, batch_size: int, rank: int = 0, processes: int = 1, most: int | None = None) -> None:
        self.size = size if most is None else min(size, most * batch_size)
        self.batch_size = batch_size
        self.of_run = -(-self.size // batch_size)
        """Number of batches of all processes together."""
        self.firsts = range(rank * batch_size, self.size, processes * batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in self.firsts:
            yield [(self.epoch, index) for index in range(first, min(first + self.batch_size, self.size))]


class SkipBatches(Sampler[list[SampleKey]]):
    """The batches of a sampler from `first` on; earlier ones are not loaded."""

    first = 0

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.first)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return islice(iter(self.batches), self.first, None)

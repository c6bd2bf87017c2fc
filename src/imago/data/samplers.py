"""The order of batches, as a function of seed and epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from imago.data.images import Images
from imago.definitions import SampleKey
from imago.errors import UserError, undivided_batch
from imago.randomness import derive_seed


class Placement(NamedTuple):
    """Rank of a process, and number of processes of the run."""

    rank: int = 0
    processes: int = 1


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """This process's part of the train batches, as (epoch, index); the order is a function of (seed, epoch).

    Every batch of the run is divided evenly. Images that remain are left out of the last batch; the whole last batch is
    left out if a process would get a single image (unless it is the only batch), because BatchNorm cannot train on one
    value. Which images these are changes with every epoch. `fixed_order` repeats the order of epoch 0. If images are
    removed from the data, the remaining ones keep their order.

    Raises:
        ValueError: The batch cannot be divided by the number of processes.
    """

    def __init__(
        self, images: Images, batch_size: int, seed: int, fixed_order: bool = False, rank: int = 0, processes: int = 1
    ) -> None:
        size = len(images)
        if (why := undivided_batch(batch_size, processes)) is not None:
            raise UserError(why)
        if size < processes:
            raise UserError(f"{size} train images are too few for {processes} processes. Type trainer.devices=1")
        self.images = images
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.fixed_order = fixed_order
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        share = rest // self.processes
        return full + (share > 1 or (share == 1 and full == 0))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._order()
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            share = min(self.batch_size, self.size - first) // self.processes
            first += self.rank * share
            yield [(self.epoch, index) for index in order[first : first + share].tolist()]

    def _order(self) -> Tensor:
        epoch = 0 if self.fixed_order else self.epoch
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order = torch.randperm(self.images.total or self.size, generator=generator)
        if self.images.numbers is None:
            return order
        left = set(self.images.numbers)
        return torch.tensor(self.images.indices([number for number in order.tolist() if number in left]))


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every `processes`-th batch, in order, as (epoch, index). Batches are not divided, so that they are the same for
    any number of processes and no image is seen twice."""

    epoch = 0

    def __init__(self, size: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.firsts = range(rank * batch_size, size, processes * batch_size)

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

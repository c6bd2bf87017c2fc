"""Batches of a split, in an order and with augmentations that are functions of seed, epoch and index."""

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imago.data.decode import BadImageError, damaged_files
from imago.data.images import Images
from imago.data.stages import ImageTransform, Size, pair, stacked
from imago.randomness import key, seeded
from imago.signals import STOPPING
from imago.transforms import Batch

Position = tuple[int, int]  # epoch, index


class ImageDataset(Dataset[Batch]):
    """The images of a split, each asked for as (epoch, index).

    With `keep_bad`, one that cannot be read is black, and its `error` says why. `draw_key` makes the key of 64 bits
    that an image's random numbers come from, given ("augmentation", seed, epoch, number of the image).
    """

    def __init__(
        self,
        images: Images,
        transform: ImageTransform,
        image_size: Size,
        seed: int,
        keep_bad: bool = False,
        draw_key: Callable[..., int] = key,
    ) -> None:
        self.images = images
        self.transform = transform
        self.image_size = image_size
        self.seed = seed
        self.keep_bad = keep_bad
        self.draw_key = draw_key

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def is_sliced(self) -> bool:
        """Whether batches are slices of images in memory, with nothing random done to each."""
        return self.transform.randomness == "none" and not self.keep_bad and self.images.read_many([0]) is not None

    def __getitems__(self, positions: list[Position]) -> list[Batch] | Batch:
        """A whole batch at once, where it is a slice, or empty."""
        if not positions:
            return self._empty()
        if not self.is_sliced:
            return [self[position] for position in positions]
        indices = [index for _, index in positions]
        images = self.images.read_many(indices)
        assert images is not None
        labels, numbers = self._labels_and_numbers
        return {
            "image": self.transform.image(images, self.image_size),
            "label": labels[indices],
            "index": numbers[indices],
            "epoch": positions[0][0],
        }

    def _empty(self) -> Batch:
        """A batch of no images: Poisson sampling has such."""
        none = torch.zeros(0, dtype=torch.int64)
        shape = (0, self.images.channels, *pair(self.image_size))
        return {"image": torch.zeros(shape, dtype=torch.uint8), "label": none, "index": none.clone(), "epoch": 0}

    @cached_property
    def _labels_and_numbers(self) -> tuple[Tensor, Tensor]:
        """Of all images, int64 (n,); batches that are no slices do without."""
        numbers = range(len(self)) if self.images.numbers is None else self.images.numbers
        return torch.tensor(list(self.images.labels)), torch.tensor(numbers)

    def __getitem__(self, position: Position) -> Batch:
        epoch, index = position
        number = index if self.images.numbers is None else self.images.numbers[index]
        error = ""
        try:
            image = self.augmented(index, self.draw_key("augmentation", self.seed, epoch, number))
        except BadImageError as bad:
            error = str(bad)
            if not self.keep_bad:
                return {"error": error}  # an exception would come out of a worker as a traceback in words
            image = self.transform.resized(torch.zeros(self.images.channels, 1, 1, dtype=torch.uint8), self.image_size)
        sample = {"image": image, "label": self.images.labels[index], "index": number, "epoch": epoch}
        if damaged := damaged_files():
            sample["damaged"] = damaged
        return sample | ({"bad": error} if self.keep_bad else {})

    def augmented(self, index: int, draw_key: int) -> Tensor:
        """The image after box and pixels; the generators that they may draw from are seeded with `draw_key` first."""
        if self.transform.randomness == "any":
            with seeded(draw_key):
                return self._transformed(index)
        if self.transform.randomness == "box":
            random.seed(draw_key)  # the same numbers, and a tenth of the time of seeding all generators
        return self._transformed(index)

    def _transformed(self, index: int) -> Tensor:
        return self.transform.resized(self.images.read_box(index, self.transform.box, self.image_size), self.image_size)


class TrainBatchSampler(Sampler[list[Position]]):
    """This process's part of the train batches, as (epoch, index); the order is a function of (seed, epoch).

    Every batch of the run is divided evenly: what cannot be is left out of the last one, and the whole last batch if it
    would leave a process with a single image (unless it is the only one), because BatchNorm cannot train on one value.
    Which images those are changes with every epoch. `same_order` repeats the order of epoch 0. Where images were left
    out, the others keep their order.

    Raises:
        ValueError: The batch cannot be divided by the number of processes.
    """

    def __init__(
        self, images: Images, batch_size: int, seed: int, same_order: bool = False, rank: int = 0, processes: int = 1
    ) -> None:
        size = len(images)
        if batch_size % processes:
            raise ValueError(
                f"data.batch_size={batch_size} is that of the whole run: {processes} processes cannot divide it. "
                f"Type data.batch_size={max(1, round(batch_size / processes)) * processes}"
            )
        if size < processes:
            raise ValueError(f"{size} train images cannot be divided by {processes} processes: type trainer.devices=1")
        self.images = images
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.same_order = same_order
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        share = rest // self.processes
        return full + (share > 1 or (share == 1 and full == 0))

    def __iter__(self) -> Iterator[list[Position]]:
        order = self._order()
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            share = min(self.batch_size, self.size - first) // self.processes
            first += self.rank * share
            yield [(self.epoch, index) for index in order[first : first + share].tolist()]

    def _order(self) -> Tensor:
        epoch = 0 if self.same_order else self.epoch
        generator = torch.Generator().manual_seed(key("order", self.seed, epoch))
        order = torch.randperm(self.images.total or self.size, generator=generator)
        if self.images.numbers is None:
            return order
        left = set(self.images.numbers)
        return torch.tensor(self.images.indices([number for number in order.tolist() if number in left]))


class EvalBatchSampler(Sampler[list[Position]]):
    """Every `processes`-th batch, in order. Whole batches are dealt, so that each is the same for any number of
    processes and no image is seen twice."""

    epoch = 0

    def __init__(self, size: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.firsts = range(rank * batch_size, size, processes * batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[list[Position]]:
        for first in self.firsts:
            yield [(self.epoch, index) for index in range(first, min(first + self.batch_size, self.size))]


class RestOfEpoch(Sampler[list[Position]]):
    """The batches of a sampler from `first` on; those before are not loaded."""

    first = 0

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.first)

    def __iter__(self) -> Iterator[list[Position]]:
        return islice(iter(self.batches), self.first, None)


class Loader:
    """Yields the batches of a split.

    No subclass of DataLoader, so that Lightning takes it as it is; lazy, so that `position` (the epoch, and the batch
    to begin with) is asked for with the first batch and not when Lightning, ahead of time, asks for the iterator.
    `prepare` is then given the dataset and the number of workers, and says which are used: caches are filled there.
    `on_damage` is told of JPEGs that are damaged inside: their paths, and what is wrong.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_sampler: Any,
        num_workers: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        prepare: Callable[[ImageDataset, int], tuple[ImageDataset, int]] = lambda dataset, workers: (dataset, workers),
        on_damage: Callable[[dict[str, str]], object] = lambda found: None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.position = position
        self.prepare = prepare
        self.on_damage = on_damage
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.prefetch_factor = prefetch_factor
        self.persistent_workers = persistent_workers
        self.loaded = dataset.images
        """What is read from: perhaps decoded before."""
        self._rest = RestOfEpoch(batch_sampler)
        self._batches: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return max(1, len(self.batch_sampler))  # with 0, Lightning would skip the hooks where processes meet

    def __iter__(self) -> Iterator[Batch]:
        self.batch_sampler.epoch, self._rest.first = self.position()
        if self._batches is None:
            self._batches = self._start()
        for batch in self._batches:
            if "error" in batch:
                raise bad_image(batch["error"])
            if "damaged" in batch:
                self.on_damage(batch.pop("damaged"))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `position` knows where to go on. Without it Lightning would warn that this cannot be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes `state_dict()`."""

    def close(self) -> None:
        """Ends the workers; left to the garbage collector, each may take five seconds. It can be iterated again."""
        self._batches = None

    def _start(self) -> DataLoader[Batch]:
        dataset, num_workers = self.prepare(self.dataset, self.num_workers)
        self.on_damage(damaged_files())
        self.loaded = dataset.images
        return DataLoader(
            dataset,
            batch_sampler=self._rest,
            num_workers=num_workers,
            persistent_workers=self.persistent_workers and num_workers > 0,
            prefetch_factor=self.prefetch_factor if num_workers > 0 else None,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # private: nothing is drawn from the global one
        )


def _leave_signals_to_the_run(worker: int) -> None:
    """Schedulers send their signals to all processes of a job, terminals to a group: the run answers them, and needs
    its workers until it has saved. Of SIGTERM, that of the run itself ends a worker."""
    del worker
    for number in (signal.SIGINT, *STOPPING):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere a worker dies of it, as torch has it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run.pid and run.is_alive():
        pass
    os._exit(0)


def bad_image(error: str) -> BadImageError:
    """The error for an image that cannot be read, with what to do."""
    return BadImageError(f"{error}. Repair or remove it, or start with data.on_bad_image=skip, which leaves it out")


def collate(samples: list[Batch] | Batch) -> Batch:
    """`image` uint8 (n, 3, size, size), `label` and `index` int64 (n,), `epoch` an int; or only `error`.

    Where bad images are kept, `bad` has a text for each image, empty for a good one; `damaged` tells the loader what is
    wrong inside of files.
    """
    if isinstance(samples, dict):
        return samples  # made in one piece
    for sample in samples:
        if "error" in sample:
            return sample
    more: Batch = {"bad": [sample["bad"] for sample in samples]} if "bad" in samples[0] else {}
    if damaged := {path: what for sample in samples for path, what in sample.get("damaged", {}).items()}:
        more["damaged"] = damaged
    return more | {
        "image": stacked([sample["image"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "epoch": samples[0]["epoch"],
    }


def workers(num_workers: int | None, processes: int) -> int:
    """Loader workers for one of `processes`; None shares the cores out."""
    return max(1, usable_cores() // processes) if num_workers is None else num_workers


def usable_cores() -> int:
    """That this process may use; at most 8, beyond which disks do not keep up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)

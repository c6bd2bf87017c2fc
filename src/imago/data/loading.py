"""Batches of a split, in an order and with augmentations that are functions of seed, epoch and index."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imago.data.decode import BadImageError, read_image
from imago.data.folders import Split
from imago.data.stages import ImageTransform
from imago.randomness import key, keyed
from imago.transforms import Batch

Position = tuple[int, int]  # epoch, index


class ImageDataset(Dataset[Batch]):
    """The images of a split, each asked for as (epoch, index)."""

    def __init__(self, root: Path, split: Split, transform: ImageTransform, image_size: int, seed: int) -> None:
        self.root = root
        self.split = split
        self.transform = transform
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: Position) -> Batch:
        epoch, index = position
        try:
            image = read_image(self.root / self.split.paths[index])
        except BadImageError as error:
            return {"error": str(error)}  # an exception would come out of a worker as a traceback in words
        with keyed("augmentation", self.seed, epoch, index):
            image = self.transform.image(image, self.image_size)
        return {"image": image, "label": self.split.labels[index], "index": index, "epoch": epoch}


class KeyedBatchSampler(Sampler[list[Position]]):
    """Batches of (epoch, index); shuffled, the order is a function of (seed, epoch).

    A last batch of a single image is left out when shuffling (unless it is the only one): BatchNorm cannot train on
    one value. Which image that is changes with every epoch.
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        dropped = self.shuffle and rest == 1 and full > 0
        return full + (rest > 0) - dropped

    def __iter__(self) -> Iterator[list[Position]]:
        order = self._order()
        for batch in range(len(self)):
            yield [(self.epoch, index) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(key("order", self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator).tolist()


class Loader:
    """Yields the batches of a split.

    No subclass of DataLoader, so that Lightning takes it as it is; lazy, so that the epoch is read when the first
    batch is asked for and not when Lightning, ahead of time, asks for the iterator.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_sampler: Any,
        num_workers: int,
        epoch: Callable[[], int],
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.epoch = epoch
        self._batches: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        self.batch_sampler.epoch = self.epoch()
        if self._batches is None:
            self._batches = self._start()
        for batch in self._batches:
            if "error" in batch:
                raise BadImageError(
                    f"{batch['error']}. Repair or remove it, or leave such files out: data.on_bad_image=skip"
                )
            yield batch

    def close(self) -> None:
        """Ends the workers; left to the garbage collector, each may take five seconds. It can be iterated again."""
        self._batches = None

    def _start(self) -> DataLoader[Batch]:
        return DataLoader(
            self.dataset,
            batch_sampler=self.batch_sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # private: nothing is drawn from the global one
        )


def collate(samples: list[Batch]) -> Batch:
    """`image` uint8 (n, 3, size, size), `label` and `index` int64 (n,), `epoch` an int; or only `error`."""
    for sample in samples:
        if "error" in sample:
            return sample
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "epoch": samples[0]["epoch"],
    }

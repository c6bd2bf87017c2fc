"""Samples and batches of the images of a split."""

import random
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imago.data.crops import Size, pair
from imago.data.decode import BadImageError, damaged_files
from imago.data.images import Images
from imago.data.transforms import ImageTransform, stacked
from imago.definitions import REPEAT, Batch, SampleKey
from imago.randomness import derive_seed, seeded


class ImageDataset(Dataset[Batch]):
    """Dataset of the images of a split, indexed by (epoch, index).

    With `keep_bad`, an unreadable image is black, and its `bad` says why; `damage` says what is damaged inside a JPEG.
    `draw_key` makes the 64-bit key of an image's random numbers from ("augmentation", seed, epoch, image number), and
    the number of earlier draws of the image in the epoch, if there are any.
    """

    def __init__(
        self,
        images: Images,
        transform: ImageTransform,
        image_size: Size,
        seed: int,
        keep_bad: bool = False,
        draw_key: Callable[..., int] = derive_seed,
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
        """Whether batches are slices of images in memory, without random transforms per image."""
        return self.transform.randomness == "none" and not self.keep_bad and self.images.read_many([0]) is not None

    def __getitems__(self, positions: list[SampleKey]) -> list[Batch] | Batch:
        """Return the samples at `positions`, or a whole batch at once if it is a slice or empty."""
        if not positions:
            return self._empty()
        if not self.is_sliced:
            return self._until_error(positions)
        indices = [index for _, index, *_ in positions]
        images = self.images.read_many(indices)
        assert images is not None
        labels, numbers = self._labels_and_numbers
        return {
            "image": self.transform.image(images, self.image_size),
            "label": labels[indices],
            "index": numbers[indices],
            "epoch": positions[0][0],
            **_repeats(positions),
        }

    def _until_error(self, positions: list[SampleKey]) -> list[Batch]:
        """Return samples up to the first with an error, which ends the run: others of a shard that cannot be had would
        be tried as long again."""
        samples: list[Batch] = []
        for position in positions:
            samples.append(self[position])
            if "error" in samples[-1]:
                break
        return samples

    def _empty(self) -> Batch:
        """Batch without images, as Poisson sampling may draw it."""
        none = torch.zeros(0, dtype=torch.int64)
        shape = (0, self.images.channels, *pair(self.image_size))
        return {"image": torch.zeros(shape, dtype=torch.uint8), "label": none, "index": none.clone(), "epoch": 0}

    @cached_property
    def _labels_and_numbers(self) -> tuple[Tensor, Tensor]:
        """Labels and numbers of all images, int64 (n,); only batches that are slices need them."""
        numbers = np.arange(len(self)) if self.images.numbers is None else self.images.numbers
        return torch.tensor(list(self.images.labels)), torch.as_tensor(numbers)

    def __getitem__(self, position: SampleKey) -> Batch:
        epoch, index, *repeat = position
        number = index if self.images.numbers is None else int(self.images.numbers[index])
        error = ""
        try:
            key = self.draw_key("augmentation", self.seed, epoch, number, *filter(None, repeat))
            image = self.augmented(index, key)
        except BadImageError as bad:
            error = str(bad)
            if not self.keep_bad:
                return {"error": advised(bad)}  # a worker would turn an exception into the text of a traceback
            image = self.transform.resized(torch.zeros(self.images.channels, 1, 1, dtype=torch.uint8), self.image_size)
        sample = {"image": image, "label": self.images.labels[index], "index": number, "epoch": epoch}
        sample |= {REPEAT: repeat[0]} if repeat else {}
        if damaged := damaged_files():
            sample["damaged"] = damaged
        return sample | ({"bad": error, "damage": "; ".join(damaged.values())} if self.keep_bad else {})

    def augmented(self, index: int, draw_key: int) -> Tensor:
        """Return the image after crop and pixel stages, (channels, height, width); `draw_key` seeds generators."""
        if self.transform.randomness == "any":
            with seeded(draw_key):
                return self._transformed(index)
        if self.transform.randomness == "box":
            random.seed(draw_key)  # the same numbers, and a tenth of the time of seeding all generators
        return self._transformed(index)

    def _transformed(self, index: int) -> Tensor:
        return self.transform.resized(self.images.read_box(index, self.transform.box, self.image_size), self.image_size)


def advised(error: BadImageError) -> str:
    """Return the message on an unreadable image, with advice on what to do."""
    return ". ".join(text for text in (str(error), error.advice) if text)


def _repeats(positions: list[SampleKey]) -> Batch:
    """Entry `REPEAT` of a batch, if its images may be drawn repeatedly."""
    repeats = [repeat for _, _, *rest in positions for repeat in rest]
    return {REPEAT: torch.tensor(repeats)} if repeats else {}


def collate(samples: list[Batch] | Batch) -> Batch:
    """Make a batch: `image` uint8 (n, channels, height, width), `label`, `index` int64 (n,), and `epoch`; or `error`.

    If bad images are kept, `bad` and `damage` have a text for each image: why it cannot be read, and what is damaged
    inside one that can; empty for a good one. `damaged` tells the loader which files are damaged inside.
    """
    if isinstance(samples, dict):
        return samples  # already a whole batch
    for sample in samples:
        if "error" in sample:
            return sample
    extras: Batch = {key: [sample[key] for sample in samples] for key in ("bad", "damage") if key in samples[0]}
    if damaged := {path: what for sample in samples for path, what in sample.get("damaged", {}).items()}:
        extras["damaged"] = damaged
    if REPEAT in samples[0]:
        extras[REPEAT] = torch.tensor([sample[REPEAT] for sample in samples])
    return extras | {
        "image": stacked([sample["image"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "epoch": samples[0]["epoch"],
    }

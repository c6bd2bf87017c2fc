"""What every kind of data comes down to: named, labelled images in splits."""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
from torch import Tensor

from imago.data.decode import BadImageError
from imago.data.stages import BoxOf, Size, cut

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Names(Sequence[str]):
    """Many texts in one piece: 8 bytes for each besides its own, where a Python string in a list takes 57."""

    def __init__(self, texts: Iterable[str]) -> None:
        found = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = b"".join(found)
        self._ends = array("Q", accumulate(map(len, found), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self[each] for each in range(*index.indices(len(self))))
        at = range(len(self))[index]  # IndexError, and negative ones, as lists have it
        return self._bytes[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Images(ABC):
    """The images of one split.

    `paths` name them (relative to where they come from), `labels` are indices of the class names; `channels`
    is 1 for grey images.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    channels: int = 3
    decode: Literal["exact", "fast"] = "exact"
    """`fast`: `read_box` may leave out pixels that would be shrunk away."""
    numbers: Sequence[int] | None = None
    """Where images were left out: the place of each among all `total`, by which its random numbers are keyed."""
    total: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The pixels, uint8 (channels, height, width); BadImageError names an image that cannot be read."""

    def read_box(self, index: int, box: BoxOf, size: Size) -> Tensor:
        """What `box(height, width)` cuts out of the image; it will be resized to `size`, which a decoder may use."""
        del size
        image = self.read(index)
        return cut(image, box(image.shape[-2], image.shape[-1]))

    def read_many(self, indices: Sequence[int]) -> Tensor | None:
        """Several at once, uint8 (n, channels, height, width), where they are in memory and of one size."""
        del indices
        return None

    @abstractmethod
    def select(self, indices: Sequence[int]) -> Self:
        """Those at `indices`, in that order."""

    def without(self, paths: Container[str]) -> Self:
        """The others; their random numbers are those that they would have had."""
        kept = [index for index, path in enumerate(self.paths) if path not in paths]
        numbers = self.numbers or range(len(self))
        images = self.select(kept)
        images.numbers, images.total = [numbers[index] for index in kept], self.total or len(self)
        return images

    def indices(self, numbers: Sequence[int]) -> list[int]:
        """Where the images with these numbers are."""
        if self.numbers is None:
            return list(numbers)
        where = {number: index for index, number in enumerate(self.numbers)}
        return [where[number] for number in numbers]

    def fault(self, index: int) -> BadImageError | None:
        """What is wrong with an image, as far as that can be told without decoding it."""
        del index
        return None

    def stamp(self, times: bool = False) -> str:
        """Changes when the images do, as far as that can be told without reading them; `times`: of files, also when
        they were written."""
        del times
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path}\0{label}\n".encode())
        return digest.hexdigest()


Kind = TypeVar("Kind", bound=Images)


@dataclass
class ImageSets:
    """The splits of a data set; `ignored` are files that were not taken, `excluded` those that were left out on
    request, `notes` what a user should know."""

    root: str
    class_names: list[str]
    splits: dict[str, Images]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    drawn_val: dict[str, float] | None = None
    """`val_ratio` and `seed` where val was drawn from train."""

    def draw_val(self, val_ratio: float, seed: int) -> None:
        """Makes a stratified share of train the val split, where there is none.

        Raises:
            ValueError: The share is none, or train has too few images.
        """
        if "val" in self.splits:
            return
        if not 0 < val_ratio < 1:
            raise ValueError(f"data.val_ratio={val_ratio}: give a share between 0 and 1; {self.root} has no val split.")
        self.splits["train"], self.splits["val"] = stratified_split(self.splits["train"], val_ratio, seed)
        if not len(self.splits["val"]):
            raise ValueError(
                f"{self.root} has too few images per class to draw a val split from train: give two or more of each."
            )
        self.drawn_val = {"val_ratio": val_ratio, "seed": seed}
        self.notes.append(
            f"no val split in {self.root}: {len(self.splits['val'])} images of train "
            f"(data.val_ratio={val_ratio}, stratified, seed {seed}) are the val split"
        )

    def leave_out(self, split: str, paths: Container[str], kind: str = "") -> None:
        """Takes images out of a split; ValueError where a class of train, or the split, would be empty."""
        kept = self.splits[split].without(paths)
        empty = [c for c, n in class_counts(kept, self.class_names).items() if not n and split == "train"]
        if empty or not len(kept):
            of = f" of {', '.join(empty)}" if empty else ""
            raise ValueError(f"No {kind}image{of} is left in the {split} split of {self.root}.")
        self.splits[split] = kept

    def fingerprint(self) -> str:
        """The same for the same names, labels, sizes and splits, wherever they are."""
        parts = [*self.class_names, *(f"{name} {images.stamp()}" for name, images in sorted(self.splits.items()))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def stratified_split(images: Kind, share: float, seed: int) -> tuple[Kind, Kind]:
    """`images` in two, the second with `share` of each class, at least one image where a class has two or more."""
    generator = np.random.default_rng(seed)
    labels = np.array(images.labels)
    second: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        second.extend(members[:count].tolist())
    chosen = set(second)
    first = [index for index in range(len(images)) if index not in chosen]
    return images.select(first), images.select(sorted(second))


def class_counts(images: Images, class_names: Sequence[str]) -> dict[str, int]:
    """Class name -> number of its images, for every class."""
    counts = Counter(images.labels)
    return {name: counts[label] for label, name in enumerate(class_names)}


def shortened(items: Iterable[Any], most: int = 5) -> str:
    """The first `most` items with commas, and how many more there are."""
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")

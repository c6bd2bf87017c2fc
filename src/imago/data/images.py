"""Named, labelled images in splits: the common form of all kinds of data."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from imago.data.colour import PLAIN, Decoding
from imago.data.contract import check_labels, check_names
from imago.data.crops import CropPolicy, Size, crop
from imago.data.decode import BadImageError
from imago.data.drawn_splits import (
    BY_RATIO,
    MOST_OF_TRAIN,
    describe_draw,
    draw_split,
    is_repeatable,
    recorded_rule,
)
from imago.errors import UserError

PART = 2**20  # labels that are counted at a time


class Images(ABC):
    """The images of one split.

    `paths` name them (relative to their source), `labels` are indices of the class names; `channels` is 1 for grey
    images, else 3.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    are_named: bool = True
    """Whether paths are names that a user knows, rather than row numbers."""
    channels: int = 3
    decode: Literal["exact", "fast"] = "exact"
    """With `fast`, `read_box` may leave out pixels that resizing would discard."""
    decoding: Decoding = PLAIN
    """Decoding settings that the files do not contain."""
    numbers: np.ndarray | None = None
    """If images were left out: their positions among all `total`, by which random numbers are keyed."""
    total: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Read an image as uint8 (channels, height, width); BadImageError names an unreadable one."""

    def read_box(self, index: int, box: CropPolicy, size: Size) -> Tensor:
        """Read the crop `box(height, width)`, uint8 (channels, height, width); it will be resized to `size`."""
        del size
        image = self.read(index)
        return crop(image, box(image.shape[-2], image.shape[-1]))

    def read_many(self, indices: Sequence[int]) -> Tensor | None:
        """Read several images, uint8 (n, channels, height, width), if they are in memory and of one size; else None."""
        del indices
        return None

    @abstractmethod
    def select(self, indices: Sequence[int]) -> Self:
        """Return the images at `indices`, in that order."""

    def joined(self, further: "Images") -> "Images":
        """Return these images and `further` ones, of another split of the same data."""
        raise UserError(
            f"{type(self).__name__} of two splits cannot be one, as data.fold= needs. Give data without a val split."
        )

    def without(self, paths: Container[str]) -> Self:
        """Return the images not in `paths`, with unchanged random numbers."""
        gone = [index for index, path in enumerate(self.paths) if path in paths]
        images = self.remove(gone)
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        images.numbers, images.total = np.delete(numbers, gone), self.total or len(self)
        return images

    def remove(self, indices: Sequence[int]) -> Self:
        """Return the images without those at `indices`, in their order."""
        return self.select(np.delete(np.arange(len(self)), indices).tolist())

    def order(self, permutation: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch from a random `permutation` of the indices; `generator` gives further draws."""
        del generator
        return permutation

    def announce(self, order: Tensor, position: int) -> None:
        """Take note that the images of an epoch are read in this `order`, now from `position` on."""
        del order, position

    def release(self) -> None:  # noqa: B027  most kinds leave none open
        """Close the files that reading has left open; images can be read again."""

    def order_settings(self) -> dict[str, Any]:
        """Return the settings that `order` depends on, by the names that users type."""
        return {}

    def indices(self, numbers: Sequence[int]) -> list[int]:
        """Return the indices of the images with these numbers."""
        return list(numbers) if self.numbers is None else self.places()[np.asarray(numbers, np.int64)].tolist()

    def places(self) -> np.ndarray:
        """Return the index of each number, int64 (total,); -1 for images that were left out."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        places = np.full(self.total or len(self), -1)
        places[numbers] = np.arange(len(numbers))
        return places

    def fault(self, index: int) -> BadImageError | None:
        """Return the error of an image, as far as it shows without decoding."""
        del index
        return None

    def largest_value(self, index: int) -> tuple[int, bool]:
        """Return the largest value of a 16-bit image of unstated range (0 for others), and whether it has colours."""
        del index
        return 0, False

    def profile(self, index: int) -> str | None:
        """Return the use of an image's colour profile, `converted` or `ignored`; None without one, and for sRGB."""
        del index
        return None

    def shape(self, index: int) -> tuple[int, int] | None:
        """Return height and width in pixels, if they are known without decoding."""
        del index
        return None

    def digest(self, index: int) -> int | None:
        """Compute a 64-bit digest of the content of an image, whatever its name; None if it cannot be read.

        For a large file, some blocks spread over it stand for the whole.
        """
        del index
        return None

    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the `digest` of every image, int64 (n,), and whether it has one, bool (n,)."""
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(self.digest, range(len(self))))
        values = np.fromiter((digest or 0 for digest in digests), np.int64, len(digests))
        return values, np.fromiter((digest is not None for digest in digests), np.bool_, len(digests))

    def stamp(self, times: bool = False) -> str:
        """Compute a fingerprint that changes with the images, as far as that shows without reading them; `times` adds
        the modification times of files."""
        del times
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass
class ImageSets:
    """The splits of a data set; `ignored` are files that were not used, `excluded` files left out on request, `notes`
    facts about the data, `warnings` what may make results worse than they look."""

    root: str
    class_names: list[str]
    splits: dict[str, Images]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    no_class: dict[str, int] = field(default_factory=dict)
    """Split -> number of images not used because their folder is not a class."""
    as_read: str = ""
    """Fingerprint before images were left out."""
    drawn_val: dict[str, Any] | None = None
    """`val_ratio`, `seed` and how images were drawn, if val was drawn from train."""
    drawn_test: dict[str, Any] | None = None
    """`test_ratio`, `seed` and how images were drawn, if test was drawn from train."""
    drawn_calibration: dict[str, Any] | None = None
    """`calibration_ratio`, `seed` and how images were drawn, if calibration was drawn from val."""
    relabelled: dict[str, Any] | None = None
    """`file`, number of `images` and `digest` of the corrected labels, if `data.relabel` was applied."""
    changed: dict[str, dict[str, int]] = field(default_factory=dict)
    """`data.exclude` or `data.relabel` -> split -> number of images that it left out or relabelled."""
    corrections: dict[str, str] = field(default_factory=dict)
    """Path -> class, as `data.relabel` has them."""
    folds: dict[str, int] = field(default_factory=dict)
    """Path -> fold, counted from 0, if a split file has folds."""
    groups: dict[str, str] = field(default_factory=dict)
    """Path -> group, if a split file has groups, which no draw by image may divide; empty for images without one."""
    weights: dict[str, float] = field(default_factory=dict)
    """Path -> weight in `data.sampler=weights`, if a split file has weights."""

    def __post_init__(self) -> None:
        check_names(self)
        check_labels(self)

    def draw_splits(
        self, val_ratio: float, seed: int, test_ratio: float | None = None, recorded: Mapping[str, Any] | None = None
    ) -> None:
        """Draw from train a test split, unless `test_ratio` is None or 0, and then the val split, if there is none.

        `recorded` is the entry `imago` of a checkpoint: equal draws are repeated, so that images added later move none.

        Raises:
            ValueError: A fraction is out of range, train has too few images, or there is a test split already.
        """
        recorded = recorded or {}
        if test_ratio:
            self.draw_test(test_ratio, seed, recorded.get("drawn_test"))
        self.draw_val(val_ratio, seed, recorded.get("drawn_val"))
        if test_ratio:
            self.splits["test"] = self.splits.pop("test")  # listed last, as elsewhere

    def draw_test(self, test_ratio: float, seed: int, recorded: Mapping[str, Any] | None = None) -> None:
        """Make a stratified fraction of train the test split. It is drawn before val, so that `val_ratio` does not
        affect it, and from the other end of the range, so that it hardly affects val.

        Raises:
            ValueError: There is a test split, the fraction is out of range, or train has too few images.
        """
        setting = f"data.test_ratio={test_ratio}"
        if "test" in self.splits:
            raise UserError(
                f"{setting}: {self.root} has a test split already, so none is drawn from train. Leave it out, or type "
                "data.test_ratio=null"
            )
        if not 0 < test_ratio <= MOST_OF_TRAIN:
            raise UserError(f"{setting}: must be above 0 and at most {MOST_OF_TRAIN}, or null for no test split.")
        self.drawn_test = self.draw("test", test_ratio, seed, recorded)

    def draw_val(self, val_ratio: float, seed: int, recorded: Mapping[str, Any] | None = None) -> None:
        """Make a stratified fraction of train the val split, if there is none. A test split that was drawn before
        counts as part of train.

        Raises:
            ValueError: The fraction is out of range, or train has too few images.
        """
        if "val" in self.splits:
            return
        if not 0 < val_ratio <= MOST_OF_TRAIN:
            raise UserError(
                f"data.val_ratio must be above 0 and at most {MOST_OF_TRAIN}, because {self.root} has no val split; "
                f"got {val_ratio}."
            )
        test_ratio = self.drawn_test["test_ratio"] if self.drawn_test is not None else 0.0
        if val_ratio + test_ratio >= 1:
            setting = f"data.val_ratio={val_ratio} and data.test_ratio={test_ratio}"
            raise UserError(f"{setting} leave nothing to train on. Type smaller ones.")
        self.drawn_val = self.draw("val", val_ratio, seed, recorded)

    def draw(
        self, split: str, ratio: float, seed: int, recorded: Mapping[str, Any] | None, source: str = "train"
    ) -> dict[str, Any]:
        """Move a fraction of `source` to a new split. Returns the record of the draw."""
        images = self.splits[source]
        drawn_before = self.splits["test"] if source == "train" and self.drawn_test is not None else None
        parts = [images] if drawn_before is None else [images, drawn_before]
        paths = chain.from_iterable(part.paths for part in parts)
        labels = np.concatenate([np.asarray(part.labels, np.int64) for part in parts])
        record = {f"{split}_ratio": ratio, "seed": seed}
        repeated = recorded if is_repeatable(recorded, record) else None
        rule, taken = recorded_rule(repeated, self.class_names), range(len(images), len(labels))
        chosen, edges = draw_split(paths, labels, ratio, seed, taken, from_end=split == "test", rule=rule)
        if not chosen:
            least = "three" if split == "test" or drawn_before is not None else "two"
            raise UserError(
                f"data.{split}_ratio={ratio}: {self.root} has too few images per class to draw a {split} split from "
                f"{source}. At least {least} per class are needed."
            )
        self.splits[source], self.splits[split] = images.remove(chosen), images.select(chosen)
        sizes, drawn = (
            np.bincount(some, minlength=len(self.class_names)).tolist() for some in (labels, labels[chosen])
        )
        counts = {name: (drawn[n], sizes[n]) for n, name in enumerate(self.class_names) if sizes[n]}
        note, warning = describe_draw(split, source, record, counts, repeated is not None)
        self.notes.append(f"no {split} split in {self.root}: {note}")
        self.warnings += [warning] if warning is not None else []
        named = {self.class_names[label]: edge for label, edge in edges.items()}
        return dict(repeated) if repeated is not None else record | {"by": BY_RATIO, "edges": named}

    def leave_out(self, split: str, paths: Container[str], kind: str = "") -> None:
        """Remove images from a split; ValueError if a class of train, or the split, would be empty."""
        kept = self.splits[split].without(paths)
        empty = [c for c, n in class_counts(kept, self.class_names).items() if not n and split == "train"]
        if empty or not len(kept):
            of = f" of {', '.join(empty)}" if empty else ""
            raise UserError(f"No {kind}image{of} is left in the {split} split of {self.root}.")
        self.splits[split] = kept

    def fingerprint(self) -> str:
        """Compute a hash of names, labels, sizes and splits, wherever the files are."""
        parts = [*self.class_names, *(f"{name} {images.stamp()}" for name, images in sorted(self.splits.items()))]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def class_counts(images: Images, class_names: Sequence[str]) -> dict[str, int]:
    """Count the images of every class: class name -> number."""
    labels, counts = np.asarray(images.labels), np.zeros(len(class_names), np.int64)
    for first in range(0, len(labels), PART):  # bincount would make int64 of all
        counts += np.bincount(labels[first : first + PART], minlength=len(class_names))
    return {name: int(counts[label]) for label, name in enumerate(class_names)}


def train_counts(trained: Mapping[str, Any], class_names: Sequence[str]) -> list[int]:
    """Return the train images per class from the entry `imago` of a checkpoint; 0 if it does not say."""
    counts = (trained["data"].get("counts") or {}).get("train") or {}
    return [counts.get(name, 0) for name in class_names]

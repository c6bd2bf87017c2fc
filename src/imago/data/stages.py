"""The three stages of an image's way into the network: which box, its pixels, the batch on the device."""

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imago.randomness import uniforms
from imago.transforms import Batch, ComposeTransform

Colour = tuple[int, int, int]
Size = int | Sequence[int]
"""Of what the network sees, in pixels: the side of a square, or height and width."""
SEEN = 2 / 3
"""The fraction of a picture below which it is said that the rest of it is not seen."""
FITS = ("crop", "squash", "pad")
FILL: Colour = (124, 116, 104)
"""The mean of ImageNet: about 0 after its normalisation."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def shrunk(self, part: int) -> "Box":
        """The same rectangle of an image of which every `part`-th row and column is there."""
        top, left = round(self.top / part), round(self.left / part)
        bottom, right = round((self.top + self.height) / part), round((self.left + self.width) / part)
        return Box(top, left, bottom - top, right - left)


class PaddedBox(Box):
    """A rectangle that may reach beyond the image; the margins have the colour `fill`."""

    fill: Colour = FILL

    @classmethod
    def of(cls, box: Box, fill: Colour) -> "PaddedBox":
        """`box` with that colour."""
        padded = cls(*box)
        padded.fill = fill
        return padded

    def shrunk(self, part: int) -> "PaddedBox":
        return self.of(super().shrunk(part), self.fill)


BoxOf = Callable[[int, int], Box]
"""Which rectangle, given height and width."""
Randomness = Literal["none", "box", "any"]
"""What is drawn for each image: nothing; a box by Python's generator alone; whatever, by any generator."""


class ImageTransform:
    """What is done to the images of a split.

    Args:
        box: `(height, width) -> Box`: which rectangle of the image is taken; random ones draw from the generators of
            Python, NumPy or torch.
        pixels: Named transforms of `torchvision.transforms.v2`, run on each uint8 (3, size, size) image by the
            loader's workers; random ones repeat for the same (seed, epoch, index).
        batch: Named transforms of dictionaries, run on the whole batch on the device; `image` comes as uint8.
    """

    def __init__(
        self,
        box: BoxOf,
        pixels: Mapping[str, Callable[[Tensor], Tensor] | None] | None = None,
        batch: Mapping[str, Callable[[Batch], Batch] | None] | None = None,
    ) -> None:
        self.box = box
        self.pixels = [step for step in (pixels or {}).values() if step is not None]
        self.batch = ComposeTransform(**(batch or {}))

    @property
    def normalisation(self) -> "Normalize | None":
        """The step that normalises, if there is one."""
        return next((step for step in self.batch.steps.values() if isinstance(step, Normalize)), None)

    @property
    def randomness(self) -> Randomness:
        """What box and pixels may draw."""
        return "any" if self.pixels else _randomness(self.box)

    @property
    def is_fixed(self) -> bool:
        """Whether an image always has the same box."""
        return _randomness(self.box) == "none"

    @property
    def batch_draws(self) -> bool:
        """Whether steps of the batch stage may draw from torch's generator, as MixUp does; ours do not."""
        return any(getattr(step, "draws", True) for step in self.batch.steps.values())

    def with_box(self, box: BoxOf) -> "ImageTransform":
        """The same with another box."""
        other = copy.copy(self)
        other.box = box
        return other

    def completed(
        self, size: Size, fit: str = "crop", fill: Sequence[int] = FILL, further: Callable[[Batch], Batch] | None = None
    ) -> "ImageTransform":
        """With what else the data group says of images: how they fit into `size`, and a `further` step of the batch.

        Raises:
            ValueError: There is no such fit, or `fill` is no colour.
        """
        if fit not in FITS:
            raise ValueError(f"data.fit={fit}: give {', '.join(FITS[:-1])} or {FITS[-1]}.")
        if len(fill) != 3 or any(not isinstance(value, int) or not 0 <= value <= 255 for value in fill):
            raise ValueError(f"data.fill={list(fill)}: give red, green and blue, each from 0 to 255.")
        other, (height, width) = copy.copy(self), pair(size)
        if fit != "crop" or height != width:
            red, green, blue = fill
            other.box = FittedBox(self.box, (height, width), fit, (red, green, blue))
        if further is not None:
            other.batch = ComposeTransform(**self.batch.steps, further=further)
        return other

    def image(self, image: Tensor, size: Size) -> Tensor:
        """Box and pixels of one uint8 (3, height, width) image: uint8 (3, *size). Several of one size at once,
        (n, 3, height, width), where it is not random."""
        return self.resized(cut(image, self.box(image.shape[-2], image.shape[-1])), size)

    def resized(self, image: Tensor, size: Size) -> Tensor:
        """The same for what the box has left of the image."""
        if image.shape[-2:] != pair(size):
            batch = (image if image.ndim == 4 else image[None]).contiguous(memory_format=torch.channels_last)
            batch = interpolate(batch, pair(size), mode="bilinear", antialias=True)  # to the bit as torchvision's
            image = batch if image.ndim == 4 else batch[0]
        elif self.pixels:
            image = image.clone()  # they may work in place, and it may be a part of a cache
        for step in self.pixels:
            image = step(image)
        return image


def seen_fraction(box: BoxOf, height: int, width: int) -> float:
    """The fraction of an image of that size that is inside of its box."""
    chosen = box(height, width)
    rows = min(chosen.top + chosen.height, height) - max(chosen.top, 0)
    columns = min(chosen.left + chosen.width, width) - max(chosen.left, 0)
    return max(rows, 0) * max(columns, 0) / (height * width)


def pair(size: Size) -> tuple[int, int]:
    """Height and width of what the network sees.

    Raises:
        ValueError: `size` is neither a whole number from 1 on nor two of them.
    """
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"data.image_size={size}: give the side of a square, 1 or more, or [height,width].")
    return sides[0], sides[1]


def _randomness(box: BoxOf) -> Randomness:
    if isinstance(box, FittedBox):
        return _randomness(box.box)
    return vars(type(box)).get("randomness", "any")  # what a box inherits need not be true of it


def cut(image: Tensor, box: Box) -> Tensor:
    """The rectangle: a view, unless a part of it lies outside of the image."""
    height, width = image.shape[-2:]
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
    inside = image[..., top : max(top, bottom), left : max(left, right)]
    if not isinstance(box, PaddedBox) or inside.shape[-2:] == (box.height, box.width):
        return inside
    colour = image.new_tensor(box.fill)
    if image.shape[-3] == 1:
        colour = colour.float().mean(dim=0, keepdim=True).to(image.dtype)
    shape = (*image.shape[:-3], box.height, box.width, len(colour))
    padded = colour.expand(shape).clone().movedim(-1, -3)  # in memory pixel by pixel, as decoders give images
    if inside.numel():
        padded[..., top - box.top : bottom - box.top, left - box.left : right - box.left] = inside
    return padded


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of one size as (n, channels, size, size), in memory pixel by pixel, as decoders give them and
    convolutions like them."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class CenterBox:
    """The square in the middle.

    Args:
        share: Its side as a share of the image's shorter side; 0.875 is the usual 224 of 256 pixels.
    """

    randomness: Randomness = "none"

    def __init__(self, share: float = 0.875) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: give a number above 0, at most 1.")
        self.share = share

    def __call__(self, height: int, width: int) -> Box:
        side = max(1, round(self.share * min(height, width)))
        return Box((height - side) // 2, (width - side) // 2, side, side)


class WholeBox:
    """The whole image."""

    randomness: Randomness = "none"

    def __call__(self, height: int, width: int) -> Box:
        return Box(0, 0, height, width)


class FittedBox:
    """What `box` cuts out where image and network differ in shape: the box is asked as if the network saw squares.

    Args:
        box: The rectangle of an image that is stretched so that the network's shape is a square.
        size: Height and width of what the network sees.
        fit: `crop` keeps the aspect ratio and loses the ends of long images; `squash` keeps the ends; `pad` keeps both,
            with margins of the colour `fill`.
        fill: Red, green and blue, from 0 to 255.
    """

    def __init__(self, box: BoxOf, size: tuple[int, int], fit: str, fill: Colour = FILL) -> None:
        self.box = box
        self.size = size
        self.fit = fit
        self.fill = fill

    def __call__(self, height: int, width: int) -> Box:
        seen_height, seen_width = self.size
        rows, columns = height, width
        if self.fit == "pad":
            rows, columns = max(height, -(-width * seen_height // seen_width)), width
            columns = max(width, -(-height * seen_width // seen_height))
        down, across = (columns, rows) if self.fit == "squash" else (seen_width, seen_height)  # of the stretched image
        box = self.box(rows * down, columns * across)
        top, left = round(box.top / down), round(box.left / across)
        bottom, right = round((box.top + box.height) / down), round((box.left + box.width) / across)
        top, left = min(top, rows - 1), min(left, columns - 1)
        cut_out = Box(top, left, max(1, bottom - top), max(1, right - left))
        if self.fit != "pad":
            return cut_out
        above, before = (rows - height) // 2, (columns - width) // 2
        return PaddedBox.of(cut_out._replace(top=top - above, left=left - before), self.fill)


class RandomResizedBox:
    """A random rectangle, as `torchvision.transforms.v2.RandomResizedCrop` has it: an area and a ratio are drawn until
    such a rectangle fits, ten times at most; then it is the largest in the middle.

    Args:
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width / height.
    """

    randomness: Randomness = "box"

    def __init__(self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        for option, (least, greatest) in (("scale", scale), ("ratio", ratio)):
            if not 0 < least <= greatest:
                raise ValueError(f"{option}={[least, greatest]}: give the least, above 0, and the greatest.")
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self._log_ratio = tuple(math.log(each) for each in ratio)

    def __call__(self, height: int, width: int) -> Box:
        for _ in range(10):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*self._log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(random.random() * (height - h + 1)), int(random.random() * (width - w + 1)), h, w)
        least, greatest = self.ratio
        w = min(width, max(1, round(height * greatest)))
        h = min(height, max(1, round(width / least)))
        return Box((height - h) // 2, (width - w) // 2, h, w)


class RandomHorizontalFlip(nn.Module):
    """Mirrors each image of a batch with probability `p`; which ones is a function of (seed, epoch, index).

    Args:
        p: The probability.
        seed: The run's seed.
    """

    draws = False

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.p = p
        self.seed = seed

    def forward(self, batch: Batch) -> Batch:
        flipped = uniforms(batch["index"], "horizontal flip", self.seed, batch["epoch"]) < self.p
        image = batch["image"]
        if image.device.type == "cpu":  # one by one: a fifth of the time of indexing, mirroring and putting back
            mirrored = image.clone()
            for row in flipped.nonzero()[:, 0].tolist():
                mirrored[row] = image[row].flip(-1)
            return {"image": mirrored}
        return {"image": torch.where(flipped[:, None, None, None], image.flip(-1), image)}  # without asking the device


class Normalize(nn.Module):
    """From uint8 to float32: pixels scaled to [0, 1], then `(pixel - mean) / std` per channel.

    Args:
        mean: Of red, green and blue, in [0, 1].
        std: Likewise.
    """

    draws = False

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = list(mean)
        self.std = list(std)
        self._scale = torch.tensor([1 / (255 * std) for std in std])[:, None, None]
        self._shift = torch.tensor([-mean / std for mean, std in zip(mean, std, strict=True)])[:, None, None]
        self._rows: tuple[Tensor, Tensor] | None = None  # scale and shift for a row of pixels

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        if len(self.mean) > image.shape[-3]:
            raise ValueError(f"Normalize has {len(self.mean)} means, the images have {image.shape[-3]} channel(s).")
        if image.dtype != torch.uint8:  # another transform has converted them
            from torchvision.transforms.v2 import functional as F

            return {"image": F.normalize(F.to_dtype(image, torch.float32, scale=True), self.mean, self.std)}
        if self._scale.device != image.device:
            self._scale, self._shift = self._scale.to(image.device), self._shift.to(image.device)
            self._rows = None
        image = image.to(torch.float32)  # and then in place: two passes over the pixels
        channels = len(self.mean)
        if image.ndim == 4 and image.shape[1] == channels and image.is_contiguous(memory_format=torch.channels_last):
            # whole rows at once: three values are too few for the CPU's wide registers
            n, _, height, width = image.shape
            rows = image.permute(0, 2, 3, 1).reshape(n * height, width * channels)
            if self._rows is None or len(self._rows[0]) != width * channels:
                self._rows = self._scale.flatten().repeat(width), self._shift.flatten().repeat(width)
            torch.addcmul(self._rows[1], rows, self._rows[0], out=rows)
        else:
            torch.addcmul(self._shift, image, self._scale, out=image)
        return {"image": image}

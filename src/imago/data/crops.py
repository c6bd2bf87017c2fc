"""Crop policies, the first stage of the pipeline: which rectangle of an image the network sees."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from imago.errors import UserError

Colour = tuple[int, int, int]
Size = int | Sequence[int]
"""Input size of the network in pixels: the side of a square, or height and width."""
SEEN = 2 / 3
"""Fraction of a picture; if the network sees less, `ml-doctor` says that the rest is cropped."""
FITS = ("crop", "squash", "pad")
FILL: Colour = (124, 116, 104)
"""Mean colour of ImageNet: about 0 after its normalisation."""


class CropBox(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def shrunk(self, part: int) -> "CropBox":
        """Scale the rectangle to an image that keeps only every `part`-th row and column."""
        top, left = round(self.top / part), round(self.left / part)
        bottom, right = round((self.top + self.height) / part), round((self.left + self.width) / part)
        return CropBox(top, left, bottom - top, right - left)


class PaddedCropBox(CropBox):
    """A rectangle that may reach beyond the image; the margins have the colour `fill`."""

    fill: Colour = FILL

    @classmethod
    def of(cls, box: CropBox, fill: Colour) -> "PaddedCropBox":
        """Return `box` with the colour `fill` for its margins."""
        padded = cls(*box)
        padded.fill = fill
        return padded

    def shrunk(self, part: int) -> "PaddedCropBox":
        return self.of(super().shrunk(part), self.fill)


CropPolicy = Callable[[int, int], CropBox]
"""Function (height, width) -> rectangle to crop, in pixels."""
Randomness = Literal["none", "box", "any"]
"""Random draws per image: none; a box, by Python's generator alone; anything, by any generator."""


def seen_fraction(box: CropPolicy, height: int, width: int) -> float:
    """Fraction (0 to 1) of an image of `height` x `width` pixels that lies inside its box."""
    chosen = box(height, width)
    rows = min(chosen.top + chosen.height, height) - max(chosen.top, 0)
    columns = min(chosen.left + chosen.width, width) - max(chosen.left, 0)
    return max(rows, 0) * max(columns, 0) / (height * width)


def pair(size: Size) -> tuple[int, int]:
    """Return height and width of the network's input, in pixels.

    Raises:
        ValueError: `size` is neither a positive whole number nor two of them.
    """
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"data.image_size must be the side of a square (1 or more) or [height,width], got {size}.")
    return sides[0], sides[1]


def box_randomness(box: CropPolicy) -> Randomness:
    """Return the kind of random draws that a policy makes per image."""
    if isinstance(box, FittedBox):
        return box_randomness(box.box)
    return vars(type(box)).get("randomness", "any")  # an inherited value need not hold for a subclass


def crop(image: Tensor, box: CropBox) -> Tensor:
    """Crop an image (..., channels, height, width) of any dtype: a view, unless a padded box reaches beyond it."""
    height, width = image.shape[-2:]
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
    inside = image[..., top : max(top, bottom), left : max(left, right)]
    if not isinstance(box, PaddedCropBox) or inside.shape[-2:] == (box.height, box.width):
        return inside
    colour = image.new_tensor(box.fill)
    if image.shape[-3] == 1:
        colour = colour.float().mean(dim=0, keepdim=True).to(image.dtype)
    shape = (*image.shape[:-3], box.height, box.width, len(colour))
    padded = colour.expand(shape).clone().movedim(-1, -3)  # channels-last (NHWC) in memory, as decoders return images
    if inside.numel():
        padded[..., top - box.top : bottom - box.top, left - box.left : right - box.left] = inside
    return padded


class CenterBox:
    """Square crop in the middle of the image.

    Args:
        share: Side as a fraction of the image's shorter side; 0.875 is the usual 224 of 256 pixels.
    """

    randomness: Randomness = "none"

    def __init__(self, share: float = 0.875) -> None:
        if not 0 < share <= 1:
            raise UserError(f"share must be above 0 and at most 1, got {share}.")
        self.share = share

    def __call__(self, height: int, width: int) -> CropBox:
        side = max(1, round(self.share * min(height, width)))
        return CropBox((height - side) // 2, (width - side) // 2, side, side)


class WholeBox:
    """The whole image, uncropped."""

    randomness: Randomness = "none"

    def __call__(self, height: int, width: int) -> CropBox:
        return CropBox(0, 0, height, width)


class FittedBox:
    """Crop for images and inputs of different shapes: `box` is applied as if the network saw squares.

    Args:
        box: Crop policy for an image that is stretched so that the network's shape becomes a square.
        size: Height and width of the network's input, in pixels.
        fit: `crop` keeps the aspect ratio and loses the ends of long images; `squash` keeps the ends; `pad` keeps both,
            with margins of the colour `fill`.
        fill: Red, green and blue, from 0 to 255.
    """

    def __init__(self, box: CropPolicy, size: tuple[int, int], fit: str, fill: Colour = FILL) -> None:
        self.box = box
        self.size = size
        self.fit = fit
        self.fill = fill

    def __call__(self, height: int, width: int) -> CropBox:
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
        cut_out = CropBox(top, left, max(1, bottom - top), max(1, right - left))
        if self.fit != "pad":
            return cut_out
        above, before = (rows - height) // 2, (columns - width) // 2
        return PaddedCropBox.of(cut_out._replace(top=top - above, left=left - before), self.fill)


class RandomResizedBox:
    """Random crop as in `torchvision.transforms.v2.RandomResizedCrop`: area and aspect ratio are drawn until the
    rectangle fits, at most ten times; after that it is the largest one in the middle.

    Args:
        scale: Least and greatest fraction of the image's area.
        ratio: Least and greatest width / height.
    """

    randomness: Randomness = "box"

    def __init__(self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        for option, (least, greatest) in (("scale", scale), ("ratio", ratio)):
            if not 0 < least <= greatest:
                raise UserError(
                    f"{option} must be the least value, above 0, and the greatest; got {[least, greatest]}."
                )
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self._log_ratio = tuple(math.log(bound) for bound in ratio)

    def __call__(self, height: int, width: int) -> CropBox:
        for _ in range(10):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*self._log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return CropBox(int(random.random() * (height - h + 1)), int(random.random() * (width - w + 1)), h, w)
        least, greatest = self.ratio
        w = min(width, max(1, round(height * greatest)))
        h = min(height, max(1, round(width / least)))
        return CropBox((height - h) // 2, (width - w) // 2, h, w)

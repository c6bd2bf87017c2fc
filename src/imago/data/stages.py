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


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


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
        own = vars(type(self.box))  # what a box inherits need not be true of it
        return "any" if self.pixels else own.get("randomness", "any")

    @property
    def batch_draws(self) -> bool:
        """Whether steps of the batch stage may draw from torch's generator, as MixUp does; ours do not."""
        return any(getattr(step, "draws", True) for step in self.batch.steps.values())

    def with_box(self, box: BoxOf) -> "ImageTransform":
        """The same with another box."""
        other = copy.copy(self)
        other.box = box
        return other

    def image(self, image: Tensor, size: int) -> Tensor:
        """Box and pixels of one uint8 (3, height, width) image: uint8 (3, size, size). Several of one size at once,
        (n, 3, height, width), where it is not random."""
        return self.resized(cut(image, self.box(image.shape[-2], image.shape[-1])), size)

    def resized(self, image: Tensor, size: int) -> Tensor:
        """The same for what the box has left of the image."""
        if image.shape[-2:] != (size, size):
            batch = (image if image.ndim == 4 else image[None]).contiguous(memory_format=torch.channels_last)
            batch = interpolate(batch, (size, size), mode="bilinear", antialias=True)  # to the bit as torchvision's
            image = batch if image.ndim == 4 else batch[0]
        elif self.pixels:
            image = image.clone()  # they may work in place, and it may be a part of a cache
        for step in self.pixels:
            image = step(image)
        return image


def cut(image: Tensor, box: Box) -> Tensor:
    """The rectangle, as a view."""
    return image[..., box.top : box.top + box.height, box.left : box.left + box.width]


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

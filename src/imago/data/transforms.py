"""The three stages from an image to the network: crop, pixels, and batch on the device."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imago.data.crops import FILL, FITS, CropPolicy, FittedBox, Randomness, Size, box_randomness, crop, pair
from imago.definitions import INTERPOLATIONS, REPEAT, Batch
from imago.errors import UserError
from imago.randomness import uniforms
from imago.wiring import ComposeTransform


class ImageTransform:
    """Transforms of the images of a split: crop, pixel and batch stages.

    Args:
        box: `(height, width) -> CropBox`: the rectangle to crop; random ones draw from the generators of Python,
            NumPy or torch.
        pixels: Named transforms of `torchvision.transforms.v2`, run on each uint8 (3, height, width) image by
            the loader's workers; random ones repeat for the same (seed, epoch, index).
        batch: Named transforms of batch dictionaries, run on the device; `image` is uint8 at first.
    """

    def __init__(
        self,
        box: CropPolicy,
        pixels: Mapping[str, Callable[[Tensor], Tensor] | None] | None = None,
        batch: Mapping[str, Callable[[Batch], Batch] | None] | None = None,
    ) -> None:
        self.box = box
        self.pixels = {name: step for name, step in (pixels or {}).items() if step is not None}
        self.batch = ComposeTransform(**(batch or {}))
        self.interpolation = INTERPOLATIONS[0]

    @property
    def normalisation(self) -> "Normalize | None":
        """The normalisation step, if there is one."""
        return next((step for step in self.batch.steps.values() if isinstance(step, Normalize)), None)

    @property
    def randomness(self) -> Randomness:
        """Kind of random draws that the crop and pixel stages may make."""
        return "any" if self.pixels else box_randomness(self.box)

    @property
    def is_fixed(self) -> bool:
        """Whether an image always has the same box."""
        return box_randomness(self.box) == "none"

    @property
    def batch_draws(self) -> bool:
        """Whether steps of the batch stage may draw from torch's generator, as MixUp does; Imago's own do not."""
        return any(getattr(step, "draws", True) for step in self.batch.steps.values())

    def tell_classes(self, count: int) -> None:
        """Set `num_classes` of the batch steps that have this attribute, and None in it."""
        for step in self.batch.steps.values():
            if getattr(step, "num_classes", count) is None:
                step.num_classes = count  # type: ignore[attr-defined]

    def with_box(self, box: CropPolicy) -> "ImageTransform":
        """Return a copy with another box."""
        transform = copy.copy(self)
        transform.box = box
        return transform

    def completed(
        self,
        size: Size,
        fit: str = "crop",
        fill: Sequence[int] = FILL,
        further: Callable[[Batch], Batch] | None = None,
        interpolation: str = INTERPOLATIONS[0],
    ) -> "ImageTransform":
        """Return a copy with the settings of the data group: how images fit into `size`, a `further` batch step, and
        how images are resized.

        Raises:
            ValueError: There is no such fit or interpolation, or `fill` is no colour.
        """
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"data.interpolation must be {' or '.join(INTERPOLATIONS)}, got {interpolation}.")
        if fit not in FITS:
            raise UserError(f"data.fit must be {', '.join(FITS[:-1])} or {FITS[-1]}, got {fit}.")
        if len(fill) != 3 or any(not isinstance(value, int) or not 0 <= value <= 255 for value in fill):
            raise UserError(f"data.fill must be red, green and blue, each from 0 to 255; got {list(fill)}.")
        transform, (height, width) = copy.copy(self), pair(size)
        transform.interpolation = interpolation
        if fit != "crop" or height != width:
            red, green, blue = fill
            transform.box = FittedBox(self.box, (height, width), fit, (red, green, blue))
        if further is not None:
            transform.batch = ComposeTransform(**self.batch.steps, further=further)
        return transform

    def __call__(
        self, images: Sequence[Tensor], size: Size, index: int = 0, epoch: int = 0, device: torch.device | str = "cpu"
    ) -> Batch:
        """Turn whole images into a batch for the network: crop, pixel and batch stages.

        Args:
            images: uint8 (channels, height, width) tensors of any size.
            size: Input size of the network, in pixels.
            index: Position of the first image in its split; random batch steps depend on it, and on `epoch`.
            epoch: Epoch of the augmentations.
            device: Device of the batch stage.
        """
        return self.to_batch([self.image(image, size) for image in images], index, epoch, device)

    def to_batch(
        self, images: Sequence[Tensor], index: int = 0, epoch: int = 0, device: torch.device | str = "cpu"
    ) -> Batch:
        """Turn images after the crop and pixel stages, uint8 (channels, height, width), into a batch for the network.
        The arguments are those of a call."""
        batch: Batch = {
            "image": stacked(images).to(device),
            "label": torch.zeros(len(images), dtype=torch.long, device=device),
            "index": torch.arange(index, index + len(images), device=device),
            "epoch": epoch,
        }
        return self.batch(batch)

    def image(self, image: Tensor, size: Size) -> Tensor:
        """Apply crop and pixel stages to a uint8 (3, height, width) image: uint8 (3, *size). If not random, also to
        several images of one size, (n, 3, height, width)."""
        return self.resized(crop(image, self.box(image.shape[-2], image.shape[-1])), size)

    def resized(self, image: Tensor, size: Size) -> Tensor:
        """Resize a crop, uint8 (3, height, width) or (n, 3, height, width), to `size`, and apply the pixel stage."""
        if image.shape[-2:] != pair(size):
            batch = (image if image.ndim == 4 else image[None]).contiguous(memory_format=torch.channels_last)
            batch = interpolate(batch, pair(size), mode=self.interpolation, antialias=True)  # as torchvision
            image = batch if image.ndim == 4 else batch[0]
        elif self.pixels:
            image = image.clone()  # steps may work in place, and the image may be part of a cache
        for name, step in self.pixels.items():
            try:
                image = step(image)
            except Exception as error:
                error.add_note(f"while running pixels.{name}, which gets one image, uint8 (channels, height, width)")
                raise
        return image


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Stack images (channels, height, width) of one size and dtype to (n, channels, height, width), channels-last
    (NHWC) in memory, as decoders return them and convolutions prefer them."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class RandomHorizontalFlip(nn.Module):
    """Mirror the images (n, channels, height, width) of a batch with probability `p`, by (seed, epoch, index).

    Args:
        p: Probability.
        seed: Seed of the run.
    """

    draws = False
    purpose, side = "horizontal flip", -1

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.p = p
        self.seed = seed

    def forward(self, batch: Batch) -> Batch:
        flipped = image_uniforms(batch, self.purpose, self.seed) < self.p
        image = batch["image"]
        if image.device.type == "cpu":  # one by one: a fifth of the time of indexing, mirroring and putting back
            mirrored = image.clone()
            for row in flipped.nonzero()[:, 0].tolist():
                mirrored[row] = image[row].flip(self.side)
            return {"image": mirrored}
        return {"image": torch.where(flipped[:, None, None, None], image.flip(self.side), image)}  # asks no device


class RandomVerticalFlip(RandomHorizontalFlip):
    """Turn the images of a batch upside down, left staying left, as `RandomHorizontalFlip` mirrors them."""

    purpose, side = "vertical flip", -2


class RandomErasing(nn.Module):
    """Replace a random rectangle of some images (n, channels, height, width) of a batch by 0, by (seed, epoch, index):
    after `Normalize` the mean colour, before it black ([Zhong et al. 2020](https://arxiv.org/abs/1708.04896)).

    Args:
        p: Probability.
        scale: Least and greatest fraction of the image's area.
        ratio: Least and greatest height / width.
        seed: Seed of the run.
    """

    draws = False

    def __init__(
        self,
        p: float = 0.25,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, (least, greatest), most in (("scale", scale, 1), ("ratio", ratio, math.inf)):
            if not 0 < least <= greatest <= most:
                limit = ", at most 1" if most == 1 else ""
                what = f"{option} must be the least value, above 0, and the greatest{limit}; got {[least, greatest]}."
                raise UserError(f"RandomErasing: {what}")
        self.p = p
        self.scale = tuple(scale)
        self.log_ratio = tuple(math.log(bound) for bound in ratio)
        self.seed = seed

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        erased, area, shape, down, across = (
            image_uniforms(batch, f"erasing {purpose}", self.seed)
            for purpose in ("or not", "area", "ratio", "top", "left")
        )
        height, width = image.shape[-2:]
        pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        ratio = (self.log_ratio[0] + shape * (self.log_ratio[1] - self.log_ratio[0])).exp()
        rows = _between(down, (pixels * ratio).sqrt(), height)
        columns = _between(across, (pixels / ratio).sqrt(), width)
        mask = (erased < self.p)[:, None, None] & rows[:, :, None] & columns[:, None, :]
        return {"image": image.masked_fill(mask[:, None], 0)}


def _between(place: Tensor, length: Tensor, side: int) -> Tensor:
    """Whether each of `side` pixels lies in an interval of `length` pixels, float (n,), at a `place` from 0 to 1: bool
    (n, side)."""
    length = length.round().clamp(1, side)
    first = (place * (side - length + 1)).floor()
    pixel = torch.arange(side, device=place.device)
    return (pixel >= first[:, None]) & (pixel < (first + length)[:, None])


def image_uniforms(batch: Batch, purpose: str, seed: int) -> Tensor:
    """Draw a float32 value in [0, 1) for each image of a batch, by purpose, seed, epoch and index; for an image that is
    drawn repeatedly in an epoch, also by its number among these."""
    key = batch["index"]
    if REPEAT in batch:
        key = key + (batch[REPEAT] << 40)
    return uniforms(key, purpose, seed, batch["epoch"])


class Normalize(nn.Module):
    """Convert uint8 images to float32: pixels scaled to [0, 1], then `(pixel - mean) / std` per channel.

    Args:
        mean: Means of red, green and blue, in [0, 1].
        std: Standard deviations of red, green and blue, in [0, 1].
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
            raise UserError(f"Normalize has {len(self.mean)} means, but the images have {image.shape[-3]} channel(s).")
        if image.dtype != torch.uint8:  # another transform has converted them
            from torchvision.transforms.v2 import functional as F

            return {"image": F.normalize(F.to_dtype(image, torch.float32, scale=True), self.mean, self.std)}
        if self._scale.device != image.device:
            self._scale, self._shift = self._scale.to(image.device), self._shift.to(image.device)
        image = image.to(torch.float32)  # and then in place: two passes over the pixels
        channels = len(self.mean)
        if image.ndim == 4 and image.shape[1] == channels and image.is_contiguous(memory_format=torch.channels_last):
            # whole rows at once: three values are too few for the CPU's wide registers
            n, _, height, width = image.shape
            pixels = image.permute(0, 2, 3, 1).reshape(n * height, width * channels)
            rows = self._rows  # read once: another thread may replace it
            if rows is None or len(rows[0]) != width * channels or rows[0].device != image.device:
                scale, shift = (
                    values.to(image.device).flatten().repeat(width) for values in (self._scale, self._shift)
                )
                rows = self._rows = scale, shift
            torch.addcmul(rows[1], pixels, rows[0], out=pixels)
        else:
            torch.addcmul(self._shift, image, self._scale, out=image)
        return {"image": image}

"""The three stages of an image's way into the network: which box, its pixels, the batch on the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from imago.randomness import uniforms
from imago.transforms import Batch, ComposeTransform


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


class ImageTransform:
    """What is done to the images of a split.

    Args:
        box: `(height, width) -> Box`: which rectangle of the image is taken; random ones draw from torch's generator.
        pixels: Named transforms of `torchvision.transforms.v2`, run on each uint8 (3, size, size) image by the
            loader's workers; random ones repeat for the same (seed, epoch, index).
        batch: Named transforms of dictionaries, run on the whole batch on the device; `image` comes as uint8.
    """

    def __init__(
        self,
        box: Callable[[int, int], Box],
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
    def is_random(self) -> bool:
        """Whether box or pixels may draw: then each image needs random numbers of its own."""
        return bool(self.pixels) or getattr(self.box, "is_random", True)

    def image(self, image: Tensor, size: int) -> Tensor:
        """Box and pixels of one uint8 (3, height, width) image: uint8 (3, size, size). Several of one size at once,
        (n, 3, height, width), where it is not random."""
        box = self.box(image.shape[-2], image.shape[-1])
        image = F.resized_crop(image, *box, [size, size], antialias=True)
        for step in self.pixels:
            image = step(image)
        return image


class CenterBox:
    """The square in the middle.

    Args:
        share: Its side as a share of the image's shorter side; 0.875 is the usual 224 of 256 pixels.
    """

    is_random = False

    def __init__(self, share: float = 0.875) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: give a number above 0, at most 1.")
        self.share = share

    def __call__(self, height: int, width: int) -> Box:
        side = max(1, round(self.share * min(height, width)))
        return Box((height - side) // 2, (width - side) // 2, side, side)


class RandomResizedBox:
    """A random rectangle, drawn as `torchvision.transforms.v2.RandomResizedCrop` draws it.

    Args:
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width / height.
    """

    def __init__(self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        self.crop = v2.RandomResizedCrop(1, scale=list(scale), ratio=list(ratio), antialias=True)

    def __call__(self, height: int, width: int) -> Box:
        drawn: dict[str, Any] = self.crop.make_params([torch.empty(1, 1, 1).expand(1, height, width)])
        return Box(drawn["top"], drawn["left"], drawn["height"], drawn["width"])


class RandomHorizontalFlip(nn.Module):
    """Mirrors each image of a batch with probability `p`; which ones is a function of (seed, epoch, index).

    Args:
        p: The probability.
        seed: The run's seed.
    """

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.p = p
        self.seed = seed

    def forward(self, batch: Batch) -> Batch:
        flipped = uniforms(batch["index"], "horizontal flip", self.seed, batch["epoch"]) < self.p
        image = batch["image"]
        if image.device.type == "cpu":
            rows = flipped.nonzero()[:, 0]
            return {"image": image.index_copy(0, rows, image[rows].flip(-1))}
        return {"image": torch.where(flipped[:, None, None, None], image.flip(-1), image)}  # without asking the device


class Normalize(nn.Module):
    """From uint8 to float32: pixels scaled to [0, 1], then `(pixel - mean) / std` per channel.

    Args:
        mean: Of red, green and blue, in [0, 1].
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = list(mean)
        self.std = list(std)
        self._scale = torch.tensor([1 / (255 * std) for std in std])[:, None, None]
        self._shift = torch.tensor([-mean / std for mean, std in zip(mean, std, strict=True)])[:, None, None]

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        if len(self.mean) > image.shape[-3]:
            raise ValueError(f"Normalize has {len(self.mean)} means, the images have {image.shape[-3]} channel(s).")
        if image.dtype != torch.uint8:  # another transform has converted them
            return {"image": F.normalize(F.to_dtype(image, torch.float32, scale=True), self.mean, self.std)}
        if self._scale.device != image.device:
            self._scale, self._shift = self._scale.to(image.device), self._shift.to(image.device)
        image = image.to(torch.float32)
        return {"image": torch.addcmul(self._shift, image, self._scale, out=image)}  # in two passes over the pixels

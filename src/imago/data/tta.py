"""Views of an image for test-time augmentation: the mean prediction over them is often a little better."""

import copy

from torch import nn

from imago.data.crops import CenterBox, CropBox, FittedBox
from imago.data.transforms import ImageTransform
from imago.definitions import Batch
from imago.errors import UserError
from imago.wiring import ComposeTransform

CROP = 0.875
"""Greatest side of the corner crops as a fraction of the shorter side; 224 of 256 pixels, as usual."""


class CornerBox:
    """Square crop in a corner of the image; `share` as in CenterBox."""

    def __init__(self, share: float, bottom: bool, right: bool) -> None:
        self.share = share
        self.bottom = bottom
        self.right = right

    def __call__(self, height: int, width: int) -> CropBox:
        side = max(1, round(self.share * min(height, width)))
        return CropBox((height - side) * self.bottom, (width - side) * self.right, side, side)


class Mirror(nn.Module):
    """Mirror all images (n, channels, height, width) of a batch, left to right."""

    def forward(self, batch: Batch) -> Batch:
        return {"image": batch["image"].flip(-1)}


def views(transform: ImageTransform, tta: str) -> list[ImageTransform]:
    """Return the transforms of `none` (1), `flip` (2), `five_crop` (5: the middle and the corners) or `ten_crop` (10).

    Raises:
        ValueError: Crops were requested, and the box is no CenterBox.
    """
    transforms = [transform]
    if tta in ("five_crop", "ten_crop"):
        fitted = transform.box if isinstance(transform.box, FittedBox) else None
        middle = fitted.box if fitted is not None else transform.box
        if not isinstance(middle, CenterBox):
            raise UserError(
                f"tta={tta} needs imago.data.CenterBox as data.eval_transform.box, got a "
                f"{type(middle).__name__}. Type tta=flip"
            )
        share = min(middle.share, CROP)
        for bottom, right in ((False, False), (False, True), (True, False), (True, True)):
            corner = CornerBox(share, bottom, right)
            box = FittedBox(corner, fitted.size, fitted.fit, fitted.fill) if fitted is not None else corner
            transforms.append(transform.with_box(box))
    if tta in ("flip", "ten_crop"):
        transforms += [_mirrored(view) for view in transforms]
    return transforms


def _mirrored(transform: ImageTransform) -> ImageTransform:
    mirrored = copy.copy(transform)
    mirrored.batch = ComposeTransform(mirror=Mirror(), **transform.batch.steps)
    return mirrored

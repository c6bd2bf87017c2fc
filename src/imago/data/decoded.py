"""Decoded images that a run caches for later epochs: resized crops, or whole images."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from imago.data.cache import GIGABYTE, Cache
from imago.data.crops import CenterBox, FittedBox, WholeBox
from imago.data.dataset import advised
from imago.data.decode import BadImageError
from imago.data.images import Images
from imago.data.transforms import ImageTransform


class DecodedImages:
    """The cached images of a data module.

    Args:
        kind: `none`, `ram`, `disk` or `auto`.
        folder: Folder of the caches on the disk.
        gigabytes: Limit for the pixels of a split; None allows a quarter of the free space.
    """

    def __init__(self, kind: str, folder: Path, gigabytes: float | None) -> None:
        self.kind = kind
        self.folder = folder
        self.budget = round(gigabytes * GIGABYTE) if gigabytes is not None else None
        self.too_large: set[str] = set()
        """Splits that `auto` has found no place for."""
        self._kept: dict[str, Images] = {}

    def keep(self, data: Any, split: str, images: Images, transform: ImageTransform) -> tuple[Images, ImageTransform]:
        """Return the decoded `images` of a split of the data module `data`, and the remaining transform; both unchanged
        if the images are not cached.

        Raises:
            BadImageError: An image cannot be read.
        """
        is_private = not data.strategy.shows_train_images
        cache = Cache(self.kind, self.folder, self.budget, data.placement.processes, is_private)
        size, box, root = data.image_size, transform.box, data.sets.root
        build = self._is_read_often(data.trainer, self.kind)
        if not build and self.kind != "disk":
            return self._kept.get(split, images), transform
        try:
            middle = box.box if isinstance(box, FittedBox) else box
            if type(middle) is CenterBox and not transform.pixels:  # the network always sees the same pixels
                fit = f", {box.fit} {box.fill}" if isinstance(box, FittedBox) else ""
                how = f"{transform.interpolation}, {images.decode}, {images.decoding}{fit}"
                key = f"{root}\n{split}, {middle.share} of {size} pixels, {how}"
                seen = self._kept.get(key, images)
                if seen is images:
                    seen = self._kept[key] = cache.keep(
                        images,
                        f"{split}, resized",
                        key,
                        lambda index: transform.resized(images.read_box(index, box, size), size),
                        build,
                    )
                    self._note_place(split, seen is not images or not build)
                return seen, transform if seen is images else transform.with_box(WholeBox())
            if images.decode == "exact" and self._kept.get(split, images) is images:  # else they depend on the box
                kept = cache.keep(images, split, f"{root}\nwhole, {images.decoding}", images.read, build)
                self._kept[split] = kept
                self._note_place(split, kept is not images or not build)
            return self._kept.get(split, images), transform
        except BadImageError as error:
            raise BadImageError(advised(error)) from None

    def helps(self, trainer: Any) -> bool:
        """Whether `auto` would cache the images of a run."""
        return self._is_read_often(trainer, "auto")

    def _note_place(self, split: str, has_place: bool) -> None:
        self.too_large = self.too_large - {split} if has_place else self.too_large | {split}

    def _is_read_often(self, trainer: Any, kind: str) -> bool:
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:
            return False
        if kind == "disk":
            return True
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        if kind == "ram":
            return epochs > 1
        return epochs > 2 and not trainer.overfit_batches and trainer.limit_train_batches == 1.0

"""Images in shards that `ml-shard` wrote, on this machine or at a URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from imago.data.image_folder import leave_out
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.options import FileOptions
from imago.data.shard_files import LocalPlace, ShardReader, missing_index
from imago.data.shard_images import ShardImages
from imago.data.shard_index import DIGESTS, INDEX, ShardIndex, read_index
from imago.data.transforms import ImageTransform
from imago.definitions import Positive, TestRatio, ValRatio
from imago.errors import MissingFileError, UserError


class ShardDataModule(ImageDataModule):
    """Data module of the shards of `ml-shard`: tars that are read at random positions, through their index.

    Args:
        shards: Folder of `ml-shard`.
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        window: Shards among whose images the order of an epoch mixes, once the order of the shards is drawn; None mixes
            all images. With no more shards than that, the order is that of a folder of the same images.
        exclude: File of paths to leave out, one per line.
        val_ratio: Stratified fraction of train that becomes the val split if there is none.
        test_ratio: Stratified fraction of train that becomes the test split; None draws none. The shards must not have
            a test split.
        seed: Seed of the split, the order and the augmentations.
        decode: `fast` decodes large JPEGs at a half, a quarter or an eighth of their size if that is enough for
            `image_size`; pixels differ by about a grey level.
        recorded: Entry `imago` of a checkpoint whose draws of val and test are repeated, so that no image changes its
            split when the data grow.
        options: Those of ImageDataModule.
    """

    def __init__(
        self,
        shards: str,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        window: Positive | None = 16,
        exclude: str | None = None,
        val_ratio: ValRatio = 0.1,
        seed: int = 42,
        decode: Literal["exact", "fast"] = "exact",
        test_ratio: TestRatio = None,
        recorded: Mapping[str, Any] | None = None,
        **options: Unpack[FileOptions],
    ) -> None:
        sets, white = _local_sets(Path(shards).expanduser(), window)
        sets.draw_splits(val_ratio, seed, test_ratio, recorded)
        if exclude is not None:
            leave_out(sets, Path(exclude).expanduser())
        if options.get("range", "auto") == "auto":
            options["range"] = _white(white, sets)
        super().__init__(sets, train_transform, eval_transform, seed=seed, **options)
        for images in sets.splits.values():
            images.decode = decode


def _local_sets(folder: Path, window: int | None) -> tuple[ImageSets, int | str]:
    """Read the index of a folder, and check that its shards are there. Returns the splits, and what is white."""
    if not folder.is_dir():
        raise MissingFileError(
            f"data.shards={folder} is no folder. It must be a folder that ml-shard wrote: "
            f"ml-shard PHOTOS --output {folder}"
        )
    if not (folder / INDEX).is_file():
        raise missing_index(folder, [path.name for path in folder.iterdir()])
    index, place = read_index(folder / INDEX), LocalPlace(folder)
    for split in index.splits.values():
        place.check(split)
    return image_sets(index, ShardReader(place), folder / DIGESTS, window), index.white


def image_sets(
    index: ShardIndex, reader: ShardReader, digests: Path, window: int | None, is_near: bool = True
) -> ImageSets:
    """Make the splits of an index."""
    splits = {
        name: ShardImages(columns, reader, index.digest, digests, window, is_near)
        for name, columns in index.splits.items()
    }
    return ImageSets(reader.place.root, index.class_names, dict(splits))


def _white(white: int | str, sets: ImageSets) -> int:
    """Return the value that is white in 16-bit images, which was derived when the shards were written; or say why it
    cannot be."""
    if isinstance(white, str):
        raise UserError(white)
    if white < 65535:
        sets.notes.append(f"16-bit images of train have no value above {white} of 65535, which is read as white")
    return white

"""Images in shards that `ml-shard` wrote, on this machine or at a URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from imago.data.folds import divide
from imago.data.image_folder import leave_out
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.options import FileOptions
from imago.data.shard_cache import GIGABYTE, RemotePlace, default_budget
from imago.data.shard_download import check_url
from imago.data.shard_files import MOST_OPEN, LocalPlace, ShardReader, missing_index
from imago.data.shard_images import ShardImages
from imago.data.shard_index import INDEX, ShardIndex, read_index
from imago.data.transforms import ImageTransform
from imago.definitions import CalibrationRatio, Fold, Folds, Positive, PositiveFloat, TestRatio, ValRatio
from imago.errors import MissingFileError, UserError


class ShardDataModule(ImageDataModule):
    """Data module of the shards of `ml-shard`: tars that are read at random positions, through their index.

    Args:
        shards: Folder of `ml-shard`, or its URL: `http(s)`, `s3`, `gs` or another of fsspec. Shards of a URL are
            downloaded whole, to `cache_dir`.
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        window: Shards among whose images the order of an epoch mixes, once the order of the shards is drawn; None mixes
            all images. With no more shards than that, the order is that of a folder of the same images.
        shard_cache_gb: Gigabytes of the disk for shards of all URLs; None allows a quarter of the free space.
        exclude: File of paths to leave out, one per line.
        val_ratio: Stratified fraction of train that becomes the val split if there is none.
        test_ratio: Stratified fraction of train that becomes the test split; None draws none. The shards must not have
            a test split.
        seed: Seed of the split, the order and the augmentations.
        decode: `fast` decodes large JPEGs at a half, a quarter or an eighth of their size if that is enough for
            `image_size`; pixels differ by about a grey level.
        recorded: Entry `imago` of a checkpoint whose draws of val and test are repeated, so that no image changes its
            split when the data grow.
        fold: Fold, counted from 0, that is the val split; the others are train. None has no folds.
        folds: Number of folds that are drawn from train and val, by seed and path.
        calibration_ratio: Stratified fraction of val that becomes the calibration split, which chooses no checkpoint;
            0 draws none.
        options: Those of ImageDataModule.
    """

    def __init__(
        self,
        shards: str,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        window: Positive | None = 16,
        shard_cache_gb: PositiveFloat | None = None,
        exclude: str | None = None,
        val_ratio: ValRatio = 0.1,
        seed: int = 42,
        decode: Literal["exact", "fast"] = "exact",
        test_ratio: TestRatio = None,
        recorded: Mapping[str, Any] | None = None,
        fold: Fold = None,
        folds: Folds = None,
        calibration_ratio: CalibrationRatio = 0.0,
        **options: Unpack[FileOptions],
    ) -> None:
        if window is not None and window < 1:
            raise UserError(f"data.window must be a whole number (1 or more), or null; got {window}.")
        if "://" in shards:
            cache = Path(options.get("cache_dir", ".cache"))
            sets, white = _remote_sets(shards, cache, window, shard_cache_gb)
            options["cache"] = "none" if options.get("cache", "auto") == "auto" else options["cache"]
        else:
            sets, white = _local_sets(Path(shards).expanduser(), window)
        divide(sets, val_ratio, seed, test_ratio, recorded, fold, folds, calibration_ratio)
        if exclude is not None:
            leave_out(sets, Path(exclude).expanduser())
        if options.get("range", "auto") == "auto":
            options["range"] = _white(white, sets)
        super().__init__(sets, train_transform, eval_transform, seed=seed, **options)
        for images in sets.splits.values():
            images.decode = decode


def local_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of `ml-shard`.

    Raises:
        FileNotFoundError, ValueError: `folder` is none, or its index is missing or damaged.
    """
    if not folder.is_dir():
        raise MissingFileError(
            f"data.shards={folder} is no folder. It must be a folder that ml-shard wrote: "
            f"ml-shard PHOTOS --output {folder}"
        )
    if not (folder / INDEX).is_file():
        raise missing_index(folder, [path.name for path in folder.iterdir()])
    return read_index(folder / INDEX)


def _local_sets(folder: Path, window: int | None) -> tuple[ImageSets, int | str]:
    """Read the index of a folder, and check that its shards are there. Returns the splits, and what is white."""
    index, place = local_index(folder), LocalPlace(folder)
    for split in index.splits.values():
        place.check(split)
    return image_sets(index, ShardReader(place), window), index.white


def _remote_sets(url: str, cache: Path, window: int | None, gigabytes: float | None) -> tuple[ImageSets, int | str]:
    """Read the index of a URL. Returns the splits, and what is white."""
    index, place = remote_index(url, cache, gigabytes)
    _check_budget(index, window, place.budget)
    most_open = MOST_OPEN if window is None else min(MOST_OPEN, window)  # else the last window would stay, too
    return image_sets(index, ShardReader(place, most_open), window, is_near=False), index.white


def remote_index(url: str, cache: Path, gigabytes: float | None) -> tuple[ShardIndex, RemotePlace]:
    """Read the index of a URL; a copy in the cache that is damaged is downloaded once more.

    Raises:
        UserError: It is no URL of a folder, or has no index that can be read.
    """
    check_url(url)
    cache = cache / "shards"
    place = RemotePlace(url, cache, default_budget(cache) if gigabytes is None else round(gigabytes * GIGABYTE))
    file = place.index()
    try:
        return read_index(file), place
    except UserError:
        file.unlink(missing_ok=True)
        return read_index(place.index()), place


def _check_budget(index: ShardIndex, window: int | None, budget: int) -> None:
    """Raise UserError if the cache does not hold two windows, the one that is read and the next one."""
    sizes = sorted(index.splits["train"].shard_size.tolist(), reverse=True)
    needed = sum(sizes if window is None else sizes[: 2 * window])
    if needed > budget:
        fewer = "" if window == 1 else f" data.window={1 if window is None else max(1, window // 2)} (fewer shards), or"
        raise UserError(
            f"data.window={'null' if window is None else window} needs {needed / GIGABYTE:.3g} GB of disk for shards, "
            f"and has {budget / GIGABYTE:.3g}. Type{fewer} data.shard_cache_gb={1.01 * needed / GIGABYTE:.3g}"
        )


def image_sets(index: ShardIndex, reader: ShardReader, window: int | None, is_near: bool = True) -> ImageSets:
    """Make the splits of an index."""
    splits = {
        name: ShardImages(columns, reader, index.digest, window, is_near) for name, columns in index.splits.items()
    }
    sets = ImageSets(reader.place.root, index.class_names, dict(splits))
    for images in splits.values():
        if images.index.group is not None:
            groups = images.index.group.tolist()
            sets.groups |= {path: str(group or "") for path, group in zip(images.paths, groups, strict=True)}
    return sets


def _white(white: int | str, sets: ImageSets) -> int:
    """Return the value that is white in 16-bit images, which was derived when the shards were written; or say why it
    cannot be."""
    if isinstance(white, str):
        raise UserError(white)
    if white < 65535:
        sets.notes.append(f"16-bit images of train have no value above {white} of 65535, which is read as white")
    return white

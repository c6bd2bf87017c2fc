"""Images in folders named after their classes, or in the splits of a file that `ml-split` wrote."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from imago.data.crops import FILL
from imago.data.folders import read_labelled, read_tree
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.split_files import listed_paths, read_split_file
from imago.data.transforms import ImageTransform
from imago.definitions import Batch, Positive, ValRatio, ZeroOrMore, ZeroOrMoreFloat
from imago.errors import NO_DATA, UserError


class ImageFolderDataModule(ImageDataModule):
    """Images in folders named after their classes; reads the folder when it is made, and never writes to it.

    Args:
        train_transform: Box, pixels and batch stage of the images that are trained on.
        eval_transform: The same for everything that is scored, the train split included.
        data_dir: `train/ val/ test/` of class folders, or class folders; None asks `source`.
        split_file: A file of `ml-split` that says which image is in which split; `data_dir` is then optional.
        exclude: A file of paths below `data_dir`, one per line, that are left out: `ml-doctor` writes one.
        source: Returns the folder of a set that Imago fetches or makes itself.
        image_size: What the network sees, in pixels: the side of a square, or [height, width].
        batch_size: Images per training step of the whole run.
        num_workers: Processes that load images; None takes the cores that this process may use, at most 8.
        val_ratio: ValRatio of train that becomes the val split where the folder has none; stratified.
        on_bad_image: `error` stops at a file that cannot be read; `skip` decodes every file once before the run and
            leaves such files out.
        seed: Of the split, the order and the augmentations.
        cache_dir: Where `skip` remembers what it found.
        cache: Where decoded images are kept for the epochs to come: `none`, `ram`, `disk`, or `auto`.
        cache_gb: Gigabytes that those of a split may take; None takes a quarter of what is free.
        fit: How an image of another shape gets there: `crop` cuts its ends off, `squash` changes its aspect ratio,
            `pad` adds margins of the colour `fill`.
        fill: Red, green and blue, from 0 to 255.
        transform: A transform of dictionaries for the batches of all splits, after the batch stage of their own.
        pin_memory: Load into memory that a GPU copies from faster; None does it where there is one.
        prefetch_factor: Batches that each worker has ready; None takes torch's 2.
        persistent_workers: Keep the workers from epoch to epoch.
        range: The value that is white in images of 16 bits; `auto` looks at the train images (1023, 4095, …).
        icc: Convert colours to sRGB by the profiles in the files.
        decode: `fast` decodes large JPEGs at a half, a quarter or an eighth of their size where that is enough for
            `image_size`: other pixels, by about a grey level.
        trained: What a checkpoint says of its run (its entry `imago`), to score it: the folder may then hold any
            labelled images of some of its classes.
    """

    def __init__(
        self,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        data_dir: str | None = None,
        split_file: str | None = None,
        exclude: str | None = None,
        source: Callable[[], Path] | None = None,
        image_size: Positive | Sequence[int] = 224,
        batch_size: Positive = 32,
        num_workers: ZeroOrMore | None = None,
        val_ratio: ValRatio = 0.1,
        on_bad_image: Literal["error", "skip"] = "error",
        seed: int = 42,
        cache_dir: str = ".cache",
        cache: Literal["none", "ram", "disk", "auto"] = "auto",
        cache_gb: ZeroOrMoreFloat | None = None,
        fit: Literal["crop", "squash", "pad"] = "crop",
        fill: Sequence[int] = FILL,
        transform: Callable[[Batch], Batch] | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: Positive | None = None,
        persistent_workers: bool = True,
        range: Literal["auto"] | int = "auto",
        icc: bool = True,
        decode: Literal["exact", "fast"] = "exact",
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            sets = _image_sets(data_dir, split_file, source, val_ratio, seed)
            sets.as_read = sets.fingerprint()
            is_new = trained is not None and sets.as_read != trained["data"].get("as_read", "")
        except ValueError:
            if trained is None or data_dir is None or split_file is not None:
                raise
            is_new = True
        if is_new and trained is not None and data_dir is not None and split_file is None:
            sets = read_labelled(Path(data_dir).expanduser(), trained["class_names"])
        if exclude is not None:
            leave_out(sets, Path(exclude).expanduser())
        super().__init__(
            sets,
            train_transform,
            eval_transform,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            on_bad_image=on_bad_image,
            seed=seed,
            cache_dir=cache_dir,
            cache=cache,
            cache_gb=cache_gb,
            fit=fit,
            fill=fill,
            transform=transform,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            range=range,
            icc=icc,
        )
        for images in sets.splits.values():
            images.decode = decode


def _image_sets(
    data_dir: str | None, split_file: str | None, source: Callable[[], Path] | None, val_ratio: float, seed: int
) -> ImageSets:
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if split_file is not None:
        return read_split_file(Path(split_file).expanduser(), folder, val_ratio, seed)
    if folder is None:
        if source is None:
            raise UserError(NO_DATA)
        folder = source()
    return read_tree(folder, val_ratio, seed)


def leave_out(sets: ImageSets, file: Path) -> None:
    """Takes what `data.exclude` lists out of all splits.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Nothing would be left of a class.
    """
    listed = listed_paths(file)
    for name, images in list(sets.splits.items()):
        found = listed.intersection(images.paths)
        if found:
            sets.leave_out(name, found)
            sets.excluded += sorted(found)
    if gone := len(listed) - len(sets.excluded):
        sets.notes.append(f"{gone} of the {len(listed)} files in {file} are not among the images")

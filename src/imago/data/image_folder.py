"""Images in folders named after their classes, or in the splits of a file that `ml-split` wrote."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from imago.data.folders import read_labelled, read_undrawn
from imago.data.folds import divide
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.options import FileOptions
from imago.data.relabel import is_of_run
from imago.data.split_files import listed_paths, read_rows
from imago.data.transforms import ImageTransform
from imago.definitions import CalibrationRatio, Fold, Folds, TestRatio, ValRatio
from imago.errors import UserError, no_data


class ImageFolderDataModule(ImageDataModule):
    """Data module of images in folders named after their classes; the folder is read at once, and never written to.

    Args:
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        data_dir: Folder of `train/ val/ test/` with class folders, or of class folders; None calls `source`.
        split_file: File of `ml-split` with the split of every image; `data_dir` is then optional.
        exclude: File of paths below `data_dir` to leave out, one per line; `ml-doctor` writes one.
        source: Function that returns the folder of a data set that Imago downloads or makes itself.
        val_ratio: Stratified fraction of train that becomes the val split if the folder has none.
        test_ratio: Stratified fraction of train that becomes the test split; None draws none. The folder must not have
            a test split.
        seed: Seed of the split, the order and the augmentations.
        decode: `fast` decodes large JPEGs at a half, a quarter or an eighth of their size if that is enough for
            `image_size`; pixels differ by about a grey level.
        trained: Entry `imago` of a checkpoint that is scored: the folder may then hold any labelled images of some of
            its classes.
        recorded: Entry `imago` of a checkpoint whose draws of val and test are repeated, so that no image changes its
            split when the data grow.
        fold: Fold, counted from 0, that is the val split; the others are train. None has no folds.
        folds: Number of folds that are drawn from train and val, by seed and path, if `split_file` has none.
        calibration_ratio: Stratified fraction of val that becomes the calibration split, which chooses no checkpoint;
            0 draws none.
        options: Those of ImageDataModule.
    """

    def __init__(
        self,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        data_dir: str | None = None,
        split_file: str | None = None,
        exclude: str | None = None,
        source: Callable[[], Path] | None = None,
        val_ratio: ValRatio = 0.1,
        seed: int = 42,
        decode: Literal["exact", "fast"] = "exact",
        trained: Mapping[str, Any] | None = None,
        test_ratio: TestRatio = None,
        recorded: Mapping[str, Any] | None = None,
        fold: Fold = None,
        folds: Folds = None,
        calibration_ratio: CalibrationRatio = 0.0,
        **options: Unpack[FileOptions],
    ) -> None:
        try:
            sets = _image_sets(data_dir, split_file, source)
            divide(sets, val_ratio, seed, test_ratio, recorded, fold, folds, calibration_ratio)
            sets.as_read = sets.fingerprint()
            is_new = trained is not None and sets.as_read != trained["data"].get("as_read", "")
        except ValueError:
            if trained is None or data_dir is None or split_file is not None:
                raise
            is_new = True
        if is_new and trained is not None and data_dir is not None and split_file is None:
            sets = read_labelled(Path(data_dir).expanduser(), trained["class_names"])
            if (file := options.get("relabel")) is not None and is_of_run(file, trained):
                sets.warnings.append(
                    f"data.relabel={file} is for the data of the checkpoint: it is not applied to these"
                )
                options["relabel"] = None
        if exclude is not None:
            leave_out(sets, Path(exclude).expanduser())
        super().__init__(sets, train_transform, eval_transform, seed=seed, **options)
        for images in sets.splits.values():
            images.decode = decode


def _image_sets(data_dir: str | None, split_file: str | None, source: Callable[[], Path] | None) -> ImageSets:
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if split_file is not None:
        return read_rows(Path(split_file).expanduser(), folder)
    if folder is None:
        if source is None:
            raise UserError(no_data())
        folder = source()
    return read_undrawn(folder)


def leave_out(sets: ImageSets, file: Path) -> None:
    """Leave the images that `data.exclude` lists out of all splits.

    Raises:
        FileNotFoundError: `file` does not exist.
        ValueError: A class would have no images left.
    """
    listed = listed_paths(file)
    for name, images in list(sets.splits.items()):
        excluded = listed.intersection(images.paths)
        if excluded:
            sets.leave_out(name, excluded)
            sets.excluded += sorted(excluded)
            sets.changed.setdefault("data.exclude", {})[name] = len(excluded)
    if gone := len(listed) - len(sets.excluded):
        sets.warnings.append(f"{gone} of the {len(listed)} files in {file} are not among the images")

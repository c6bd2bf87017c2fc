"""Data sets of Hugging Face's `datasets`, from the hub or from local files."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from imago.data.decode import read_image
from imago.data.digests import digest_of, file_digest
from imago.data.folds import divide
from imago.data.images import Images, ImageSets
from imago.data.module import ImageDataModule
from imago.data.options import FileOptions
from imago.data.transforms import ImageTransform
from imago.definitions import SPLIT_NAMES, CalibrationRatio, Fold, Folds, TestRatio, ValRatio
from imago.errors import DownloadError, UserError


class HuggingFaceDataModule(ImageDataModule):
    """Data module of a `datasets.DatasetDict` with an image and a label column; images are decoded on demand.

    Splits are found by name (`train`, `val`, `validation`, `test`, …), class names in the features of the labels.

    Args:
        dataset: Returns the DatasetDict; `datasets.load_dataset` or `datasets.load_from_disk` with its arguments.
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        image_column: Name of the column of images.
        label_column: Name of the column of labels: a ClassLabel, or text, or whole numbers.
        val_ratio: Stratified fraction of train that becomes the val split if there is none.
        test_ratio: Stratified fraction of train that becomes the test split; None draws none. The data set must not
            have a test split with labels.
        seed: Seed of the split, the order and the augmentations.
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
        dataset: Callable[[], Any],
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        image_column: str = "image",
        label_column: str = "label",
        val_ratio: ValRatio = 0.1,
        seed: int = 42,
        test_ratio: TestRatio = None,
        recorded: Mapping[str, Any] | None = None,
        fold: Fold = None,
        folds: Folds = None,
        calibration_ratio: CalibrationRatio = 0.0,
        **options: Unpack[FileOptions],
    ) -> None:
        sets = _image_sets(_loaded(dataset), image_column, label_column)
        divide(sets, val_ratio, seed, test_ratio, recorded, fold, folds, calibration_ratio)
        super().__init__(sets, train_transform, eval_transform, seed=seed, **options)


class ColumnImages(Images):
    """Images from rows of a `datasets.Dataset` whose `column` holds undecoded images."""

    are_named = False

    def __init__(self, dataset: Any, column: str, rows: Sequence[int], paths: Sequence[str], labels: Sequence[int]):
        self.dataset = dataset
        self.column = column
        self.rows = rows
        self.paths = paths
        self.labels = labels

    def read(self, index: int) -> Tensor:
        cell = self.dataset[self.rows[index]][self.column]
        source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
        return read_image(source, self.paths[index], self.decoding)

    def digest(self, index: int) -> int | None:
        cell = self.dataset[self.rows[index]][self.column]
        if cell["bytes"] is not None:
            return digest_of(io.BytesIO(cell["bytes"]), len(cell["bytes"]))
        return file_digest(Path(cell["path"]))

    def select(self, indices: Sequence[int]) -> "ColumnImages":
        rows, paths, labels = ([column[i] for i in indices] for column in (self.rows, self.paths, self.labels))
        chosen = ColumnImages(self.dataset, self.column, rows, paths, labels)  # type: ignore[arg-type]
        chosen.decoding = self.decoding
        return chosen

    def joined(self, further: Images) -> Images:
        from datasets import concatenate_datasets

        if not isinstance(further, ColumnImages):
            return super().joined(further)
        rows = [*self.rows, *(len(self.dataset) + row for row in further.rows)]
        dataset = concatenate_datasets([self.dataset, further.dataset])
        paths, labels = [*self.paths, *further.paths], [*self.labels, *further.labels]
        chosen = ColumnImages(dataset, self.column, rows, paths, labels)
        chosen.decoding = self.decoding
        return chosen

    def stamp(self, times: bool = False) -> str:
        return f"{self.dataset._fingerprint} {super().stamp(times)}"


def _loaded(dataset: Callable[[], Any]) -> dict[str, Any]:
    try:
        loaded = dataset()
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such set, no such file
        raise DownloadError(
            f"The data set could not be loaded ({type(error).__name__}: {error}).\n"
            "Type data.dataset.path=NAME (on the hub) or data.dataset.path=FOLDER, or, for example,\n"
            "  data.dataset.path=parquet data.dataset.data_files=FILE"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError("data.dataset has one split only. Remove data.dataset.split=.")
    return loaded


def _image_sets(loaded: dict[str, Any], image_column: str, label_column: str) -> ImageSets:
    known = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    parts = {known[name]: part for name, part in loaded.items() if name in known}
    if "train" not in parts:
        raise UserError(f"The data set has no train split; it has {', '.join(loaded)}.")
    train = parts["train"]
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in train.column_names:
            raise UserError(f"data.{option}={column}: unknown column. The columns are {', '.join(train.column_names)}.")
    class_names = _class_names(train, label_column)
    if len(class_names) < 2:
        raise UserError(f"The column {label_column} has only one class. A classifier needs two or more.")
    root = train.info.dataset_name or "the data set"
    notes = [f"the split {name} of {root} is not used" for name in loaded if name not in known]
    if "test" in parts and set(parts["test"][label_column]) <= {-1, None}:
        notes.append(f"the test split of {root} is not used, because its labels are hidden")
        del parts["test"]
    splits: dict[str, Images] = {
        name: _column_images(name, part, image_column, label_column, class_names) for name, part in parts.items()
    }
    return ImageSets(root, class_names, splits, notes=notes)


def _class_names(train: Any, column: str) -> list[str]:
    names = getattr(train.features[column], "names", None)
    return list(names) if names else [str(label) for label in sorted(set(train[column]))]


def _column_images(split: str, part: Any, image_column: str, label_column: str, class_names: list[str]) -> ColumnImages:
    from datasets import Image

    named = getattr(part.features[label_column], "names", None)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = []
    for row, value in enumerate(part[label_column]):
        text = value if value is None or not named else named[value] if 0 <= value < len(named) else None
        if str(text) not in label_of:
            raise UserError(
                f"Row {row} of the {split} split has the label {value}, which is not a class of train "
                f"({', '.join(class_names)})."
            )
        labels.append(label_of[str(text)])
    part = part.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    digits = len(str(len(part)))
    return ColumnImages(
        part, image_column, range(len(part)), [f"{split}/{i:0{digits}d}" for i in range(len(part))], labels
    )

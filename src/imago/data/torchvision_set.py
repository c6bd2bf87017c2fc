"""Small torchvision data sets that keep their images in memory, such as MNIST."""

import difflib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from filelock import FileLock
from torch import Tensor

from imago.config.targets import MEMORY_SETS
from imago.data.digests import digest_of
from imago.data.folds import divide
from imago.data.images import Images, ImageSets
from imago.data.module import ImageDataModule
from imago.data.options import DataOptions
from imago.data.transforms import ImageTransform
from imago.definitions import CalibrationRatio, Fold, Folds, TestRatio, ValRatio
from imago.errors import DownloadError, UserError


class TorchVisionDataModule(ImageDataModule):
    """Data module of a torchvision set that keeps its images in `data`: MNIST, FashionMNIST, SVHN, STL10, CIFAR10, …

    Args:
        dataset: Function of `root`, `train` and `download` that makes the data set.
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        data_dir: Folder in which the data set is, or to which it is downloaded.
        val_ratio: Stratified fraction of train that becomes the val split.
        test_ratio: None; these sets have a test split, so any fraction is an error.
        seed: Seed of the split, the order and the augmentations.
        recorded: Entry `imago` of a checkpoint whose draws of val and test are repeated, so that no image changes its
            split when the data grow.
        fold: Fold, counted from 0, that is the val split; the others are train. None has no folds.
        folds: Number of folds that are drawn from train and val, by seed and path.
        calibration_ratio: Stratified fraction of val that becomes the calibration split, which chooses no checkpoint;
            0 draws none.
        channels: 3 makes grey images colour images of three equal channels, which any network takes; None leaves images
            as they are.
        options: Those of ImageDataModule.
    """

    def __init__(
        self,
        dataset: Callable[..., Any],
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        data_dir: str = "data",
        val_ratio: ValRatio = 1 / 12,
        seed: int = 42,
        test_ratio: TestRatio = None,
        recorded: Mapping[str, Any] | None = None,
        fold: Fold = None,
        folds: Folds = None,
        calibration_ratio: CalibrationRatio = 0.0,
        channels: Literal[3] | None = None,
        **options: Unpack[DataOptions],
    ) -> None:
        train, test = (_made(dataset, Path(data_dir).expanduser(), train=train) for train in (True, False))
        splits: dict[str, Images] = {
            name: _in_memory(name, made, channels) for name, made in (("train", train), ("test", test))
        }
        digits = [str(number) for number in range(1 + max(splits["train"].labels))]
        sets = ImageSets(data_dir, list(getattr(train, "classes", digits)), splits)
        divide(sets, val_ratio, seed, test_ratio, recorded, fold, folds, calibration_ratio)
        usual: DataOptions = {"image_size": 28, "batch_size": 128, "num_workers": 0}
        super().__init__(sets, train_transform, eval_transform, seed=seed, **(usual | options))


def torchvision_dataset(name: str, root: Path, train: bool = True, download: bool = False) -> Any:
    """Make the data set of torchvision with that name, one of `MEMORY_SETS`, for training or for the test.

    Raises:
        ValueError: There is no such set.
    """
    from torchvision import datasets

    if name not in MEMORY_SETS:
        close = difflib.get_close_matches(name.upper(), [known.upper() for known in MEMORY_SETS], n=1)
        meant = next((f" Did you mean {known}?" for known in MEMORY_SETS if known.upper() in close), "")
        raise UserError(f"data.dataset.name={name} is none of {', '.join(sorted(MEMORY_SETS))}.{meant}")
    make = getattr(datasets, name)
    has_split = "split" in inspect.signature(make).parameters
    part = {"split": "train" if train else "test"} if has_split else {"train": train}
    return make(root=root, download=download, **part)


class MemoryImages(Images):
    """Images in one uint8 tensor (n, channels, height, width)."""

    are_named = False

    def __init__(self, pixels: Tensor, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.pixels = pixels
        self.channels = pixels.shape[1]
        self.paths = paths
        self.labels = labels

    def read(self, index: int) -> Tensor:
        return self.pixels[index]

    def read_many(self, indices: Sequence[int]) -> Tensor:
        return self.pixels[torch.tensor(indices)]

    def shape(self, index: int) -> tuple[int, int]:
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def digest(self, index: int) -> int | None:
        pixels = self.pixels[index].contiguous().numpy().tobytes()
        return digest_of(io.BytesIO(pixels), len(pixels))

    def select(self, indices: Sequence[int]) -> "MemoryImages":
        paths, labels = [self.paths[i] for i in indices], [self.labels[i] for i in indices]
        return MemoryImages(self.pixels[torch.tensor(indices, dtype=torch.long)], paths, labels)

    def joined(self, further: Images) -> Images:
        if not isinstance(further, MemoryImages):
            return super().joined(further)
        pixels = torch.cat([self.pixels, further.pixels])
        return MemoryImages(pixels, [*self.paths, *further.paths], [*self.labels, *further.labels])


def _made(dataset: Callable[..., Any], root: Path, train: bool) -> Any:
    root.mkdir(parents=True, exist_ok=True)
    function = getattr(getattr(dataset, "func", dataset), "__name__", "data")
    name = getattr(dataset, "keywords", {}).get("name", function)
    with FileLock(root / f".{name}.lock"):
        try:
            return dataset(root=root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            place = root / name if "MNIST" in name else root
            raise DownloadError(
                f"{name} could not be downloaded ({error}). Either\n"
                f"  put its files where torchvision expects them, in {place}, or\n"
                "  type data.data_dir=PATH to use a folder of your own, or\n"
                "  type experiment=digits (embedded handwritten digits: nothing to download)"
            ) from error


def _in_memory(split: str, dataset: Any, channels: int | None) -> MemoryImages:
    pixels = torch.as_tensor(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[1] != 3:  # the channels are last
        pixels = pixels.permute(0, 3, 1, 2)
    if channels is not None and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, channels, -1, -1)  # takes no memory
    digits = len(str(len(pixels)))
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels).tolist()
    return MemoryImages(pixels, [f"{split}/{i:0{digits}d}" for i in range(len(pixels))], labels)

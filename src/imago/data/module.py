"""The data module over a tree of image folders."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from imago.checks import NO_DATA, SPLITS
from imago.data.decode import BadImageError, read_image
from imago.data.folders import Split, Tree, class_counts, read_tree
from imago.data.loading import ImageDataset, KeyedBatchSampler, Loader
from imago.data.stages import ImageTransform
from imago.strategy import Strategy
from imago.transforms import Batch
from imago.writing import write_text

log = logging.getLogger(__name__)


class ImageFolderDataModule(LightningDataModule):
    """Images in folders named after their classes; reads the folder when it is made, and never writes to it.

    Args:
        train_transform: Box, pixels and batch stage of the images that are trained on.
        eval_transform: The same for everything that is scored, the train split included.
        data_dir: `train/ val/ test/` of class folders, or class folders; None asks `source`.
        source: Returns the folder of a set that Imago fetches or makes itself.
        image_size: Side of the square that the network sees, in pixels.
        batch_size: Images per training step of the whole run.
        num_workers: Processes that load images; None takes the cores that this process may use, at most 8.
        val_ratio: Share of train that becomes the val split where the folder has none; stratified.
        on_bad_image: `error` stops at a file that cannot be read; `skip` decodes every file once before the run and
            leaves such files out.
        seed: Of the split, the order and the augmentations.
        cache_dir: Where `skip` remembers what it found.
    """

    def __init__(
        self,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        data_dir: str | None = None,
        source: Callable[[], Path] | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int | None = None,
        val_ratio: float = 0.1,
        on_bad_image: str = "error",
        seed: int = 42,
        cache_dir: str = ".cache",
    ) -> None:
        super().__init__()
        for option, given, least in (("image_size", image_size, 1), ("batch_size", batch_size, 1)):
            if not isinstance(given, int) or given < least:
                raise ValueError(f"data.{option}={given}: give a whole number, {least} or more.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"data.num_workers={num_workers}: give 0 (load in the main process), more, or null.")
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"data.on_bad_image={on_bad_image}: give error or skip.")
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = _usable_cores() if num_workers is None else num_workers
        self.seed = seed
        self.strategy = Strategy()
        self.predicted_split = "test"
        self.shuffle = True
        self.tree = read_tree(_folder(data_dir, source), val_ratio, seed)
        self.skipped = _leave_out_bad_images(self.tree, Path(cache_dir)) if on_bad_image == "skip" else []
        self._loaders: dict[str, Loader] = {}
        self._log_tree()

    @property
    def class_names(self) -> list[str]:
        """Sorted class folders of the train split; a label is an index of this list."""
        return self.tree.class_names

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of images."""
        return {name: len(split) for name, split in self.tree.splits.items()}

    @property
    def notes(self) -> list[str]:
        """What a user should know about the folder."""
        notes = list(self.tree.notes)
        if "test" not in self.tree.splits:
            notes.append(f"no test folder in {self.tree.root}: the val split is scored as test")
        for what, paths in (("not taken (no image suffix)", self.tree.ignored), ("skipped (unreadable)", self.skipped)):
            if paths:
                notes.append(f"{len(paths)} files {what}: {_shortened(paths)}")
        return notes

    def scored_split(self, split: str) -> str:
        """The split that is scored where `split` is asked for: val where there is no test folder."""
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}: give one of {', '.join(SPLITS)}.")
        return "val" if split == "test" and "test" not in self.tree.splits else split

    def split(self, name: str) -> Split:
        """Paths and labels of a split."""
        return self.tree.splits[self.scored_split(name)]

    def train_dataloader(self) -> Loader:
        return self._loader("training", "train", self.train_transform, self.shuffle)

    def val_dataloader(self) -> Loader:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> Loader:
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> Loader:
        return self.eval_dataloader(self.predicted_split)

    def eval_dataloader(self, split: str) -> Loader:
        """The images of a split in the order of their paths, with the evaluation transform."""
        split = self.scored_split(split)
        return self._loader(split, split, self.eval_transform, False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        training = self.trainer is not None and self.trainer.training
        transform = self.train_transform if training else self.eval_transform
        batch = transform.batch(batch)
        # Lightning converts to the run's precision before this hook, when the pixels are still integers
        return self.trainer.precision_plugin.convert_input(batch) if self.trainer is not None else batch

    def teardown(self, stage: str) -> None:
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str, split: str, transform: ImageTransform, shuffle: bool) -> Loader:
        if name not in self._loaders:
            images = self.tree.splits[split]
            sampler = KeyedBatchSampler(len(images), self.batch_size, shuffle, self.seed)
            self._loaders[name] = Loader(
                ImageDataset(self.tree.root, images, transform, self.image_size, self.seed),
                self.strategy.train_batch_sampler(sampler) if name == "training" else sampler,
                self.num_workers,
                self._epoch if name == "training" else int,
            )
        return self._loaders[name]

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _log_tree(self) -> None:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        log.info("Data: %s: %d classes; %s images", self.tree.root, len(self.class_names), sizes)
        for split, images in self.tree.splits.items():
            log.debug("Class counts of %s: %s", split, class_counts(images, self.class_names))
        for note in self.notes:
            log.warning("%s", note)


def _folder(data_dir: str | None, source: Callable[[], Path] | None) -> Path:
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if source is not None:
        return source()
    raise ValueError(NO_DATA)


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _leave_out_bad_images(tree: Tree, cache_dir: Path) -> list[str]:
    """Takes the unreadable images out of `tree`; returns what was wrong with each."""
    reasons: dict[str, str] = {}
    for name, split in tree.splits.items():
        log.info("data.on_bad_image=skip: looking for unreadable images among the %d of %s", len(split), name)
        reasons |= _bad_images(tree.root, split.paths, cache_dir)
    for name, split in tree.splits.items():
        kept = split.select([i for i, path in enumerate(split.paths) if path not in reasons])
        empty = [c for c, n in class_counts(kept, tree.class_names).items() if not n and name == "train"]
        if empty or not len(kept):
            of = f" of {', '.join(empty)}" if empty else ""
            raise ValueError(f"No readable image{of} is left in the {name} split of {tree.root}.")
        tree.splits[name] = kept
    return sorted(reasons.values())


def _bad_images(root: Path, paths: list[str], cache_dir: Path) -> dict[str, str]:
    """Path -> what is wrong with it; remembered until a name, size or time of the split's files changes."""
    stamp = hashlib.sha256(str(root.resolve()).encode())
    for path in paths:
        size_and_time = _size_and_time(root / path)
        stamp.update(f"{path}\0{size_and_time}\n".encode())
    memory = cache_dir / "bad_images" / f"{stamp.hexdigest()[:32]}.json"
    if memory.is_file():
        return json.loads(memory.read_text())
    with ThreadPoolExecutor(_usable_cores()) as pool:
        reasons = pool.map(lambda path: _reason(root / path), paths)
    found = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}
    write_text(memory, json.dumps(found))
    return found


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere
        return None
    return stat.st_size, stat.st_mtime_ns


def _reason(path: Path) -> str | None:
    try:
        read_image(path)
    except BadImageError as error:
        return str(error)
    return None


def _shortened(items: Iterable[Any], most: int = 5) -> str:
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")

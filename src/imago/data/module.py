"""From image sets of any kind to batches."""

import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import LightningDataModule, Trainer

from imago.checks import SPLITS
from imago.data.decode import BadImageError
from imago.data.images import Images, ImageSets, class_counts
from imago.data.loading import EvalBatchSampler, ImageDataset, Loader, TrainBatchSampler
from imago.data.stages import ImageTransform
from imago.strategy import Strategy
from imago.transforms import Batch
from imago.writing import write_text

log = logging.getLogger(__name__)


class ImageDataModule(LightningDataModule):
    """Batches of any kind of image sets; what the kinds have in common.

    Args:
        sets: The splits.
        train_transform: Box, pixels and batch stage of the images that are trained on.
        eval_transform: The same for everything that is scored, the train split included.
        image_size: Side of the square that the network sees, in pixels.
        batch_size: Images per training step of the whole run.
        num_workers: Processes that load images; None takes the cores that this process may use, at most 8.
        on_bad_image: `error` stops at an image that cannot be read; `skip` decodes every one once before the run and
            leaves such images out.
        seed: Of the order and the augmentations.
        cache_dir: Where `skip` remembers what it found.
    """

    def __init__(
        self,
        sets: ImageSets,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        image_size: int,
        batch_size: int,
        num_workers: int | None,
        on_bad_image: str,
        seed: int,
        cache_dir: str,
    ) -> None:
        super().__init__()
        for option, given in (("image_size", image_size), ("batch_size", batch_size)):
            if not isinstance(given, int) or given < 1:
                raise ValueError(f"data.{option}={given}: give a whole number, 1 or more.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"data.num_workers={num_workers}: give 0 (load in the main process), more, or null.")
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"data.on_bad_image={on_bad_image}: give error or skip.")
        self.sets = sets
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.strategy = Strategy()
        self.rank, self.processes = 0, 1
        self.predicted_split = "test"
        self.same_order = False
        self.skipped = _leave_out_bad_images(sets, Path(cache_dir)) if on_bad_image == "skip" else []
        self._loaders: dict[str, Loader] = {}
        self._log_sets()

    @property
    def class_names(self) -> list[str]:
        """Of the train split; a label is an index of this list."""
        return self.sets.class_names

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of images."""
        return {name: len(split) for name, split in self.sets.splits.items()}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint and a report say of the data; plain types."""
        counts = {name: class_counts(images, self.class_names) for name, images in self.sets.splits.items()}
        return {"root": str(self.sets.root), "fingerprint": self.sets.fingerprint(), "counts": counts}

    @property
    def notes(self) -> list[str]:
        """What a user should know about the data."""
        notes = list(self.sets.notes)
        if "test" not in self.sets.splits:
            notes.append(f"no test split in {self.sets.root}: the val split is scored as test")
        for what, paths in (("not taken (no image suffix)", self.sets.ignored), ("skipped (unreadable)", self.skipped)):
            if paths:
                notes.append(f"{len(paths)} files {what}: {_shortened(paths)}")
        return notes

    def scored_split(self, split: str) -> str:
        """The split that is scored where `split` is asked for: val where there is no test split."""
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}: give one of {', '.join(SPLITS)}.")
        return "val" if split == "test" and "test" not in self.sets.splits else split

    def split(self, name: str) -> Images:
        """Paths and labels of a split."""
        return self.sets.splits[self.scored_split(name)]

    def train_dataloader(self) -> Loader:
        images = len(self.sets.splits["train"])
        sampler = TrainBatchSampler(images, self.batch_size, self.seed, self.same_order, self.rank, self.processes)
        return self._loader("training", "train", self.train_transform, self.strategy.train_batch_sampler(sampler))

    def val_dataloader(self) -> Loader:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> Loader:
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> Loader:
        return self.eval_dataloader(self.predicted_split)

    def eval_dataloader(self, split: str) -> Loader:
        """The images of a split in the order of their paths, with the evaluation transform."""
        split = self.scored_split(split)
        sampler = EvalBatchSampler(len(self.sets.splits[split]), self.batch_size, self.rank, self.processes)
        return self._loader(split, split, self.eval_transform, sampler)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        training = self.trainer is not None and self.trainer.training
        return to_network(batch, self.train_transform if training else self.eval_transform, self.trainer)

    def teardown(self, stage: str) -> None:
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str, split: str, transform: ImageTransform, sampler: Any) -> Loader:
        if name not in self._loaders:
            images = self.sets.splits[split]
            self._loaders[name] = Loader(
                ImageDataset(images, transform, self.image_size, self.seed),
                sampler,
                workers(self.num_workers, self.processes),
                self._epoch if name == "training" else int,
            )
        return self._loaders[name]

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _log_sets(self) -> None:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        log.info("Data: %s: %d classes; %s images", self.sets.root, len(self.class_names), sizes)
        for split, images in self.sets.splits.items():
            log.debug("Class counts of %s: %s", split, class_counts(images, self.class_names))
        for note in self.notes:
            log.warning("%s", note)


def to_network(batch: Batch, transform: ImageTransform, trainer: Trainer | None) -> Batch:
    """The batch stage, and the precision of the run: Lightning converts before its hook for this, when the pixels are
    still integers."""
    batch = transform.batch(batch)
    return trainer.precision_plugin.convert_input(batch) if trainer is not None else batch


def workers(num_workers: int | None, processes: int) -> int:
    """Loader workers for one of `processes`; None shares the cores out."""
    return max(1, _usable_cores() // processes) if num_workers is None else num_workers


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _leave_out_bad_images(sets: ImageSets, cache_dir: Path) -> list[str]:
    """Takes the unreadable images out of `sets`; returns what was wrong with each."""
    found: list[str] = []
    for name, images in sets.splits.items():
        log.info("data.on_bad_image=skip: looking for unreadable images among the %d of %s", len(images), name)
        reasons = _bad_images(images, cache_dir)
        found += reasons.values()
        kept = images.select([i for i, path in enumerate(images.paths) if path not in reasons])
        empty = [c for c, n in class_counts(kept, sets.class_names).items() if not n and name == "train"]
        if empty or not len(kept):
            of = f" of {', '.join(empty)}" if empty else ""
            raise ValueError(f"No readable image{of} is left in the {name} split of {sets.root}.")
        sets.splits[name] = kept
    return sorted(found)


def _bad_images(images: Images, cache_dir: Path) -> dict[str, str]:
    """Path -> what is wrong with it; remembered until the images change."""
    memory = cache_dir / "bad_images" / f"{images.stamp(times=True)[:32]}.json"
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):  # one of several processes looks, the others read what it found
        if memory.is_file():
            return json.loads(memory.read_text())
        with ThreadPoolExecutor(_usable_cores()) as pool:
            reasons = pool.map(lambda index: _reason(images, index), range(len(images)))
        found = {path: reason for path, reason in zip(images.paths, reasons, strict=True) if reason is not None}
        write_text(memory, json.dumps(found))
        return found


def _reason(images: Images, index: int) -> str | None:
    try:
        images.read(index)
    except BadImageError as error:
        return str(error)
    return None


def _shortened(items: Iterable[Any], most: int = 5) -> str:
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")

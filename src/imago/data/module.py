"""From image sets of any kind to batches."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from imago.checks import SPLITS
from imago.data.cache import GIGABYTE, Cache, CachedImages
from imago.data.colour import Decoding
from imago.data.decode import BadImageError
from imago.data.folders import FolderImages
from imago.data.images import Images, ImageSets, class_counts, digests_of, most_frequent, shortened, train_counts
from imago.data.loading import (
    EvalBatchSampler,
    ImageDataset,
    Loader,
    TrainBatchSampler,
    bad_image,
    collate,
    workers,
)
from imago.data.stages import FILL, CenterBox, FittedBox, ImageTransform, Size, WholeBox
from imago.data.survey import MOST_NAMED, check_headers, chosen_range, leave_out_bad_images, notes_on_pixels
from imago.randomness import key
from imago.strategy import Strategy
from imago.terminal import CONTROL
from imago.transforms import Batch

log = logging.getLogger(__name__)

CACHES = ("none", "ram", "disk", "auto")


class CopyingDataModule(LightningDataModule):
    """Copies batches to a GPU on a stream of their own, while the step before is computed."""

    _copies: torch.cuda.Stream | None = None

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copies = self._copies or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(self._copies)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(steps)  # its memory is taken for another copy once the step is through
        return batch


class ImageDataModule(CopyingDataModule):
    """Batches of any kind of image sets; what the kinds have in common.

    Args:
        sets: The splits.
        train_transform: Box, pixels and batch stage of the images that are trained on.
        eval_transform: The same for everything that is scored, the train split included.
        image_size: What the network sees, in pixels: the side of a square, or [height, width].
        batch_size: Images per training step of the whole run.
        num_workers: Processes that load images; None takes the cores that this process may use, at most 8.
        on_bad_image: `error` stops at an image that cannot be read, most of them at the start; `skip` decodes every one
            once before the run and leaves such images out.
        seed: Of the order and the augmentations.
        cache_dir: Where `skip` remembers what it found, and `disk` keeps pixels.
        cache: Where decoded images are kept, `ram` or `disk`, for the epochs to come; `auto` chooses where they fit and
            a run has three epochs or more. The results are those of `none`.
        cache_gb: Gigabytes that the decoded images of a split may take; None takes a quarter of what is free.
        fit: How an image of another shape gets there: `crop` cuts its ends off, `squash` changes its aspect ratio,
            `pad` adds margins of the colour `fill`.
        fill: Red, green and blue, from 0 to 255.
        transform: A transform of dictionaries for the batches of all splits, after the batch stage of their own.
        pin_memory: Load into memory that a GPU copies from faster; None does it where there is one.
        prefetch_factor: Batches that each worker has ready; None takes torch's 2.
        persistent_workers: Keep the workers from epoch to epoch.
        range: The value that is white in images of 16 bits; `auto` looks at the train images (1023, 4095, …).
        icc: Convert colours to sRGB by the profiles in the files.
    """

    def __init__(
        self,
        sets: ImageSets,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        image_size: Size,
        batch_size: int,
        num_workers: int | None,
        on_bad_image: str,
        seed: int,
        cache_dir: str,
        cache: str = "none",
        cache_gb: float | None = None,
        fit: str = "crop",
        fill: Sequence[int] = FILL,
        transform: Callable[[Batch], Batch] | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        range: Literal["auto"] | int = "auto",
        icc: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: give a whole number, 1 or more.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"data.num_workers={num_workers}: give 0 (load in the main process), more, or null.")
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"data.on_bad_image={on_bad_image}: give error or skip.")
        if cache not in CACHES:
            raise ValueError(f"data.cache={cache}: give one of {', '.join(CACHES)}.")
        if odd := next((name for name in sets.class_names if CONTROL.search(name) or not name.strip()), None):
            raise ValueError(
                f"The class name {odd!r} ({sets.root}) has control characters, which could steer a terminal: rename it."
            )
        self.sets = sets
        self.train_transform = train_transform.completed(image_size, fit, fill, transform)
        self.eval_transform = eval_transform.completed(image_size, fit, fill, transform)
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.strategy = Strategy()
        self.rank, self.processes = 0, 1
        self.predicted_split = "test"
        self.same_order = False
        self._emptied: dict[str, str] = {}  # split -> why it has no images
        self._trained_counts: list[int] = []
        self.skipped: list[str] = []
        self.damaged: dict[str, str] = {}
        """JPEGs that were decoded and are damaged inside, with what is wrong."""
        self.range = chosen_range(sets, Path(cache_dir)) if range == "auto" else range
        for images in sets.splits.values():
            images.decoding = Decoding(self.range, icc)
        sets.notes += notes_on_pixels(sets, range, self.range, icc, self.eval_transform)
        if on_bad_image == "skip":
            self.skipped = leave_out_bad_images(sets, Path(cache_dir))
        else:
            check_headers(sets, Path(cache_dir))
        self.cache = cache
        self.cache_gb = cache_gb
        self.loading: dict[str, Any] = {
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
        }
        self.cache_dir = Path(cache_dir)
        self._decoded: dict[str, Images] = {}
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
        facts = {"root": str(self.sets.root), "fingerprint": self.sets.fingerprint(), "counts": counts}
        return facts | ({"as_read": self.sets.as_read} if self.sets.as_read else {})

    @property
    def notes(self) -> list[str]:
        """What a user should know about the data."""
        notes = list(self.sets.notes)
        if "val" in self.sets.splits and not {"test"} & {*self.sets.splits, *self._emptied}:
            notes.append(f"no test split in {self.sets.root}: the val split is scored as test")
        for split in self.sets.splits if "train" in self.sets.splits else ():
            counts = class_counts(self.sets.splits[split], self.class_names)
            if absent := [name for name, count in counts.items() if not count]:
                notes.append(f"{split} lacks {len(absent)} of the {len(counts)} classes: {shortened(absent)}")
        for what, paths in (
            ("not taken (no image suffix, or hidden)", self.sets.ignored),
            ("skipped (unreadable)", self.skipped),
            ("left out (data.exclude)", self.sets.excluded),
            ("damaged inside, with wrong pixels from some place on (ml-doctor names them)", list(self.damaged)),
        ):
            if paths:
                notes.append(f"{len(paths)} files {what}: {shortened(paths)}")
        return notes

    @property
    def majority(self) -> list[int]:
        """The labels of the most frequent class of train; several where they are equally frequent."""
        if "train" not in self.sets.splits:
            return most_frequent(self._trained_counts)
        return most_frequent(list(class_counts(self.sets.splits["train"], self.class_names).values()))

    def scored_split(self, split: str) -> str:
        """The split that is scored where `split` is asked for: val where there is no test split.

        Raises:
            ValueError: There is none.
        """
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}: give one of {', '.join(SPLITS)}.")
        if split in self._emptied:
            raise ValueError(self._emptied[split])
        scored = "val" if split == "test" and "test" not in self.sets.splits else split
        if scored not in self.sets.splits:
            there = ", ".join(self.sets.splits)
            raise ValueError(f"{self.sets.root} has no {split} split: type split=, of {there}.")
        return scored

    def leave_out_trained(self, trained: Mapping[str, Any]) -> None:
        """Takes out of val and test what a checkpoint was trained on, by content, if these data are not those of its
        run; `trained` is its entry `imago`."""
        self._trained_counts = train_counts(trained, self.class_names)
        same, known = trained["data"]["fingerprint"] == self.facts["fingerprint"], trained.get("train_images")
        if known is None or not len(known):
            if not same:
                log.warning("These data are not those of the checkpoint, which does not say what it was trained on")
            return
        seen = set(known.tolist())
        if same and "train" in self.sets.splits and seen.issuperset(self.train_digests.tolist()):
            return  # what they have in common has been said in training
        for split in ("val", "test"):
            images = self.sets.splits.get(split)
            if images is None:
                continue
            paths = {path for path, each in zip(images.paths, digests_of(images), strict=True) if each in seen}
            if not paths:
                continue
            what = f"{len(paths)} of the {len(images)} images of {split} are images that the checkpoint was trained on"
            if len(paths) == len(images):
                del self.sets.splits[split]
                self._emptied[split] = f"{what}: nothing is left to score."
            else:
                self.sets.leave_out(split, paths)
            self.say(f"{what}: they are left out: {shortened(sorted(paths))}")
        if not self.sets.splits:
            raise ValueError("\n".join(self._emptied.values()))
        self.__dict__.pop("facts", None)

    @cached_property
    def train_digests(self) -> Tensor:
        """Of the train images, int64, sorted: what `leave_out_trained` knows them by."""
        known = sorted(each for each in digests_of(self.sets.splits["train"]) if each is not None)
        return torch.tensor(known, dtype=torch.int64)

    def say_what_is_shared(self) -> None:
        """Notes images of val and test whose content is that of a train image: scores on them are too good."""
        seen = set(self.train_digests.tolist())
        for split in ("val", "test"):
            if (images := self.sets.splits.get(split)) is None:
                continue
            paths = [path for path, each in zip(images.paths, digests_of(images), strict=True) if each in seen]
            if paths:
                what = f"{len(paths)} of the {len(images)} images of {split} are in train, too"
                self.say(f"{what}, so that its scores are too good: {shortened(paths)}")

    def say(self, note: str) -> None:
        """Adds a note, and logs it."""
        self.sets.notes.append(note)
        log.warning("%s", note)

    def split(self, name: str) -> Images:
        """Paths and labels of a split."""
        return self.sets.splits[self.scored_split(name)]

    def train_dataloader(self) -> Loader:
        images = self.sets.splits["train"]
        sampler = TrainBatchSampler(images, self.batch_size, self.seed, self.same_order, self.rank, self.processes)
        return self._loader("training", "train", self.train_transform, self.strategy.train_batch_sampler(sampler))

    def some_images(self, split: str, count: int, device: torch.device) -> Batch:
        """The first `count` images of a split as the network gets them in training, or in validation."""
        training = split == "train"
        transform = self.train_transform if training else self.eval_transform
        dataset = ImageDataset(self.sets.splits[split], transform, self.image_size, self.seed)
        samples = [dataset[0, index] for index in range(min(count, len(dataset)))]
        bad = next((sample["error"] for sample in samples if "error" in sample), None)
        if bad is not None:
            raise bad_image(bad)
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collate(samples).items()}
        return to_network(batch, transform.batch, self.trainer)

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
        if self.trainer is None or not self.trainer.training:
            return to_network(batch, self.eval_transform.batch, self.trainer)
        if self.train_transform.batch_draws:
            self.strategy.seed_draws("batch", self.seed, self.rank, *self._position())
        return to_network(batch, partial(self.strategy.batch_stage, stage=self.train_transform.batch), self.trainer)

    def teardown(self, stage: str) -> None:
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str, split: str, transform: ImageTransform, sampler: Any) -> Loader:
        """A new one each time: Lightning asks again where something has changed."""
        if name in self._loaders:
            self._loaders[name].close()
        self._loaders[name] = Loader(
            self._dataset(name, self.sets.splits[split], transform),
            sampler,
            workers(self.num_workers, self.processes),
            self._position if name == "training" else lambda: (0, 0),
            partial(self._from_cache, name, split),
            self._note_damage,
            **self.loading,
        )
        return self._loaders[name]

    def _note_damage(self, found: dict[str, str]) -> None:
        for path, what in found.items():
            if path not in self.damaged and len(self.damaged) < MOST_NAMED:
                log.warning("%s is damaged inside: %s", path, what)
            self.damaged[path] = what

    def _dataset(self, name: str, images: Images, transform: ImageTransform) -> ImageDataset:
        draw_key = self.strategy.draw_key if name == "training" else key
        return ImageDataset(images, transform, self.image_size, self.seed, draw_key=draw_key)

    def _from_cache(self, name: str, split: str, dataset: ImageDataset, num_workers: int) -> tuple[ImageDataset, int]:
        """The dataset over decoded images, where they are cached; a slice of memory needs no workers."""
        images, transform = dataset.images, dataset.transform
        if self.cache != "none" and images.read_many([0]) is None:  # else they are in memory
            images, transform = self._keep(split, images, transform)
        dataset = self._dataset(name, images, transform)
        return dataset, 0 if self.num_workers is None and dataset.is_sliced else num_workers

    def _keep(self, split: str, images: Images, transform: ImageTransform) -> tuple[Images, ImageTransform]:
        budget = round(self.cache_gb * GIGABYTE) if self.cache_gb is not None else None
        cache = Cache(self.cache, self.cache_dir, budget, self.processes)
        size, box, root, build = self.image_size, transform.box, self.sets.root, self._is_read_often()
        if not build and self.cache != "disk":
            return self._decoded.get(split, images), transform
        try:
            middle = box.box if isinstance(box, FittedBox) else box
            if type(middle) is CenterBox and not transform.pixels:  # what the network sees is always the same
                fit = f", {box.fit} {box.fill}" if isinstance(box, FittedBox) else ""
                key = f"{root}\n{split}, {middle.share} of {size} pixels, {images.decode}, {images.decoding}{fit}"
                seen = self._decoded.get(key, images)
                if seen is images:
                    seen = self._decoded[key] = cache.keep(
                        images,
                        f"{split}, resized",
                        key,
                        lambda index: transform.resized(images.read_box(index, box, size), size),
                        build,
                    )
                return seen, transform if seen is images else transform.with_box(WholeBox())
            if images.decode == "exact" and self._decoded.get(split, images) is images:  # else it depends on the box
                self._decoded[split] = cache.keep(
                    images, split, f"{root}\nwhole, {images.decoding}", images.read, build
                )
            return self._decoded.get(split, images), transform
        except BadImageError as error:
            raise bad_image(str(error)) from None

    def how_to_load_faster(self) -> str:
        """What to type, as far as it is not done yet."""
        cores, used = workers(None, self.processes), workers(self.num_workers, self.processes)
        images = self.sets.splits["train"]
        advice = [f"data.num_workers={cores} (now {used})"] if used < cores else []
        if not isinstance(self._loaders["training"].loaded, CachedImages):
            if self.cache == "none":
                advice.append("data.cache=auto")
            elif images.decode == "exact":
                advice.append("data.cache=disk with a larger data.cache_gb (the decoded images were not kept)")
            if isinstance(images, FolderImages) and images.decode == "exact":
                advice.append("data.decode=fast (large JPEGs)")
        if not advice:
            return f"The loader uses all {used} cores, and decodes no more than it has to."
        return f"To load faster, type {', or '.join(advice)}."

    def _is_read_often(self) -> bool:
        trainer: Any = self.trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:
            return False
        if self.cache == "disk":
            return True
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        if self.cache == "ram":
            return epochs > 1
        return epochs > 2 and not trainer.overfit_batches and trainer.limit_train_batches == 1.0

    def _position(self) -> tuple[int, int]:
        """The epoch, and the number in it of the train batch that comes next."""
        if self.trainer is None:
            return 0, 0
        loop: Any = self.trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready

    def _log_sets(self) -> None:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        log.info("Data: %s: %d classes; %s images", self.sets.root, len(self.class_names), sizes)
        for split, images in self.sets.splits.items():
            log.debug("Class counts of %s: %s", split, class_counts(images, self.class_names))
        for note in self.notes:
            log.warning("%s", note)


def to_network(batch: Batch, stage: Callable[[Batch], Batch], trainer: Trainer | None) -> Batch:
    """The batch stage, and the precision of the run: Lightning converts before its hook for this, when the pixels are
    still integers."""
    batch = stage(batch)
    return trainer.precision_plugin.convert_input(batch) if trainer is not None else batch

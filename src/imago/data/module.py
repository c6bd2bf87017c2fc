"""The base data module: from image sets of any kind to batches."""

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imago.config.launcher import processes_here
from imago.data.cache import CachedImages
from imago.data.colour import Decoding
from imago.data.contract import check_box, check_pixels, check_same_images, check_sets, failed_step
from imago.data.crops import FILL, Size
from imago.data.dataset import ImageDataset, collate
from imago.data.decode import BadImageError
from imago.data.decoded import DecodedImages
from imago.data.folder_images import FolderImages
from imago.data.images import Images, ImageSets
from imago.data.loader import Loader
from imago.data.mixing import MixUp
from imago.data.relabel import relabel as correct_labels
from imago.data.samplers import EvalBatchSampler, Placement, TrainBatchSampler
from imago.data.sampling import WEIGHTS, draw_weights
from imago.data.scored_splits import ScoredSplits
from imago.data.survey import MOST_NAMED, check_headers, chosen_range, leave_out_bad_images, notes_on_pixels
from imago.data.transfer import to_network
from imago.data.transforms import ImageTransform
from imago.definitions import INTERPOLATIONS, STEP_WEIGHT, Batch, Interpolation
from imago.errors import UserError
from imago.lightning_internals import position
from imago.model.strategy import Strategy
from imago.randomness import derive_seed
from imago.resources import workers

log = logging.getLogger(__name__)

BATCH_SIZE = 32
CACHES = ("none", "ram", "disk", "auto")


class ImageDataModule(ScoredSplits):
    """Base class of data modules for image sets of any kind.

    Args:
        sets: The splits.
        train_transform: Crop, pixel and batch stages of the training images.
        eval_transform: Crop, pixel and batch stages of all scored images, the train split included.
        image_size: Input size of the network in pixels: the side of a square, or [height, width].
        batch_size: Images per training step of the whole run; in a training also `auto`: the most that fit.
        num_workers: Processes that load images; None divides the cores among the run's processes, at most 8 for each.
        on_bad_image: `error` stops at an unreadable image, most of them at the start; `skip` decodes all images
            once before the run and leaves unreadable ones out.
        seed: Seed of the order and the augmentations.
        cache_dir: Folder in which `skip` stores its results, and `disk` pixels.
        cache: Where decoded images are cached for later epochs, `ram` or `disk`; `auto` chooses if they fit and a run
            has three epochs or more. Results are those of `none`.
        cache_gb: Gigabytes for the decoded images of a split; None allows a quarter of the free space.
        fit: How an image of another shape is fitted: `crop` crops its ends, `squash` changes its aspect ratio, `pad`
            adds margins of the colour `fill`.
        fill: Red, green and blue, from 0 to 255.
        interpolation: How images are resized: `bilinear`, or the slower and sharper `bicubic`, which some pretrained
            weights expect.
        transform: Transform of batch dictionaries for all splits, after their own batch stage.
        pin_memory: Load into pinned memory, from which a GPU copies faster; None does so if there is a GPU.
        prefetch_factor: Batches that each worker loads ahead; None takes torch's 2.
        persistent_workers: Keep the workers between epochs.
        relabel: CSV with the columns `path` and `label` (a class name) that corrects labels; splits do not change.
        range: Value that is white in 16-bit images; `auto` derives it from the train images (1023, 4095, …).
        icc: Convert colours to sRGB by the profiles in the files.
        sampler: How often train images are drawn in an epoch, which has as many as train: `balanced` draws each class
            equally often, `sqrt` by the square root of its frequency, `weights` by weights. None draws each once.
        sample_weights: Class name -> weight of each of its images in `sampler=weights`, 1 by default.
    """

    def __init__(
        self,
        sets: ImageSets,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        image_size: Size = 224,
        batch_size: int | Literal["auto"] = BATCH_SIZE,
        num_workers: int | None = None,
        on_bad_image: str = "error",
        seed: int = 42,
        cache_dir: str = ".cache",
        cache: str = "auto",
        cache_gb: float | None = None,
        fit: str = "crop",
        fill: Sequence[int] = FILL,
        interpolation: Interpolation = INTERPOLATIONS[0],
        transform: Callable[[Batch], Batch] | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        range: Literal["auto"] | int = "auto",
        icc: bool = True,
        relabel: str | None = None,
        sampler: Literal["balanced", "sqrt", "weights"] | None = None,
        sample_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(sets)
        check_sets(sets)
        if batch_size == "auto":
            batch_size = BATCH_SIZE  # until a training has found its own
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"data.batch_size must be auto or a whole number (1 or more), got {batch_size}.")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers must be 0 (load in the main process), more, or null; got {num_workers}.")
        if on_bad_image not in ("error", "skip"):
            raise UserError(f"data.on_bad_image must be error or skip, got {on_bad_image}.")
        if cache not in CACHES:
            raise UserError(f"data.cache must be one of {', '.join(CACHES)}, got {cache}.")
        if relabel is not None:
            correct_labels(sets, Path(relabel).expanduser())
        self.train_transform = train_transform.completed(image_size, fit, fill, transform, interpolation)
        self.eval_transform = eval_transform.completed(image_size, fit, fill, transform, interpolation)
        for stages in (self.train_transform, self.eval_transform):
            stages.tell_classes(len(sets.class_names))
        if any(isinstance(step, MixUp) for step in self.train_transform.batch.steps.values()):
            sets.notes.append("train metrics count the label with the larger share of each mixed image (MixUp, CutMix)")
        self.image_size = image_size
        self.batch_size: int = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.strategy = Strategy()
        self.placement = Placement()
        self.predict_split = "test"
        """The split that `predict_dataloader` loads."""
        self.fixed_order = False
        self.range = chosen_range(sets, Path(cache_dir)) if range == "auto" else range
        for images in sets.splits.values():
            images.decoding = Decoding(self.range, icc, interpolation)
        sets.notes += notes_on_pixels(sets, range, self.range, icc, self.eval_transform)
        if on_bad_image == "skip":
            self.skipped = leave_out_bad_images(sets, Path(cache_dir))
        else:
            check_headers(sets, Path(cache_dir))
        self.sampler = sampler
        self.draw_weights = draw_weights(sets, sampler, sample_weights)
        self.cache = cache
        self.loading: dict[str, Any] = {
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
        }
        self._decoded = DecodedImages(cache, Path(cache_dir), cache_gb)
        self._loaders: dict[str, Loader] = {}
        self._train_batches: TrainBatchSampler | None = None
        self.log_sets()

    def setup(self, stage: str) -> None:
        """Check that all processes of the run have the same images; all call this together."""
        check_same_images(self.facts["counts"], str(self.sets.root))

    def bind(self, placement: Placement, strategy: Strategy, fixed_order: bool = False) -> None:
        """Bind the data to a run: the placement of this process, the training strategy, and whether every epoch repeats
        the order of the first."""
        self.placement, self.strategy, self.fixed_order = placement, strategy, fixed_order

    def train_dataloader(self) -> Loader:
        images = self.sets.splits["train"]
        sampler = TrainBatchSampler(
            images, self.batch_size, self.seed, self.fixed_order, *self.placement, weights=self.draw_weights
        )
        self._train_batches = sampler
        return self._loader("training", "train", self.train_transform, self.strategy.train_batch_sampler(sampler))

    def sampler_settings(self) -> dict[str, Any]:
        """Return the settings that decide how often images are drawn, by the names that users type."""
        settings: dict[str, Any] = {"data.sampler": self.sampler}
        if self.sampler == "weights" and self.draw_weights is not None:
            settings[WEIGHTS] = zlib.crc32(self.draw_weights.numpy().tobytes())
        return settings

    def some_images(self, split: str, count: int, device: torch.device) -> Batch:
        """Return the first `count` images of a split as the network gets them in training or validation: `image`
        (count, channels, height, width), `label` and `index` int64 (count,)."""
        training = split == "train"
        transform = self.train_transform if training else self.eval_transform
        dataset = ImageDataset(self.sets.splits[split], transform, self.image_size, self.seed)
        key = f"data.{'train' if training else 'eval'}_transform"
        check_box(f"{key}.box", transform.box)
        with failed_step(key, "pixels", "batch"):
            samples = [dataset[0, index] for index in range(min(count, len(dataset)))]
        dataset.images.release()
        bad = next((sample["error"] for sample in samples if "error" in sample), None)
        if bad is not None:
            raise BadImageError(bad)
        for sample in samples[:1]:
            check_pixels(f"{key}.pixels", sample["image"], dataset.images.channels)
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collate(samples).items()}
        with failed_step(key, "batch", "pixels"):
            return to_network(batch, transform.batch, self.trainer)

    def val_dataloader(self) -> Loader:
        return self.eval_dataloader("val", most=self._limit("val"))

    def test_dataloader(self) -> Loader:
        return self.eval_dataloader("test", most=self._limit("test"))

    def predict_dataloader(self) -> Loader:
        return self.eval_dataloader(self.predict_split, most=self._limit("predict"))

    def eval_dataloader(self, split: str, cached: bool = True, most: int | None = None) -> Loader:
        """Return a loader of a split, or of its first `most` batches, in the order of its paths, with the evaluation
        transform. One that is not `cached` is for a single pass: it keeps no decoded images."""
        split = self.scored_split(split)
        sampler = EvalBatchSampler(len(self.sets.splits[split]), self.batch_size, *self.placement, most)
        return self._loader(split, split, self.eval_transform, sampler, cached)

    def _limit(self, stage: str) -> int | None:
        """Return the number of batches that the run takes of a split, where the Trainer limits it; Lightning would take
        that number of each process."""
        limit = getattr(self.trainer, f"limit_{stage}_batches", None)
        return limit if isinstance(limit, int) else None

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer is None or not self.trainer.training:
            return to_network(batch, self.eval_transform.batch, self.trainer)
        epoch, number = self._position()
        if self.train_transform.batch_draws:
            self.strategy.seed_draws("batch", self.seed, self.placement.rank, epoch, number)
        stage = partial(self.strategy.batch_stage, stage=self.train_transform.batch)
        batch = to_network(batch, stage, self.trainer)
        if self.placement.processes == 1 or self._train_batches is None:
            return batch
        weight = self._train_batches.weight(number)
        return batch if weight == 1 else batch | {STEP_WEIGHT: weight}

    def teardown(self, stage: str) -> None:
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str, split: str, transform: ImageTransform, sampler: Any, cached: bool = True) -> Loader:
        """Make a new loader each time: Lightning asks again when something has changed."""
        if name in self._loaders:
            self._loaders[name].close()
        self._loaders[name] = Loader(
            self._dataset(name, self.sets.splits[split], transform),
            sampler,
            workers(self.num_workers, processes_here(self.placement.processes)),
            self._position if name == "training" else lambda: (0, 0),
            partial(self._from_cache, name, split, cached),
            self._note_damage,
            **self.loading,
        )
        return self._loaders[name]

    def _note_damage(self, damaged: dict[str, str]) -> None:
        for path, what in damaged.items():
            if path not in self.damaged and len(self.damaged) < MOST_NAMED:
                log.warning("%s is damaged inside: %s", path, what)
            self.damaged[path] = what

    def _dataset(self, name: str, images: Images, transform: ImageTransform) -> ImageDataset:
        draw_key = self.strategy.draw_key if name == "training" else derive_seed
        return ImageDataset(images, transform, self.image_size, self.seed, draw_key=draw_key)

    def _from_cache(
        self, name: str, split: str, cached: bool, dataset: ImageDataset, num_workers: int
    ) -> tuple[ImageDataset, int]:
        """Return the dataset over decoded images, if they are cached; slices of memory need no workers."""
        images, transform = dataset.images, dataset.transform
        if cached and self.cache != "none" and images.read_many([0]) is None:  # else they are in memory already
            images, transform = self._decoded.keep(self, split, images, transform)
        dataset = self._dataset(name, images, transform)
        return dataset, 0 if self.num_workers is None and dataset.is_sliced else num_workers

    def loading_advice(self) -> str:
        """Say what to type to load faster, as far as it is not in use yet."""
        here = processes_here(self.placement.processes)
        cores, used = workers(None, here), workers(self.num_workers, here)
        images = self.sets.splits["train"]
        advice = [f"data.num_workers={cores} (now {used})"] if used < cores else []
        is_cached = isinstance(self._loaders["training"].loaded, CachedImages)
        if not is_cached:
            if self.cache == "none" and self._decoded.helps(self.trainer):
                advice.append("data.cache=auto")
            elif "train" in self._decoded.too_large:
                kind = "disk" if self.strategy.shows_train_images else "ram"  # which leaves no private image behind
                advice.append(f"data.cache={kind} with a larger data.cache_gb (the decoded images were not kept)")
            has_jpegs = any(path.lower().endswith((".jpg", ".jpeg")) for path in images.paths[:MOST_NAMED])
            if isinstance(images, FolderImages) and images.decode == "exact" and has_jpegs:
                advice.append("data.decode=fast (large JPEGs)")
        if not advice:
            decodes = ", and decodes no more than it has to" if is_cached else ""
            return f"The loader uses all {used} cores{decodes}."
        return f"To load faster, type {', or '.join(advice)}."

    def _position(self) -> tuple[int, int]:
        """Return the epoch, and the number of the next train batch in it."""
        if self.trainer is None:
            return 0, 0
        return position(self.trainer)

"""What one or several networks say of images, over one or several views of each."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray

from imago.classifier import Classifier
from imago.data.images import Images
from imago.data.loading import EvalBatchSampler, ImageDataset, Loader, workers
from imago.data.module import CopyingDataModule, to_network
from imago.data.sources import UNKNOWN
from imago.data.stages import ImageTransform, Size
from imago.data.views import views
from imago.scoring import Collector
from imago.transforms import Batch

log = logging.getLogger(__name__)


@dataclass
class Predictions:
    """One entry per image: `labels` is UNKNOWN where there is none, `bad` empty where the image could be read."""

    class_names: list[str]
    paths: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    bad: list[str]

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """Which images could be read."""
        return np.array([not reason for reason in self.bad])

    @property
    def accuracy(self) -> float | None:
        """Of the images that have a label and could be read; None without any."""
        labelled = self.is_good & (self.labels != UNKNOWN)
        return float((self.predictions == self.labels)[labelled].mean()) if labelled.any() else None


class PredictData(CopyingDataModule):
    """Images under one transform, in their order; each process has every `processes`-th batch."""

    def __init__(
        self,
        images: Images,
        transform: ImageTransform,
        image_size: Size,
        batch_size: int,
        num_workers: int | None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.transform = transform
        dataset = ImageDataset(images, transform, image_size, seed=0, keep_bad=True)
        sampler = EvalBatchSampler(len(images), batch_size, rank, processes)
        self.loader = Loader(dataset, sampler, workers(num_workers, processes), on_damage=_say_damage)

    def predict_dataloader(self) -> Loader:
        return self.loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return to_network(batch, self.transform.batch, self.trainer)

    def teardown(self, stage: str) -> None:
        self.loader.close()


def _say_damage(found: dict[str, str]) -> None:
    for path, what in found.items():
        log.warning("%s is damaged inside, and read with wrong pixels: %s", path, what)


def predict(
    trainer: Trainer,
    members: Sequence[Classifier],
    weights: Sequence[float] | None,
    images: Images,
    tta: str,
    **loading: Any,
) -> Predictions:
    """The weighted mean of the probabilities of all members, each the mean over the views of `tta`.

    `loading` are the further arguments of PredictData. Every view of every member is one pass over the images.
    """
    total: torch.Tensor | float = 0.0
    shares = np.array(weights if weights is not None else [1.0] * len(members), dtype=float)
    for member, share in zip(members, shares / shares.sum(), strict=True):
        images.decoding = member.decoding
        seen = views(member.transform, tta)
        for view in seen:
            rows = _pass(trainer, member, PredictData(images, view, member.image_size, **loading))
            total = total + rows.logits.double().softmax(dim=1) * (share / len(seen))
    alone = len(members) == 1 and tta == "none"
    assert isinstance(total, torch.Tensor)
    log_probabilities = torch.log_softmax(rows.logits.double(), dim=1) if alone else total.log()
    return Predictions(
        class_names=members[0].class_names,
        paths=list(images.paths),
        labels=np.array(getattr(images, "known", images.labels)),
        predictions=(rows.prediction if alone else total.argmax(dim=1)).numpy(),
        log_probabilities=log_probabilities.numpy(),
        bad=rows.bad,
    )


def _pass(trainer: Trainer, member: Classifier, data: PredictData) -> Any:
    collector = Collector()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(collector)
    try:
        trainer.predict(member.model, datamodule=data, return_predictions=False)
    finally:
        callbacks.remove(collector)
    rows = collector.rows()
    if rows.index != list(range(len(data.loader.dataset))):
        raise RuntimeError(f"{len(rows.index)} images came back of {len(data.loader.dataset)}")
    return rows

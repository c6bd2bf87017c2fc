"""Predictions of one or several networks, over one or several views of each image."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from imago.callbacks.memory import memory_errors_explained
from imago.config.launcher import processes_here
from imago.data.crops import Size
from imago.data.dataset import ImageDataset
from imago.data.images import Images
from imago.data.loader import Loader
from imago.data.samplers import EvalBatchSampler
from imago.data.transfer import CopyingDataModule, to_network
from imago.data.transforms import ImageTransform
from imago.data.tta import views
from imago.definitions import Batch
from imago.evaluation.classifier import Classifier
from imago.evaluation.collect import Rows, collected_rows
from imago.evaluation.pixels import DAMAGED
from imago.evaluation.score import Predictions
from imago.resources import workers

log = logging.getLogger(__name__)


class PredictData(CopyingDataModule):
    """Images under one transform, in order; each process has every `processes`-th batch."""

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
        self.batch_size = batch_size
        dataset = ImageDataset(images, transform, image_size, seed=0, keep_bad=True)
        sampler = EvalBatchSampler(len(images), batch_size, rank, processes)
        self.loader = Loader(dataset, sampler, workers(num_workers, processes_here(processes)), on_damage=_log_damage)

    def predict_dataloader(self) -> Loader:
        return self.loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return to_network(batch, self.transform.batch, self.trainer)

    def teardown(self, stage: str) -> None:
        self.loader.close()


def _log_damage(damage: dict[str, str]) -> None:
    for path, what in damage.items():
        log.warning(f"%s is {DAMAGED}", path, what)


def predict(
    trainer: Trainer,
    members: Sequence[Classifier],
    weights: Sequence[float] | None,
    images: Images,
    tta: str,
    **loading: Any,
) -> Predictions:
    """Weighted mean of the probabilities of all members, each averaged over the views of `tta`.

    `loading` holds the other arguments of PredictData. Every view of every member is one pass over the images.
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
        warnings=[DAMAGED % what if what else "" for what in rows.damage],
    )


def _pass(trainer: Trainer, member: Classifier, data: PredictData) -> Rows:
    with memory_errors_explained(trainer, member.model, data.batch_size):
        trainer.predict(member.model, datamodule=data, return_predictions=False)
    rows = collected_rows(trainer)
    if rows.index != list(range(len(data.loader.dataset))):
        raise RuntimeError(f"{len(rows.index)} of {len(data.loader.dataset)} images were predicted")
    return rows

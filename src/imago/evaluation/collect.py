"""Rows of an evaluation, gathered from all batches and all processes."""

import logging
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from imago.callbacks.memory import memory_errors_explained
from imago.callbacks.metrics import MetricsCallback
from imago.data.module import ImageDataModule
from imago.distributed import all_gather_objects
from imago.evaluation.head_inputs import HeadInputs
from imago.evaluation.score import Score, baseline_of
from imago.lightning_internals import callbacks_of, option_of
from imago.model.module import DictModule

log = logging.getLogger(__name__)


def score(trainer: Trainer, model: DictModule, data: ImageDataModule, split: str, with_features: bool = False) -> Score:
    """Score `model` as it is. `test` runs as Lightning's test and is logged as `test/*`; others run as predict.

    Features, the inputs of the head, are kept if they are wanted, if there are such, and if they fit into memory.
    """
    limit = trainer.limit_predict_batches
    (collector,) = callbacks_of(trainer, Collector)
    collector.head = HeadInputs(model, len(data.split(split))) if with_features else None
    try:
        if split == "test":
            count_limit(trainer, "test", data.test_dataloader())
            with memory_errors_explained(trainer, model, data.batch_size):
                trainer.test(model, datamodule=data, verbose=False)
        else:
            data.predict_split = split
            count_limit(trainer, "predict", data.predict_dataloader())
            with memory_errors_explained(trainer, model, data.batch_size):
                trainer.predict(model, datamodule=data, return_predictions=False)
    finally:
        trainer.limit_predict_batches = limit
        if collector.head is not None:
            collector.head.close()
    images = data.split(split)
    rows = collected_rows(trainer)
    _check_complete(trainer, split, rows.index, len(images))
    index, logits = images.indices(rows.index), rows.logits
    log_probabilities = torch.log_softmax(logits.double(), dim=1)
    return Score(
        asked=split,
        split=data.scored_split(split),
        class_names=data.class_names,
        indices=index,
        paths=[images.paths[i] for i in index],
        labels=np.array([images.labels[i] for i in index]),
        predictions=rows.prediction.numpy(),
        log_probabilities=log_probabilities.numpy(),
        baseline=baseline_of(data.majority, [images.labels[i] for i in index]),
        no_class=data.sets.no_class.get(data.scored_split(split), 0),
        extra=rows.losses | _callback_values(trainer),
        features=rows.features.numpy() if rows.features is not None else None,
    )


def count_limit(trainer: Trainer, stage: str, loader: Sized) -> None:
    """Replace a fraction in `trainer.limit_<stage>_batches` by a number of batches, where Lightning would refuse it,
    because it is less than one, or would take it of the batches of each process."""
    limit, of_run = getattr(trainer, f"limit_{stage}_batches"), getattr(loader, "of_run", len(loader))
    count = int(limit * of_run)
    if not isinstance(limit, float) or not 0 < limit < 1 or (count and of_run == len(loader)):
        return
    if count == 0:
        log.info("trainer.limit_%s_batches=%s is less than one batch: using one", stage, limit)
    setattr(trainer, f"limit_{stage}_batches", max(1, count))


def _check_complete(trainer: Trainer, split: str, index: list[int], images: int) -> None:
    """Raise RuntimeError unless every image was scored exactly once."""
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_predict_batches
    whole = limit == 1.0 and isinstance(limit, float) and not option_of(trainer, "fast_dev_run")
    if len(set(index)) != len(index) or (whole and len(index) != images):
        raise RuntimeError(f"{len(index)} images ({len(set(index))} distinct) of the {images} in {split} were scored")


@dataclass
class Rows:
    """Outputs for n images, in the order of `index`: `prediction` int64 (n,), `logits` (n, classes).

    `losses` are means over the images. Of each image, `bad` says why it could not be read, and `damage` what is damaged
    inside; empty for good ones. `features` (n, d) are the inputs of the head, where they were kept.
    """

    index: list[int]
    prediction: torch.Tensor
    logits: torch.Tensor
    losses: dict[str, float]
    bad: list[str]
    damage: list[str]
    features: torch.Tensor | None = None


class Collector(Callback):
    """Callback that keeps index, prediction and logits of every scored image, and the losses of every batch. Every
    Trainer that scores or predicts has one."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float], list[list[str]]]] = []
        self.features: list[torch.Tensor | None] = []
        self.head: HeadInputs | None = None

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.batches, self.features = [], []

    on_predict_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        index, prediction, logits = (outputs[key].cpu() for key in ("index", "prediction", "logits"))
        losses = {name: float(value) for name, value in outputs["losses"].items()}
        texts = [outputs.get(key) or [""] * len(index) for key in ("bad", "damage")]
        self.batches.append((index, prediction, logits, losses, texts))
        self.features.append(self.head.take(outputs["logits"]) if self.head is not None else None)

    on_predict_batch_end = on_test_batch_end

    def rows(self) -> Rows:
        """Rows of all processes; they do not depend on the number of processes."""
        own = [(*batch, features) for batch, features in zip(self.batches, self.features, strict=True)]
        batches = [batch for process in all_gather_objects(own) for batch in process]
        self.batches, self.features = [], []
        batches.sort(key=lambda batch: int(batch[0][0]))  # sums depend on their order
        index, prediction, logits = (torch.cat(column) for column in list(zip(*batches, strict=True))[:3])
        means = {name: sum(len(batch[0]) * batch[3][name] for batch in batches) / len(index) for name in batches[0][3]}
        losses = {"loss" if name == "total" else f"loss/{name}": mean for name, mean in means.items()}
        bad, damage = ([text for batch in batches for text in batch[4][column]] for column in range(2))
        parts = [batch[5] for batch in batches]
        features = torch.cat(parts) if all(part is not None for part in parts) else None
        return Rows(index.tolist(), prediction, logits, losses, bad, damage, features)


def collected_rows(trainer: Trainer) -> Rows:
    """Rows of the test or predict epoch that the Trainer has just finished."""
    (collector,) = callbacks_of(trainer, Collector)
    return collector.rows()


def _callback_values(trainer: Trainer) -> dict[str, Any]:
    owners = callbacks_of(trainer, MetricsCallback)
    return {name: value for owner in owners for name, value in owner.values.items()}

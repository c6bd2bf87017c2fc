"""Scores of a trained network on a split: every number comes from the predictions, one row per image."""

import logging
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from imago.callbacks.metrics import MetricsCallback
from imago.data.module import ImageDataModule
from imago.module import DictModule

log = logging.getLogger(__name__)


@dataclass
class Score:
    """What a network did on a split.

    `asked` is the split that was asked for, `split` the one that was scored (val where there is no test folder);
    `baseline` is the accuracy of always answering with the most frequent class of train.
    """

    asked: str
    split: str
    class_names: list[str]
    paths: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    baseline: float
    extra: dict[str, Any]

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each image."""
        return -self.log_probabilities[np.arange(len(self.labels)), self.labels]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Row: true class, column: predicted class."""
        return confusion_matrix(self.labels, self.predictions, labels=range(len(self.class_names)))

    @property
    def absent(self) -> list[str]:
        """Classes that are neither among the labels nor among the predictions."""
        return [name for index, name in enumerate(self.class_names) if index not in self._present]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`acc`, macro `precision`, `recall`, `f1` as scikit-learn defines them, the losses, and `per_class`.

        `loss` is the model's (weighted total of its criterions), `cross_entropy` the mean of `losses`.
        """
        precision, recall, f1, _ = self._scores(average="macro")
        own = {
            "acc": float(np.mean(self.labels == self.predictions)),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "cross_entropy": float(np.mean(self.losses)),
        }
        for name, value in own.items():
            if name in self.extra and abs(self.extra[name] - value) > 1e-4:
                log.warning(
                    "%s of your metrics is %s; the reports keep scikit-learn's: %s", name, self.extra[name], value
                )
        return {
            "split": self.split,
            "n": len(self.labels),
            **self.extra,
            **own,
            "baseline_acc": self.baseline,
            "per_class": self._per_class(),
        }

    def report(self, as_dict: bool = False) -> Any:
        """scikit-learn's classification report of the classes that occur, with 4 decimals as text."""
        return classification_report(
            self.labels,
            self.predictions,
            labels=self._present,
            target_names=[self.class_names[index] for index in self._present],
            digits=4,
            zero_division=0,
            output_dict=as_dict,
        )

    @property
    def _present(self) -> list[int]:
        return np.union1d(self.labels, self.predictions).tolist()

    def _per_class(self) -> dict[str, dict[str, float]]:
        columns = self._scores(average=None, labels=range(len(self.class_names)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        keys = ("precision", "recall", "f1", "support")
        return {name: dict(zip(keys, row, strict=True)) for name, row in zip(self.class_names, rows, strict=True)}

    def _scores(self, **options: Any) -> Any:
        return precision_recall_fscore_support(self.labels, self.predictions, zero_division=0, **options)


def score(trainer: Trainer, model: DictModule, data: ImageDataModule, split: str) -> Score:
    """Scores `model` as it is. `test` runs as Lightning's test and is logged as `test/*`; other splits as predict."""
    collector = _Collector()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    callbacks.append(collector)
    limit = trainer.limit_predict_batches
    try:
        if split == "test":
            at_least_one_batch(trainer, "test", data.test_dataloader())
            trainer.test(model, datamodule=data, verbose=False)
        else:
            data.predicted_split = split
            at_least_one_batch(trainer, "predict", data.predict_dataloader())
            trainer.predict(model, datamodule=data, return_predictions=False)
    finally:
        trainer.limit_predict_batches = limit
        callbacks.remove(collector)
    images = data.split(split)
    index, prediction, logits = collector.rows()
    assert len(set(index)) == len(index), "an image was scored twice"
    log_probabilities = torch.log_softmax(logits.double(), dim=1)
    return Score(
        asked=split,
        split=data.scored_split(split),
        class_names=data.class_names,
        paths=[images.paths[i] for i in index],
        labels=np.array([images.labels[i] for i in index]),
        predictions=prediction.numpy(),
        log_probabilities=log_probabilities.numpy(),
        baseline=_majority_share(data.split("train").labels, [images.labels[i] for i in index]),
        extra=_losses(model) | _callback_values(callbacks),
    )


def at_least_one_batch(trainer: Trainer, stage: str, loader: Sized) -> None:
    """Takes one where `trainer.limit_<stage>_batches` is a share of less than a batch; Lightning would refuse it."""
    limit = getattr(trainer, f"limit_{stage}_batches")
    if isinstance(limit, float) and limit > 0 and int(limit * len(loader)) == 0:
        log.info("trainer.limit_%s_batches=%s is less than a batch: one is taken", stage, limit)
        setattr(trainer, f"limit_{stage}_batches", 1)


class _Collector(Callback):
    """Keeps index, prediction and logits of every image that is scored."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, ...]] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batches.append(tuple(outputs[key].cpu() for key in ("index", "prediction", "logits")))

    on_predict_batch_end = on_test_batch_end

    def rows(self) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """All images in the order of their index, those of the other processes too."""
        batches = self.batches
        if torch.distributed.is_initialized():
            everywhere: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, batches)
            batches = [batch for process in everywhere for batch in process]
        index, prediction, logits = (torch.cat(column) for column in zip(*batches, strict=True))
        order = index.argsort()
        return index[order].tolist(), prediction[order], logits[order]


def _losses(model: DictModule) -> dict[str, float]:
    return {name: float(value) for name, value in model.mean_losses("test").items()}


def _callback_values(callbacks: Sequence[Callback]) -> dict[str, Any]:
    owners = [callback for callback in callbacks if isinstance(callback, MetricsCallback)]
    return {name: value for owner in owners for name, value in owner.values.items()}


def _majority_share(train_labels: Sequence[int], labels: Sequence[int]) -> float:
    majority = np.bincount(train_labels).argmax()
    return float(np.mean(np.array(labels) == majority))

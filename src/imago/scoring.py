"""Scores of a trained network on a split: every number comes from the predictions, one row per image."""

import logging
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray

from imago.calibration import Calibration, expected_calibration_error, reliability
from imago.callbacks.metrics import MetricsCallback
from imago.data.images import most_frequent, train_counts
from imago.data.module import ImageDataModule
from imago.data.sources import UNKNOWN
from imago.metrics import of_all_processes
from imago.module import DictModule

if TYPE_CHECKING:  # predicting scores nothing
    from imago.predicting import Predictions

log = logging.getLogger(__name__)


@dataclass
class Score:
    """What a network did on a split.

    `asked` is the split that was asked for, `split` the one that was scored (val where there is no test folder);
    `baseline` is the accuracy of always answering with the most frequent class of train. With a `calibration`, the
    metrics also say what it does here.
    """

    asked: str
    split: str
    class_names: list[str]
    indices: list[int]
    paths: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    baseline: float
    extra: dict[str, Any]
    calibration: Calibration | None = None
    no_class: int = 0
    """Images beside them whose folder is no class."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each image."""
        return -self.log_probabilities[np.arange(len(self.labels)), self.labels]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Row: true class, column: predicted class."""
        from sklearn.metrics import confusion_matrix

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
        bins = reliability(self.log_probabilities, self.labels)
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
            "ece": expected_calibration_error(bins),
            "baseline_acc": self.baseline,
            **self._calibrated(),
            "reliability": [asdict(each) for each in bins],
            "per_class": self._per_class(),
        }

    def report(self, as_dict: bool = False) -> Any:
        """scikit-learn's classification report of the classes that occur, with 4 decimals as text."""
        from sklearn.metrics import classification_report

        return classification_report(
            self.labels,
            self.predictions,
            labels=self._present,
            target_names=[self.class_names[index] for index in self._present],
            digits=4,
            zero_division=0,
            output_dict=as_dict,
        )

    def _calibrated(self) -> dict[str, Any]:
        if self.calibration is None:
            return {}
        return {"calibrated": self.calibration.measured(self.log_probabilities, self.labels)}

    @property
    def _present(self) -> list[int]:
        return np.union1d(self.labels, self.predictions).tolist()

    def _per_class(self) -> dict[str, dict[str, float]]:
        columns = self._scores(average=None, labels=range(len(self.class_names)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        keys = ("precision", "recall", "f1", "support")
        return {name: dict(zip(keys, row, strict=True)) for name, row in zip(self.class_names, rows, strict=True)}

    def _scores(self, **options: Any) -> Any:
        from sklearn.metrics import precision_recall_fscore_support

        return precision_recall_fscore_support(self.labels, self.predictions, zero_division=0, **options)


def score(trainer: Trainer, model: DictModule, data: ImageDataModule, split: str) -> Score:
    """Scores `model` as it is. `test` runs as Lightning's test and is logged as `test/*`; other splits as predict."""
    collector = Collector()
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
    rows = collector.rows()
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
        extra=rows.losses | _callback_values(callbacks),
    )


def score_of(found: "Predictions", asked: str, split: str, trained: Mapping[str, Any]) -> Score | None:
    """The score of predictions, on the images that have a label and could be read; None without any.

    Its loss is the cross-entropy of the probabilities. `trained` is the entry `imago` of the checkpoint.
    """
    chosen = np.flatnonzero(found.is_good & (found.labels != UNKNOWN))
    if not len(chosen):
        return None
    labels, log_probabilities = found.labels[chosen], found.log_probabilities[chosen]
    return Score(
        asked=asked,
        split=split,
        class_names=found.class_names,
        indices=chosen.tolist(),
        paths=[found.paths[index] for index in chosen],
        labels=labels,
        predictions=found.predictions[chosen],
        log_probabilities=log_probabilities,
        baseline=baseline_of(most_frequent(train_counts(trained, found.class_names)), labels.tolist()),
        extra={"loss": float(-log_probabilities[np.arange(len(labels)), labels].mean())},
        no_class=int((found.is_good & (found.labels == UNKNOWN)).sum()),
    )


def at_least_one_batch(trainer: Trainer, stage: str, loader: Sized) -> None:
    """Takes one where `trainer.limit_<stage>_batches` is a share of less than a batch; Lightning would refuse it."""
    limit = getattr(trainer, f"limit_{stage}_batches")
    if isinstance(limit, float) and limit > 0 and int(limit * len(loader)) == 0:
        log.info("trainer.limit_%s_batches=%s is less than a batch: one is taken", stage, limit)
        setattr(trainer, f"limit_{stage}_batches", 1)


def _check_complete(trainer: Trainer, split: str, index: list[int], images: int) -> None:
    """Raises RuntimeError unless every image was scored, and once."""
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_predict_batches
    whole = limit == 1.0 and isinstance(limit, float) and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if len(set(index)) != len(index) or (whole and len(index) != images):
        raise RuntimeError(f"{len(index)} images were scored, {len(set(index))} different ones, of {images} in {split}")


@dataclass
class Rows:
    """Of all images, in the order of their index; `losses` are means over them, `bad` says what could not be read."""

    index: list[int]
    prediction: torch.Tensor
    logits: torch.Tensor
    losses: dict[str, float]
    bad: list[str]


class Collector(Callback):
    """Keeps index, prediction and logits of every image that is scored, and the losses of every batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float], list[str]]] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        index, prediction, logits = (outputs[key].cpu() for key in ("index", "prediction", "logits"))
        losses = {name: float(value) for name, value in outputs["losses"].items()}
        self.batches.append((index, prediction, logits, losses, outputs.get("bad") or [""] * len(index)))

    on_predict_batch_end = on_test_batch_end

    def rows(self) -> Rows:
        """Those of all processes, the same for any number of them."""
        batches = [batch for process in of_all_processes(self.batches) for batch in process]
        batches.sort(key=lambda batch: int(batch[0][0]))  # sums depend on their order
        index, prediction, logits = (torch.cat(column) for column in list(zip(*batches, strict=True))[:3])
        means = {name: sum(len(batch[0]) * batch[3][name] for batch in batches) / len(index) for name in batches[0][3]}
        losses = {"loss" if name == "total" else f"loss/{name}": mean for name, mean in means.items()}
        return Rows(index.tolist(), prediction, logits, losses, [reason for batch in batches for reason in batch[4]])


def _callback_values(callbacks: Sequence[Callback]) -> dict[str, Any]:
    owners = [callback for callback in callbacks if isinstance(callback, MetricsCallback)]
    return {name: value for owner in owners for name, value in owner.values.items()}


def baseline_of(majority: Sequence[int], labels: Sequence[int]) -> float:
    """The accuracy of one and the same answer: a most frequent class of train, that which fits best where several
    are."""
    return max(float(np.mean(np.array(labels) == label)) for label in majority)

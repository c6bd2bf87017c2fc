"""Metrics of an evaluation, from one row per image."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imago.data.images import train_counts
from imago.data.scored_splits import most_frequent
from imago.data.sources import UNKNOWN
from imago.evaluation.calibration import FITTED_ON, Calibration
from imago.evaluation.temperature import expected_calibration_error, reliability

log = logging.getLogger(__name__)

TOP, CLASSES_OF_TOP = 5, 10
"""With so many classes or more, `top5_acc` counts an image as right if its class is among the five most likely."""


@dataclass
class Score:
    """Predictions for the n images of a split, and their metrics.

    `labels` and `predictions` are int64 (n,), `log_probabilities` float64 (n, classes), all in the order of `paths`.
    `asked` is the requested split, `split` the scored one (val if there is no test folder). `baseline` is the accuracy
    of always answering with the most frequent class of train. With a `calibration`, the metrics include its effect on
    the split.
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
    """Number of further images whose folder is not a class."""
    held_out: NDArray[np.float64] | None = None
    """Log-probabilities (n, classes) by heads that were fitted without the image; None if there are none."""
    margins: NDArray[np.float64] | None = None
    """Mean margins (n,) of the labels in the training; None if there are none."""
    features: NDArray[np.float32] | None = None
    """Inputs (n, d) of the network's head; None if they were not kept."""

    @property
    def doubts(self) -> NDArray[np.float64]:
        """Log-probabilities that contradict labels: a network has learned those that it was trained on."""
        return self.log_probabilities if self.held_out is None else self.held_out

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each image in nats, float64 (n,)."""
        return -self.log_probabilities[np.arange(len(self.labels)), self.labels]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, int64 (classes, classes): true classes in rows, predicted classes in columns."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predictions, labels=range(len(self.class_names)))

    @property
    def absent(self) -> list[str]:
        """Classes that are neither among the labels nor among the predictions."""
        return [name for index, name in enumerate(self.class_names) if index not in self._present]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`acc`, `balanced_acc`, macro `precision`, `recall`, `f1` as in scikit-learn, the losses, and `per_class`.

        `loss` is the model's (weighted total of its criterions), `cross_entropy` the mean of `losses`. With 10 classes
        or more there is also `top5_acc`.
        """
        precision, recall, f1, _ = self._scores(average="macro")
        own = {
            "acc": float(np.mean(self.labels == self.predictions)),
            "balanced_acc": self._balanced_accuracy(),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "cross_entropy": float(np.mean(self.losses)),
        }
        bins = reliability(self.log_probabilities, self.labels)
        for name, value in own.items():
            if name in self.extra and abs(self.extra[name] - value) > 1e-4:
                log.warning(
                    "Your metric %s is %s. The reports show that of scikit-learn: %s", name, self.extra[name], value
                )
        return {
            "split": self.split,
            "n": len(self.labels),
            **self.extra,
            **own,
            "ece": expected_calibration_error(bins),
            "baseline_acc": self.baseline,
            **({"top5_acc": self._top_accuracy()} if len(self.class_names) >= CLASSES_OF_TOP else {}),
            **self._calibrated(),
            "reliability": [asdict(entry) for entry in bins],
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

    def _balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images."""
        right = np.bincount(self.labels[self.labels == self.predictions], minlength=len(self.class_names))
        images = np.bincount(self.labels, minlength=len(self.class_names))
        return float(np.mean(right[images > 0] / images[images > 0]))

    def _top_accuracy(self) -> float:
        """Fraction of the images whose class is among the `TOP` most likely; of equal ones, the first count first."""
        own = self.log_probabilities[np.arange(len(self.labels)), self.labels][:, None]
        is_earlier = np.arange(len(self.class_names)) < self.labels[:, None]
        ahead = (self.log_probabilities > own) | ((self.log_probabilities == own) & is_earlier)
        return float(np.mean(ahead.sum(axis=1) < TOP))

    def _calibrated(self) -> dict[str, Any]:
        if self.calibration is None:
            return {}
        measured = self.calibration.measured(self.log_probabilities, self.labels)
        return {"calibrated": measured | {"fitted_here": self.split in FITTED_ON}}

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


def score_of(answers: "Predictions", asked: str, split: str, trained: Mapping[str, Any]) -> Score | None:
    """Score of predictions, on the images that have a label and could be read; None without any.

    Its loss is the cross-entropy of the probabilities. `trained` is the entry `imago` of the checkpoint.
    """
    chosen = np.flatnonzero(answers.is_good & (answers.labels != UNKNOWN))
    if not len(chosen):
        return None
    labels, log_probabilities = answers.labels[chosen], answers.log_probabilities[chosen]
    return Score(
        asked=asked,
        split=split,
        class_names=answers.class_names,
        indices=chosen.tolist(),
        paths=[answers.paths[index] for index in chosen],
        labels=labels,
        predictions=answers.predictions[chosen],
        log_probabilities=log_probabilities,
        baseline=baseline_of(most_frequent(train_counts(trained, answers.class_names)), labels.tolist()),
        extra={"loss": float(-log_probabilities[np.arange(len(labels)), labels].mean())},
        no_class=int((answers.is_good & (answers.labels == UNKNOWN)).sum()),
    )


def baseline_of(majority: Sequence[int], labels: Sequence[int]) -> float:
    """Accuracy of always answering with the most frequent class of train; the best of several."""
    return max(float(np.mean(np.array(labels) == label)) for label in majority)


@dataclass
class Predictions:
    """Predictions for n images: `labels` and `predictions` are int64 (n,), `log_probabilities` float64 (n, classes).

    A label is UNKNOWN if there is none. An entry of `bad` is empty if the image could be read, one of `warnings` if
    nothing is wrong with it.
    """

    class_names: list[str]
    paths: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    bad: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """Mask (n,) of the images that could be read."""
        return np.array([not reason for reason in self.bad])

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the images that have a label and could be read; None without any."""
        labelled = self.is_good & (self.labels != UNKNOWN)
        return float((self.predictions == self.labels)[labelled].mean()) if labelled.any() else None

"""What one calls from a notebook or a script, over plain objects: docs/evaluation.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import nn

from imago.criterions import CriterionsComposition
from imago.data.module import ImageDataModule
from imago.module import DictModule
from imago.plots import confusion_matrix_figure
from imago.scoring import Score, score


def evaluate(net: nn.Module, data: ImageDataModule, split: str = "test", device: str = "cpu") -> Score:
    """Scores a network on a split of a data module, as `ml-eval` does.

    Args:
        net: Takes normalised images, float32 (n, 3, height, width), and gives logits (n, classes), in the order of
            `data.class_names`. It is left on `device`, in evaluation mode.
        data: The images.
        split: `train`, `val` or `test`; `test` is `val` where there is no test split.
        device: `cpu`, `cuda` or `mps`.

    Returns:
        `.metrics` has `acc`, macro `precision`, `recall` and `f1`, `loss` (cross-entropy), `ece`, `per_class` and more;
        `.labels`, `.predictions` and `.log_probabilities` (n, classes) are arrays in the order of `.paths`.

    Raises:
        ValueError: There is no such split, or the network gives something else.
    """
    model = DictModule(data.class_names, lambda num_classes: net, CriterionsComposition({"ce": nn.CrossEntropyLoss()}))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator=device, devices=1, enable_checkpointing=False, **quiet)
    with torch.inference_mode():
        found = score(trainer, model, data, split)
    if found.log_probabilities.shape[1] != len(data.class_names):
        raise ValueError(
            f"The network gives {found.log_probabilities.shape[1]} logits for {len(data.class_names)} classes."
        )
    return found


def confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Figure:
    """A figure of the counts, and of the shares of each true class: rows are true classes, columns predicted ones.

    Args:
        labels: Indices of `class_names`.
        predictions: Likewise, in the same order.
        class_names: All of them, also those that do not occur.
        title: Above the figure.

    Raises:
        ValueError: An index is none of a class, or there are not as many predictions as labels.
    """
    true, predicted = _indices(labels, predictions, class_names)
    counts = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    return confusion_matrix_figure(counts, list(class_names), title)


def classification_report(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], as_dict: bool = False
) -> Any:
    """Precision, recall, F1 and number of images of each class that occurs, by scikit-learn; text with 4 decimals, or
    a dictionary. The arguments are those of `confusion_matrix`.

    Raises:
        ValueError: As `confusion_matrix`.
    """
    from sklearn.metrics import classification_report as report

    true, predicted = _indices(labels, predictions, class_names)
    present = np.union1d(true, predicted).tolist()
    names = [class_names[index] for index in present]
    return report(true, predicted, labels=present, target_names=names, digits=4, zero_division=0, output_dict=as_dict)


def _indices(labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]) -> tuple[Any, Any]:
    true, predicted = np.asarray(labels), np.asarray(predictions)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(
            f"There are {true.shape} labels and {predicted.shape} predictions: give one of each per image."
        )
    for name, indices in (("labels", true), ("predictions", predicted)):
        if len(indices) and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(class_names)):
            raise ValueError(f"{name} have to be indices of the {len(class_names)} class names.")
    return true, predicted

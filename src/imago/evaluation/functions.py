"""Functions for a notebook or a script, on plain objects: docs/evaluation.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import nn

from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.evaluation.collect import Collector, score
from imago.evaluation.score import Score
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.report.plots import confusion_matrix_figure


def evaluate_network(net: nn.Module, data: ImageDataModule, split: str = "test", device: str = "cpu") -> Score:
    """Score a network on a split of a data module, as `ml-eval` does.

    Args:
        net: Takes normalised images, float32 (n, 3, height, width), and returns logits (n, classes), in the order of
            `data.class_names`. It is left on `device`, in evaluation mode.
        data: The images.
        split: `train`, `val` or `test`; `test` is `val` if there is no test split.
        device: `cpu`, `cuda` or `mps`.

    Returns:
        `.metrics` has `acc`, macro `precision`, `recall` and `f1`, `loss` (cross-entropy), `ece`, `per_class` and more;
        `.labels`, `.predictions` and `.log_probabilities` (n, classes) are arrays in the order of `.paths`.

    Raises:
        ValueError: There is no such split, or the network returns something else.
    """
    if not isinstance(net, nn.Module) or not isinstance(data, ImageDataModule):
        raise UserError(
            "evaluate needs a network (a torch.nn.Module; of a classifier, classifier.model.net) and a data module of "
            f"Imago, got {type(net).__name__} and {type(data).__name__}."
        )
    _check_logits(net.to(device).eval(), data, split, device)
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    model = DictModule(data.class_names, lambda num_classes: net, losses, optimizer=None)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator=device, devices=1, enable_checkpointing=False, callbacks=[Collector()], **quiet)
    with torch.inference_mode():
        return score(trainer, model, data, split)


@torch.inference_mode()
def _check_logits(net: nn.Module, data: ImageDataModule, split: str, device: str) -> None:
    images = data.some_images(data.scored_split(split), 1, torch.device(device))["image"]
    logits, classes = net(images), len(data.class_names)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        what = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"The network must return logits of shape (n, {classes}), got {what}.")
    if logits.shape[1] != classes:
        raise UserError(f"The network returns {logits.shape[1]} logits for {classes} classes.")
    if not torch.isfinite(logits).all():
        raise UserError("The network returns logits that are not finite.")


def confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Figure:
    """Figure of the counts, and of the fractions of each true class: true classes in rows, predicted ones in columns.

    Args:
        labels: Indices into `class_names`, integers (n,).
        predictions: Predicted indices, in the same order.
        class_names: All classes, including those that do not occur.
        title: Title of the figure.

    Raises:
        ValueError: An index is not that of a class, or labels and predictions differ in number.
    """
    true, predicted = _indices(labels, predictions, class_names)
    counts = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    return confusion_matrix_figure(counts, list(class_names), title)


def classification_report(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], as_dict: bool = False
) -> Any:
    """Precision, recall, F1 and number of images of each class that occurs, by scikit-learn: text with 4 decimals, or a
    dictionary. The arguments are those of `confusion_matrix`.

    Raises:
        ValueError: As in `confusion_matrix`.
    """
    from sklearn.metrics import classification_report as report

    true, predicted = _indices(labels, predictions, class_names)
    present = np.union1d(true, predicted).tolist()
    names = [class_names[index] for index in present]
    return report(true, predicted, labels=present, target_names=names, digits=4, zero_division=0, output_dict=as_dict)


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _indices(labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]) -> tuple[Any, Any]:
    names = [] if isinstance(class_names, str | int) else list(class_names)
    if len(set(names)) != len(names) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"class_names must be a list of different names, got {class_names!r}.")
    true, predicted = (_array(values) for values in (labels, predictions))
    if true.size == 0:
        raise UserError("There must be at least one label.")
    if true.shape != predicted.shape or true.ndim != 1:
        raise UserError(
            f"There must be one label and one prediction per image, got shapes {true.shape} and {predicted.shape}."
        )
    for name, indices in (("labels", true), ("predictions", predicted)):
        if len(indices) and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(class_names)):
            raise UserError(f"{name} must be indices of the {len(class_names)} class names.")
    return true, predicted

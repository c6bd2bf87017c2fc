"""A collection of torchmetrics that reads dictionaries."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

from imago.definitions import Batch
from imago.distributed import all_gather_objects
from imago.errors import MissingKeyError, UserError, kind_of
from imago.wiring import arguments, check_names, shapes_of

log = logging.getLogger(__name__)

DEFAULT_MAPPING = {"logits": "preds", "label": "target"}


class MetricsComposition(MetricCollection):
    """Metrics by name, updated from a batch.

    Metrics that only need to know how often each class was predicted as which (accuracy, precision, recall, F1,
    Matthews' correlation, …) share one count of the batch's "prediction" and "label", from which they are computed.

    Args:
        metrics: Name -> metric, or a partial that takes `num_classes`. None entries are left out.
        mapping: Name -> (key of the batch -> argument of `update`); `logits: preds, label: target` by default.
        num_classes: Passed to the partials.
        prefix: Prefix of each name, such as `val/`.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric | Callable[..., Metric] | None],
        mapping: Mapping[str, Mapping[str, str]] | None = None,
        num_classes: int | None = None,
        prefix: str | None = None,
    ) -> None:
        check_names("callbacks.metrics.metrics.mapping", mapping or {}, metrics, "metrics")
        built: Any = {
            name: metric(num_classes=num_classes) if isinstance(metric, partial) else metric
            for name, metric in metrics.items()
            if metric is not None
        }
        self.mapping = {name: dict((mapping or {}).get(name, DEFAULT_MAPPING)) for name in built}
        self.counted = [
            name
            for name, metric in built.items()
            if self.mapping[name] == DEFAULT_MAPPING and _is_counted(metric, num_classes)
        ]
        self._others = [name for name in built if name not in self.counted]
        self._counts = ClassCounts(
            num_classes or 0, matrix=any(isinstance(built[name], MulticlassConfusionMatrix) for name in self.counted)
        )
        super().__init__(built, prefix=prefix, compute_groups=False)

    def update(self, batch: Batch) -> None:  # type: ignore[override]
        """Add a batch: its "label" and "prediction", int64 (n,), and the tensors that `mapping` names."""
        if self.counted:
            self._counts.update(**arguments(batch, {"label": "label", "prediction": "prediction"}))
        for name in self._others:
            try:
                inputs = arguments(batch, self.mapping[name], self[name].update)
            except MissingKeyError as error:
                raise MissingKeyError(f"callbacks.metrics.metrics.mapping.{name}: {error}") from error
            try:
                self[name].update(**inputs)
            except Exception as error:
                error.add_note(f"while updating callbacks.metrics.metrics.metrics.{name} with {shapes_of(inputs)}")
                raise

    def compute(self) -> dict[str, Any]:
        """Name -> value over the batches of all processes, which call this together."""
        for name in self.counted:
            self._counts.fill(self[name])
        if torch.distributed.is_initialized():
            self._fill_empty_lists()
        return super().compute()

    def _fill_empty_lists(self) -> None:
        """Give the lists of a process without a batch an empty tensor like those of the others: torchmetrics would
        gather tensors of different shapes, and fail."""
        places = [
            (name, key)
            for name, metric in ((name, self[name]) for name in self._others)
            for key, default in metric._defaults.items()
            if isinstance(default, list)
        ]
        if not places:
            return
        entries = {(name, key): getattr(self[name], key) for name, key in places}
        own = {place: (value[0].shape[1:], value[0].dtype) for place, value in entries.items() if value}
        for kinds in all_gather_objects(own):
            for place in kinds.keys() - own.keys():
                own[place] = shape, dtype = kinds[place]
                entries[place].append(torch.empty((0, *shape), dtype=dtype, device=self[place[0]].device))

    def check_values(self) -> None:
        """Raise UserError if a metric computes anything else than a tensor. One that cannot be computed from so few
        images is not checked."""
        for name in self._others:
            try:
                value = self[name].compute()
            except Exception:
                log.debug("%s cannot be computed", name, exc_info=True)
                continue
            if not isinstance(value, Tensor):
                raise UserError(
                    f"callbacks.metrics.metrics.metrics.{name}: compute returns {kind_of(value)}. It must return a "
                    "tensor: one number, or one per class."
                )

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._counts.reset()

    def state(self) -> dict[str, Any]:
        """Accumulated state of this process: plain types and tensors on the CPU."""
        return {"counts": self._counts.state(), "metrics": {name: _state_of(self[name]) for name in self._others}}

    def merged(self, states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """State of a process with the batches of several, for as many `states`; all further processes have none.

        Raises:
            UserError: A metric cannot continue so.
        """
        if len(states) == 1:
            return states[0]
        names = [name for name in self._others if name in states[0]["metrics"]]
        return {
            "counts": {name: sum(state["counts"][name] for state in states) for name in states[0]["counts"]},
            "metrics": {
                name: _merged(self[name], [state["metrics"][name] for state in states], name) for name in names
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`; metrics that it lacks start anew."""
        self._counts.load_state(state["counts"])
        for name in self._others:
            if name in state["metrics"]:
                _load_state(self[name], state["metrics"][name])


class BalancedAccuracy(MulticlassStatScores):
    """Mean of the accuracies of the classes that have images, as scikit-learn's `balanced_accuracy_score`.

    `MulticlassAccuracy(average="macro")` differs where a class without images was predicted.

    Args:
        num_classes: Number of classes.
    """

    is_differentiable = False
    higher_is_better = True

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(num_classes=num_classes, average="macro", **options)

    def compute(self) -> Tensor:
        right, _, _, wrong = self._final_state()
        images = right + wrong
        return (right[images > 0] / images[images > 0]).mean()


class ClassCounts:
    """Images per true class, per predicted class, and correctly predicted, counted on the device of the labels.

    `matrix` adds the whole confusion matrix, true classes in rows.
    """

    def __init__(self, num_classes: int, matrix: bool = False) -> None:
        self.num_classes = num_classes
        self.with_matrix = matrix
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.batches = 0
        self.true, self.taken, self.right = (torch.zeros(self.num_classes, dtype=torch.long) for _ in range(3))
        self.matrix = torch.zeros(self.num_classes**2 if self.with_matrix else 0, dtype=torch.long)

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Add a batch of class indices, int64 (n,). Nothing here waits for the device, as `torch.bincount` does."""
        if self.true.device != label.device:
            self._move(label.device)
        ones = torch.ones_like(label)
        self.true.scatter_add_(0, label, ones)
        self.taken.scatter_add_(0, prediction, ones)
        self.right.scatter_add_(0, label, (label == prediction).long())
        if self.with_matrix:
            self.matrix.scatter_add_(0, label * self.num_classes + prediction, ones)
        self.batches += 1

    def fill(self, metric: Metric) -> None:
        """Set the states of `metric` to those that its own `update` would have reached."""
        states = self._states_of(metric)
        metric.reset()
        for name, value in states.items():
            setattr(metric, name, value.to(metric.device, copy=True))
        metric._update_count = self.batches  # otherwise it would warn that there was no update

    def _states_of(self, metric: Metric) -> dict[str, Tensor]:
        if isinstance(metric, MulticlassConfusionMatrix):
            return {"confmat": self.matrix.view(self.num_classes, self.num_classes)}
        right, total = self.right, self.true.sum()
        too_many, too_few = self.taken - right, self.true - right
        if metric.average == "micro":
            right, too_many, too_few = (counts.sum(dim=0, keepdim=True) for counts in (right, too_many, too_few))
            total = total * self.num_classes
        return {"tp": right, "fp": too_many, "fn": too_few, "tn": total - (right + too_many + too_few)}

    def state(self) -> dict[str, Any]:
        """Counts of this process: plain types and tensors on the CPU."""
        tensors = {name: getattr(self, name).to("cpu", copy=True) for name in ("true", "taken", "right", "matrix")}
        return {"batches": self.batches, **tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`, unless its sizes differ."""
        if all(len(state[name]) == len(getattr(self, name)) for name in ("true", "matrix")):
            for name, value in state.items():
                setattr(self, name, value.clone() if isinstance(value, Tensor) else value)

    def _move(self, device: torch.device) -> None:
        for name in ("true", "taken", "right", "matrix"):
            setattr(self, name, getattr(self, name).to(device))


def _is_counted(metric: Metric, num_classes: int | None) -> bool:
    """Whether the states of `metric` can be made from counts of labels and predictions alone."""
    if getattr(metric, "num_classes", None) != num_classes or getattr(metric, "ignore_index", None) is not None:
        return False
    if type(metric).update is MulticlassStatScores.update:
        return bool(metric.top_k == 1) and metric.multidim_average == "global"
    return type(metric).update is MulticlassConfusionMatrix.update


def _state_of(metric: Metric) -> dict[str, Any]:
    """Accumulated state of a metric: plain types and tensors on the CPU."""
    return {
        "updates": metric.update_count,
        "states": {name: _on(value, "cpu") for name, value in metric.metric_state.items()},
    }


def _merged(metric: Metric, states: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """State, as of `_state_of`, for the batches of several processes, merged as torchmetrics does it. A process
    without a batch must not change it."""
    merged: dict[str, Any] = {}
    reductions: dict[str, Any] = metric._reductions
    for key, reduce in reductions.items():
        values, default = [state["states"][key] for state in states], metric._defaults[key]
        if isinstance(default, list):
            merged[key] = [entry for value in values for entry in value]
            continue
        merged[key] = reduce(torch.stack(values)) if reduce is not None else None
        if reduce is None or not torch.equal(reduce(torch.stack([merged[key], default.to(merged[key])])), merged[key]):
            raise UserError(
                f"callbacks.metrics.metrics.metrics.{name}: {type(metric).__name__}.{key} of several processes cannot "
                "be merged, so the middle of an epoch needs the number of processes that it began with. Type "
                f"trainer.devices={len(states)}"
            )
    return {"updates": sum(state["updates"] for state in states), "states": merged}


def _load_state(metric: Metric, state: Mapping[str, Any]) -> None:
    """Restore what `_state_of` returned."""
    metric.reset()
    for name, value in state["states"].items():
        setattr(metric, name, _on(value, metric.device))
    metric._update_count = state["updates"]  # otherwise it would warn that there was no update


def _on(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_on(entry, device) for entry in value]
    return value.detach().to(device, copy=True)

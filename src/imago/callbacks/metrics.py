"""Metrics per stage, and the best value of the tracked metric."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from imago.definitions import STEP_WEIGHT, Batch
from imago.errors import UserError
from imago.model.metrics import MetricsComposition

STAGES = ("train", "val", "test")


class MetricsCallback(Callback):
    """Log `train/<name>`, `val/<name>`, `test/<name>` at the end of each epoch, and `val/<tracked>_best`.

    A metric with one value per class is logged as `<stage>/<name>/<class>`.

    Args:
        metrics: Factory of the metrics, called with `num_classes`; None logs only the losses.
        tracked_metric_name: Metric whose best val value is kept; None tracks the loss.
        mode: Whether a greater (`max`) or a smaller (`min`) value of it is better.
        most_classes: With more classes, only the reports have values per class.
    """

    def __init__(
        self,
        metrics: Callable[..., MetricsComposition] | None = None,
        tracked_metric_name: str | None = None,
        mode: str = "max",
        most_classes: int = 20,
    ) -> None:
        self.metrics = metrics
        self.tracked_metric_name = tracked_metric_name or "loss"
        self.mode = mode
        self.most_classes = most_classes
        self.best: float | None = None
        self.values: dict[str, Any] = {}
        """Name -> value of the metrics of the last test or predict epoch; vectors are lists."""
        self._stages: dict[str, MetricsComposition] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._make_stages(len(pl_module.class_names))
        for metrics in self._stages.values():
            metrics.to(trainer.strategy.root_device)  # the module is moved only after this hook

    def _make_stages(self, num_classes: int) -> None:
        if not self._stages:
            metrics = self.metrics(num_classes=num_classes) if self.metrics is not None else _none(num_classes)
            clones = {stage: metrics.clone(prefix=f"{stage}/") for stage in STAGES}  # never shared
            self._stages = cast(dict[str, MetricsComposition], clones)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.check_tracked(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._stages["train"].reset()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.get(STEP_WEIGHT) != 0:  # else its images only stand in
            self._update("train", outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log_replicated(self._scalars("train", pl_module.class_names))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._stages["val"].reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update("val", outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        values = self._scalars("val", pl_module.class_names)
        pl_module.log_replicated(values)
        if trainer.sanity_checking:
            return
        best = self._track({**values, **{f"val/{k}": v for k, v in pl_module.mean_losses("val").items()}})
        pl_module.log_replicated({f"val/{self.tracked_metric_name}_best": best})

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._stages["test"].reset()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update("test", outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log_replicated(self._scalars("test", pl_module.class_names))
        self._keep_values()

    on_predict_epoch_start = on_test_epoch_start
    on_predict_batch_end = on_test_batch_end

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._keep_values()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "tracked_metric_name": self.tracked_metric_name, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict["tracked_metric_name"], state_dict["mode"]) == (self.tracked_metric_name, self.mode):
            self.best = state_dict["best"]

    def names(self) -> list[str]:
        """Names of the metrics that have a single value."""
        return _single_valued(self._stages["train"])

    def check_tracked(self, model: Any) -> None:
        """Raise UserError if the tracked metric is not logged."""
        self._make_stages(len(model.class_names))
        names = [*self.names(), *model.loss_names]
        if self.tracked_metric_name not in names:
            raise UserError(
                f"Unknown metric {self.tracked_metric_name!r}. Type monitor=val/NAME, where NAME is one of "
                f"{', '.join(names)}."
            )

    def try_batch(self, batch: Batch) -> None:
        """Update copies of the metrics with a val batch: what a metric or its mapping does not take is raised."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a metric has to say of eight images means nothing
            tried = cast(MetricsComposition, self._stages["val"].clone())
            tried.update(batch)
            tried.check_values()

    def epoch_state(self) -> dict[str, Any]:
        """State that the train metrics have accumulated in the current epoch."""
        return self._stages["train"].state()

    def load_epoch(self, *states: Mapping[str, Any]) -> None:
        """Restore the train metrics from `epoch_state()`, or from those of several processes."""
        self._stages["train"].load_state(self._stages["train"].merged(states))

    def check_epoch(self, *states: Mapping[str, Any]) -> None:
        """Raise UserError if `load_epoch` cannot merge the states of several processes."""
        self._stages["train"].merged(states)

    def _update(self, stage: str, outputs: Batch) -> None:
        if "label" not in outputs or not len(outputs["label"]):  # the batch was skipped, or is empty
            return
        with torch.no_grad():
            self._stages[stage].update(outputs)

    def _scalars(self, stage: str, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Scalar values of the metrics, computed once per epoch: torchmetrics caches them until the next update."""
        scalars = {}
        for name, value in self._stages[stage].compute().items():
            if value.numel() == 1:
                scalars[name] = value
            elif value.shape == (len(class_names),) and len(class_names) <= self.most_classes:
                scalars |= {f"{name}/{label}": value[index] for index, label in enumerate(class_names)}
        return scalars

    def _keep_values(self) -> None:
        computed = self._stages["test"].compute()
        self.values = {name.removeprefix("test/"): value.tolist() for name, value in computed.items()}

    def _track(self, values: dict[str, Tensor]) -> float:
        value = float(values[f"val/{self.tracked_metric_name}"])
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        self.best = value if better else self.best
        assert self.best is not None
        return self.best


def _none(num_classes: int) -> MetricsComposition:
    return MetricsComposition({}, num_classes=num_classes)


def _single_valued(metrics: MetricsComposition) -> list[str]:
    """Names of the metrics, without those that have a value per class."""
    by_name = dict(metrics.items(keep_base=True, copy_state=False))
    return [name for name in metrics.mapping if getattr(by_name[name], "average", "macro") not in (None, "none")]

"""A collection of torchmetrics that reads dictionaries."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection

from imago.transforms import Batch, arguments

DEFAULT_MAPPING = {"preds": "logits", "target": "label"}


class MetricsComposition(MetricCollection):
    """Metrics by name, updated from a batch.

    Args:
        metrics: Name -> metric, or a partial that takes `num_classes`. An entry that is None is left out.
        mapping: Name -> (argument of `update` -> key of the batch); `preds: logits, target: label` where not given.
        num_classes: Completes the partials.
        prefix: Put before each name, `val/` for example.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric | Callable[..., Metric] | None],
        mapping: Mapping[str, Mapping[str, str]] | None = None,
        num_classes: int | None = None,
        prefix: str | None = None,
    ) -> None:
        unknown = sorted(set(mapping or {}) - set(metrics))
        if unknown:
            raise ValueError(f"mapping names {', '.join(unknown)}, but the metrics are {', '.join(metrics)}.")
        built: Any = {
            name: metric(num_classes=num_classes) if isinstance(metric, partial) else metric
            for name, metric in metrics.items()
            if metric is not None
        }
        self.mapping = {name: dict((mapping or {}).get(name, DEFAULT_MAPPING)) for name in built}
        # torchmetrics may share states only between metrics that see the same arguments
        self.shared = len({tuple(sorted(names.items())) for names in self.mapping.values()}) == 1
        super().__init__(built, prefix=prefix, compute_groups=self.shared)

    def update(self, batch: Batch) -> None:  # type: ignore[override]
        """Adds a batch."""
        if self.shared:
            super().update(**arguments(batch, next(iter(self.mapping.values()))))
            return
        for name, metric in self.items(keep_base=True, copy_state=False):
            metric.update(**arguments(batch, self.mapping[str(name)]))


def of_all_processes(own: Any) -> list[Any]:
    """What each process gives, in the order of their ranks; called by all of them together."""
    if not torch.distributed.is_initialized():
        return [own]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, own)
    return everywhere


def state_of(metric: Metric) -> dict[str, Any]:
    """What a metric has summed up, on the CPU: plain types and tensors."""
    return {
        "updates": metric.update_count,
        "states": {name: _on(value, "cpu") for name, value in metric.metric_state.items()},
    }


def load_state(metric: Metric, state: Mapping[str, Any]) -> None:
    """Takes what `state_of` gave."""
    metric.reset()
    for name, value in state["states"].items():
        setattr(metric, name, _on(value, metric.device))
    metric._update_count = state["updates"]  # else it would say that there was no update


def _on(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_on(each, device) for each in value]
    return value.detach().to(device, copy=True)

"""The losses of an epoch, by stage: summed on the device, logged once."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from imago.lightning_internals import LightModule
from imago.model.losses import MeanLosses, OrderedMeanLosses
from imago.model.strategy import Strategy


class EpochLosses(LightModule):
    """Module that keeps the running means of the losses, and logs them at the end of an epoch.

    Args:
        names: Names of the losses, including `total`.
    """

    strategy: Strategy

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.running_losses = {
            "train": MeanLosses(list(names)),
            **{stage: OrderedMeanLosses(list(names)) for stage in ("val", "test")},
        }
        """The running means of each stage."""
        self.validated_epoch: int | None = None
        """The last epoch in which validation ran."""

    @property
    def loss_names(self) -> list[str]:
        """Names in `mean_losses`."""
        return ["loss", *(f"loss/{name}" for name in self.running_losses["train"].names if name != "total")]

    def mean_losses(self, stage: str) -> dict[str, Tensor]:
        """Means over the samples of the epoch so far, float32 scalars: `loss` (weighted total) and `loss/<name>`."""
        means = self.running_losses[stage].compute(self.device)
        return {"loss" if name == "total" else f"loss/{name}": value for name, value in means.items()}

    def epoch_metrics(self) -> dict[str, float]:
        """Losses and metrics of the training epoch that is ending, by the names they are logged under."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.validated_epoch != self.current_epoch:  # Lightning keeps those of an earlier epoch
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        metrics |= {f"train/{name}": float(value) for name, value in self.mean_losses("train").items()}
        return metrics | self.strategy.epoch_metrics()

    def _log_losses(self, stage: str) -> dict[str, Tensor]:
        means = {f"{stage}/{name}": value for name, value in self.mean_losses(stage).items()}
        self.log_replicated(means)
        return means

    def log_replicated(self, values: Mapping[str, Tensor | float]) -> None:
        """Log values of an epoch that all processes have computed together. They are equal, so their maximum is exact.

        Values of train epochs reach the loggers through the epoch log, before the checkpoint of the epoch is written.
        """
        for name, value in values.items():
            logger = False if name.startswith("train/") else None  # None: if there is one
            self.log(name, value, prog_bar=name.endswith("/loss"), sync_dist=True, reduce_fx="max", logger=logger)

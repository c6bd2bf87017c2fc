"""The losses of an epoch, stage by stage: summed up on the device, logged once."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from imago.lightning_internals import LightModule
from imago.model.losses import MeanLosses
from imago.model.strategy import Strategy


class EpochLosses(LightModule):
    """Keeps the running means of the losses, and logs them when an epoch ends.

    Args:
        names: Of the losses, `total` among them.
    """

    strategy: Strategy

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.running_losses = {stage: MeanLosses(list(names)) for stage in ("train", "val", "test")}
        """The means of each stage, as they add up."""
        self.validated_epoch: int | None = None
        """The last epoch in which validation ran."""

    @property
    def loss_names(self) -> list[str]:
        """The names in `mean_losses`."""
        return ["loss", *(f"loss/{name}" for name in self.running_losses["train"].names if name != "total")]

    def mean_losses(self, stage: str) -> dict[str, Tensor]:
        """`loss` (the weighted total) and `loss/<name>`, means over the samples of the epoch so far."""
        means = self.running_losses[stage].compute(self.device)
        return {"loss" if name == "total" else f"loss/{name}": value for name, value in means.items()}

    def epoch_metrics(self) -> dict[str, float]:
        """All that is known of the training epoch that ends, by the names it is logged under."""
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
        """Logs values of an epoch that all processes have computed together: the greatest of equal ones is exact.

        Those of train epochs reach the loggers through the epoch log, before the epoch's checkpoint is written.
        """
        for name, value in values.items():
            logger = False if name.startswith("train/") else None  # None: where there is one
            self.log(name, value, prog_bar=name.endswith("/loss"), sync_dist=True, reduce_fx="max", logger=logger)

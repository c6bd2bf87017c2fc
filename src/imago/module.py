"""The one LightningModule: a network, its losses and its optimizer, over batches that are dictionaries."""

import difflib
import inspect
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imago.backbones import head_names, with_group_norm
from imago.criterions import CriterionsComposition, MeanLosses
from imago.data.images import shortened
from imago.initial_weights import start_from
from imago.schedules import built_state, counts_steps, planned_steps
from imago.strategy import Strategy
from imago.transforms import Batch, ComposeTransform

log = logging.getLogger(__name__)

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
ON_BAD_LOSS = ("error", "skip")
TAME = (
    "Earlier checkpoints are kept. Try a smaller model.optimizer.lr=, or trainer.gradient_clip_val=1; "
    "model.on_bad_loss=skip leaves single batches out."
)


class DictModule(LightningModule):
    """Trains `net` on batches {"image", "label", "index", …}; forward adds "logits" and "prediction".

    Args:
        class_names: Of the data; their number sizes the head.
        net: Makes the network, given `num_classes`; None where `forward_fn` has all layers itself.
        criterions: The losses.
        optimizer: Makes the optimizer, given the parameters that are trained. None for a network that is only scored.
        scheduler: Makes the learning-rate scheduler, given the optimizer, and `total_steps` if it takes that.
        scheduler_interval: `step` or `epoch`: when it is stepped; None steps those that count steps (`total_steps`,
            CyclicLR) per optimizer step, others per epoch.
        forward_fn: Replaces image -> net -> logits -> prediction; `transform: net` in it stands for the network.
        compile: Compile the network in place; the first batch then takes a minute.
        channels_last: Keep weights and images pixel by pixel in memory, which convolutions are faster with; None does
            it for the networks of torchvision and Imago: others may use `.view`, which cannot take it.
        class_weights: Class name -> weight in the losses, 1 where not given, or a list by label. The loss of a batch is
            the sum of its images' weighted losses, divided by their number. In a config also `auto`.
        init_from: A run folder, `latest`, a checkpoint, or a file of weights, to start from: what fits is loaded, and
            the head is new where the classes are others.
        freeze: `backbone` trains the head only.
        norm: `group` replaces each BatchNorm that is trained by a GroupNorm: images then do not depend on the others of
            their batch. Its pretrained weights and statistics are lost.
        monitor: The metric that a plateau scheduler watches.
        on_bad_loss: `error` stops where the loss of a train batch is not finite; `skip` leaves the batch out, and
            says so.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        net: Callable[..., nn.Module] | None,
        criterions: CriterionsComposition,
        optimizer: Callable[..., Optimizer] | None,
        scheduler: Callable[..., Any] | None = None,
        scheduler_interval: Literal["step", "epoch"] | None = None,
        forward_fn: ComposeTransform | None = None,
        class_weights: Mapping[str, float] | Sequence[float] | Literal["auto"] | None = None,
        init_from: str | None = None,
        compile: bool = False,
        channels_last: bool | None = None,
        freeze: str | None = None,
        norm: str | None = None,
        monitor: str = "val/loss",
        on_bad_loss: str = "error",
    ) -> None:
        super().__init__()
        if on_bad_loss not in ON_BAD_LOSS:
            raise ValueError(f"model.on_bad_loss={on_bad_loss}: give {' or '.join(ON_BAD_LOSS)}.")
        self.class_names = list(class_names)
        if net is None and (forward_fn is None or freeze is not None or init_from is not None):
            raise ValueError(
                "model.net is missing: choose a network, model=resnet18 for example. model.forward_fn alone can be the "
                "network, without model.freeze and model.init_from."
            )
        self.net = net(num_classes=len(self.class_names)) if net is not None else nn.Identity()
        self.criterions = criterions
        if class_weights is not None:
            criterions.class_weights = _by_label(class_weights, self.class_names)
        self.optimizer = optimizer
        self.scheduler = scheduler
        if scheduler_interval not in (None, "step", "epoch"):
            raise ValueError(f"model.scheduler_interval={scheduler_interval}: give step, epoch or null.")
        self.scheduler_interval = scheduler_interval
        self.forward_fn = forward_fn
        self.monitor = monitor
        self.on_bad_loss = on_bad_loss
        self.skipped_batches = 0
        warnings.filterwarnings("ignore", ".*overriding `LightningModule.optimizer_")  # per step is what ours is for
        if on_bad_loss == "skip":
            warnings.filterwarnings("ignore", "`training_step` returned `None`")  # we say it ourselves
        self.built: dict[str, Any] = {}
        """The settings of the optimizer and its scheduler as they were made."""
        self._unchecked: list[tuple[int, int, Tensor]] = []  # number of the batch, step, loss
        self.strategy = Strategy()
        self.seed: int | None = None
        """Of dropout and the like; None leaves the generators as they are."""
        self.validated_epoch: int | None = None
        """The last epoch in which validation ran."""
        self.frozen = self._freeze(net, freeze) if net is not None and freeze is not None else []
        if self.frozen:
            self.train()  # all but these
            warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")
        if norm not in (None, "group"):
            raise ValueError(f"model.norm={norm}: give group, or null.")
        whole = self.net if net is not None or forward_fn is None else forward_fn
        self.replaced_norms = with_group_norm(whole, self.frozen) if norm == "group" else []
        self.seen_images: Tensor | None = None
        """Digests of the images that the weights have seen before, where it is known."""
        if net is not None and init_from is not None:
            self.seen_images = start_from(
                self.net, init_from, self.class_names, head_names(_from_scratch(net), len(self.class_names))
            )
        if forward_fn is not None:
            forward_fn.bind(self.net)
        known = type(self.net).__module__.partition(".")[0] in ("torchvision", "imago") and net is not None
        self.channels_last = known if channels_last is None else channels_last
        if self.channels_last:
            for parameter in self.net.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._is_to_be_compiled = compile
        if compile:
            whole.compile()  # in place: assigning torch.compile's result would rename every weight
        names = [*criterions.criterions, "total"]
        self.running_losses = {stage: MeanLosses(names) for stage in ("train", "val", "test")}
        """The means of each stage, as they add up."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes each hook, 40 times per step; Module's own way takes 2 us
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, batch: Batch) -> Batch:
        """The batch with "logits" (n, classes) and "prediction" (n), the index of the most likely class."""
        image = batch["image"]
        if image.ndim == 4:  # the loader has them pixel by pixel
            order = torch.channels_last if self.channels_last else torch.contiguous_format
            batch = batch | {"image": image.contiguous(memory_format=order)}
        if self._is_to_be_compiled:
            return self._compiling(batch)
        return self._forward(batch)

    def _compiling(self, batch: Batch) -> Batch:
        self._is_to_be_compiled = False
        log.info("model.compile=true: compiling the network, which takes a minute or so")
        began = time.monotonic()
        batch = self._forward(batch)
        log.info("Compiled in %.0f s", time.monotonic() - began)
        return batch

    def _forward(self, batch: Batch) -> Batch:
        if self.forward_fn is not None:
            batch = self.forward_fn(batch)
            if missing := {"logits", "prediction"} - batch.keys():
                raise ValueError(f"model.forward_fn leaves no {' and no '.join(sorted(missing))} in the batch.")
            return batch
        logits = self.net(batch["image"])
        return batch | {"logits": logits, "prediction": logits.argmax(dim=1)}

    def training_step(self, batch: Batch, batch_idx: int) -> Batch | None:
        batch, losses = self.strategy.forward(self, batch)
        if self.on_bad_loss == "skip" and not torch.isfinite(losses["total"]):
            self.skipped_batches += 1
            log.warning("%s: the batch is skipped", self._bad_loss(losses["total"], batch_idx, self.global_step))
            return None
        batch = self._counted(batch, losses, "train")
        self._unchecked.append((batch_idx, self.global_step, batch["loss"].detach()))
        logging_is_due = self._logging_is_due
        if logging_is_due or self.device.type == "cpu":  # elsewhere reading the loss would stall the device
            self.check_losses()
        if logging_is_due:
            for logger in self.loggers:
                logger.log_metrics({"train/loss_step": batch["loss"].item()}, step=self.global_step)
        return {key: value if key == "loss" else _detached(value) for key, value in batch.items()}

    def check_losses(self) -> None:
        """Raises FloatingPointError, with the step, where a loss since the last call was not finite."""
        losses, self._unchecked = self._unchecked, []
        if not losses:
            return
        values = torch.stack([loss for _, _, loss in losses]).tolist() if len(losses) > 1 else [losses[0][2].item()]
        for (batch_idx, step, loss), value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{self._bad_loss(loss, batch_idx, step)}. {TAME}")

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "test")

    def on_train_epoch_start(self) -> None:
        self.running_losses["train"].reset()
        self.strategy.begin_epoch(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.seed is not None:
            self.strategy.seed_draws("step", self.seed, self.global_rank, self.current_epoch, batch_idx)

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1:  # each process has its own running means; those of rank 0 count
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_epoch_start(self) -> None:
        self.running_losses["val"].reset()

    def on_test_epoch_start(self) -> None:
        self.running_losses["test"].reset()

    on_predict_epoch_start = on_test_epoch_start

    def on_train_epoch_end(self) -> None:
        self.check_losses()
        self._log_losses("train")
        for name, value in self.strategy.epoch_metrics().items():
            self.log(name, value, prog_bar=True, logger=False)  # the run record does
        scheduler = self.lr_schedulers()
        watched = self.epoch_metrics().get(self.monitor)
        if isinstance(scheduler, ReduceLROnPlateau) and watched is not None:  # no validation, nothing to watch
            scheduler.step(watched)

    def on_validation_epoch_end(self) -> None:
        losses = self._log_losses("val")
        if not self.trainer.sanity_checking:
            self.validated_epoch = self.current_epoch
            if not torch.isfinite(losses["val/loss"]):
                what = f"The loss became {losses['val/loss'].item()} in epoch {self.current_epoch}, after validation"
                raise FloatingPointError(f"{what} (step {self.global_step}). {TAME}")

    def on_test_epoch_end(self) -> None:
        self._log_losses("test")

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise ValueError("model.optimizer=null: the network can be scored, not trained.")
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        try:
            optimizer = self.optimizer(trained, **self._fused())
        except (TypeError, ValueError) as error:
            given = getattr(self.optimizer, "keywords", {})
            raise ValueError(f"model.optimizer refuses {given}: {error}") from error
        made = self._with_scheduler(optimizer)
        scheduler = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
        self.built = built_state(optimizer, scheduler)
        return made

    def _fused(self) -> dict[str, bool]:
        """`fused=True`, one kernel for all weights, for an optimizer that takes it, unless something else was typed.

        Not where Lightning clips gradients of a scaled loss: a fused step undoes the scale only after the clipping.
        """
        has_it = getattr(self.optimizer, "func", self.optimizer) in FUSED
        typed = {"fused", "foreach", "capturable", "differentiable"} & getattr(self.optimizer, "keywords", {}).keys()
        clips_scaled = self.trainer.gradient_clip_val is not None and self.trainer.precision == "16-mixed"
        return (
            {"fused": True} if has_it and not typed and not clips_scaled and self.device.type in ("cpu", "cuda") else {}
        )

    def _with_scheduler(self, optimizer: Optimizer) -> Any:
        if self.scheduler is None:
            return optimizer
        interval = self.interval
        planned = self._planned(interval)
        if _takes_total_steps(self.scheduler):
            if math.isinf(planned):
                raise ValueError(
                    "model.scheduler plans the steps of the whole run, which has no end: type trainer.max_epochs=, or "
                    "model.scheduler=null."
                )
            scheduler = self.scheduler(optimizer, total_steps=int(planned))
        else:
            scheduler = self.scheduler(optimizer)
        if (steps := getattr(scheduler, "total_steps", None)) is not None and steps < planned:
            raise ValueError(
                f"model.scheduler has {steps} steps, but it will be stepped {planned:g} times: leave total_steps (or "
                "epochs and steps_per_epoch) out, and it is set to that."
            )
        config: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            if interval == "step":
                raise ValueError("model.scheduler_interval=step: a plateau is looked for after validation. Type epoch.")
            # on_train_epoch_end steps it: Lightning would only do so when the epoch's checkpoint is written
            config |= {"monitor": self.monitor, "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": config}

    @property
    def interval(self) -> str:
        """`step` or `epoch`: when the schedule is stepped."""
        assert self.scheduler is not None
        return self.scheduler_interval or ("step" if counts_steps(self.scheduler) else "epoch")

    def _planned(self, interval: str) -> float:
        """How often a schedule is stepped in the whole run."""
        epochs = self.trainer.max_epochs if self.trainer.max_epochs not in (None, -1) else math.inf
        return planned_steps(self.trainer) if interval == "step" else float(epochs or 0)

    def backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        self.strategy.backward(loss)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None  # always given with automatic optimisation
        self.strategy.optimizer_step(optimizer, optimizer_closure)

    def train(self, mode: bool = True) -> "DictModule":
        super().train(mode)
        for module in self.frozen:  # a frozen BatchNorm keeps its statistics
            module.eval()
        return self

    @property
    def loss_names(self) -> list[str]:
        """The names in `mean_losses`."""
        return ["loss", *(f"loss/{name}" for name in self.criterions.criterions)]

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

    def _step(self, batch: Batch, stage: str) -> Batch:
        batch = self(batch)
        return self._counted(batch, self.criterions(batch), stage)

    def _counted(self, batch: Batch, losses: Mapping[str, Tensor], stage: str) -> Batch:
        self.running_losses[stage].update(losses, len(batch["label"]))
        each = {name: value.detach() for name, value in losses.items()}
        return batch | {"loss": losses["total"], "losses": each}

    def _log_losses(self, stage: str) -> dict[str, Tensor]:
        means = {f"{stage}/{name}": value for name, value in self.mean_losses(stage).items()}
        self.log_same(means)
        return means

    def log_same(self, values: Mapping[str, Tensor | float]) -> None:
        """Logs values of an epoch that all processes have computed together: the greatest of equal ones is exact.

        Those of train epochs reach the loggers through the run record, before the epoch's checkpoint is written.
        """
        for name, value in values.items():
            logger = False if name.startswith("train/") else None  # None: where there is one
            self.log(name, value, prog_bar=name.endswith("/loss"), sync_dist=True, reduce_fx="max", logger=logger)

    @property
    def _logging_is_due(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0

    def _bad_loss(self, loss: Tensor, batch_idx: int, step: int) -> str:
        return f"The loss became {loss.item()} in epoch {self.current_epoch}, batch {batch_idx} (step {step})"

    def _freeze(self, net: Callable[..., nn.Module], freeze: str) -> list[nn.Module]:
        if freeze != "backbone":
            raise ValueError(f"model.freeze={freeze}: give backbone (train the head only) or null.")
        head = head_names(_from_scratch(net), len(self.class_names))
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad = name in head
        return [module for module in self.net.modules() if _is_frozen(module)]


def _from_scratch(net: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return partial(net, weights=None) if "weights" in inspect.signature(net).parameters else net


def _by_label(weights: Mapping[str, float] | Sequence[float] | str, class_names: Sequence[str]) -> Tensor:
    if isinstance(weights, str):
        raise ValueError(f"model.class_weights={weights}: give auto, or class names with their weights, {{NAME: 5}}.")
    if isinstance(weights, Mapping):
        if unknown := [str(name) for name in weights if str(name) not in class_names]:
            close = difflib.get_close_matches(unknown[0], class_names, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            known = f"the classes are {shortened(class_names, 20)}"
            raise ValueError(f"model.class_weights names {', '.join(unknown)}, but {known}.{meant}")
        given = {str(name): weight for name, weight in weights.items()}
        weights = [given.get(name, 1.0) for name in class_names]
    if len(weights) != len(class_names):
        raise ValueError(f"model.class_weights has {len(weights)} weights for {len(class_names)} classes.")
    if any(not isinstance(each, int | float) or not 0 <= each < math.inf for each in weights) or not any(weights):
        raise ValueError(f"model.class_weights={list(weights)}: give numbers of 0 or more, not all 0.")
    return torch.tensor(weights, dtype=torch.float32)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _takes_total_steps(scheduler: Callable[..., Any]) -> bool:
    typed = getattr(scheduler, "keywords", {})
    return "total_steps" in inspect.signature(scheduler).parameters and not {"total_steps", "epochs"} & typed.keys()


def _is_frozen(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and not any(tensor.requires_grad for tensor in own)

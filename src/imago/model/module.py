"""The only LightningModule: a network, its losses and its optimizer, on batches that are dictionaries."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imago.config.targets import is_channels_last
from imago.definitions import Batch
from imago.errors import DivergenceError, UserError
from imago.model.contract import bind_net, check_output, make_net, run_forward_fn
from imago.model.initial_weights import start_from
from imago.model.losses import DIVERGENCE_HINT, CriterionsComposition, class_weight_tensor, with_losses
from imago.model.muon import matrices_of
from imago.model.optimizers import counts_steps, make_optimizer, make_scheduler, optimizer_settings, takes_matrices
from imago.model.parameter_groups import ParameterGroups
from imago.model.recompute import checkpoint_gradients
from imago.model.strategy import Strategy
from imago.model.surgery import freeze_layers, head_names, to_channels_last, with_group_norm, without_weights
from imago.model.train_steps import ON_BAD_LOSS, TrainSteps
from imago.randomness import seeded_scope
from imago.wiring import ComposeTransform

log = logging.getLogger(__name__)

PROBES = ("auto", True, False, "only")


def _nothing() -> None:
    """Do nothing: the default of `publish`."""


class DictModule(TrainSteps):
    """Module that trains `net` on batches {"image", "label", "index", …}; forward adds "logits" and "prediction".

    Args:
        class_names: Class names of the data; their number sizes the head.
        net: Makes the network, given `num_classes`; None if `forward_fn` has all layers itself.
        criterions: The losses.
        optimizer: Makes the optimizer, given the trainable parameters, and `matrices`, those that are weights of layers
            below the head, if it takes that. None for a network that is only scored.
        scheduler: Makes the learning-rate scheduler, given the optimizer, and `total_steps` if it takes that.
        scheduler_interval: `step` or `epoch`: when it is stepped. None steps schedulers that count steps
            (`total_steps`, CyclicLR) per optimizer step, others per epoch.
        forward_fn: Replaces image -> net -> logits -> prediction; `transform: net` in it stands for the network.
        compile: Compile the network in place. The first batch then takes a minute.
        gradient_checkpointing: Keep the inputs of the network's blocks alone, and compute these again in the backward
            pass: less memory, more time, and the same gradients.
        channels_last: Keep weights and images channels-last (NHWC), which makes convolutions faster. None does so for
            the networks of torchvision and Imago; others may use `.view`, which cannot take it.
        class_weights: Class name -> weight in the losses, 1 by default, or a list by label. The loss of a batch is the
            sum of its images' weighted losses, divided by their number. In a config also `auto` and `effective`.
        init_from: A run folder, `latest`, a checkpoint or a weights file to start from: tensors that fit are loaded,
            and the head is new if the classes differ.
        freeze: `backbone` trains the head only, `until:layer3` this layer and those above it.
        freeze_batch_norm: Keep all BatchNorms as they are: running statistics, scale and shift.
        head_lr: Learning rate of the head; None: that of the optimizer.
        layer_decay: Factor of the learning rate from each layer to the one below it, 0 to 1; None: one rate for all.
        decay_norms_and_biases: Whether weight decay acts on norms and biases too.
        norm: `group` replaces each trainable BatchNorm by a GroupNorm, so that an image does not depend on the rest of
            its batch. The pretrained weights and statistics of these layers are lost.
        monitor: The metric that a plateau scheduler watches.
        on_bad_loss: `error` stops if the loss of a train batch is not finite; `skip` leaves the batch out and logs it.
        probe: Fit the head alone before the first epoch; `auto` if the network has pretrained weights, `only` trains
            nothing else.
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
        class_weights: Mapping[str, float] | Sequence[float] | Literal["auto", "effective"] | None = None,
        init_from: str | None = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        channels_last: bool | None = None,
        freeze: str | None = None,
        freeze_batch_norm: bool = False,
        head_lr: float | None = None,
        layer_decay: float | None = None,
        decay_norms_and_biases: bool = True,
        norm: Literal["group"] | None = None,
        monitor: str = "val/loss",
        on_bad_loss: str = "error",
        probe: bool | Literal["auto", "only"] = "auto",
    ) -> None:
        super().__init__([*criterions.criterions, "total"])
        if on_bad_loss not in ON_BAD_LOSS:
            raise UserError(f"model.on_bad_loss must be {' or '.join(ON_BAD_LOSS)}, got {on_bad_loss}.")
        if probe not in PROBES:
            raise UserError(f"model.probe must be auto, true, false or only, got {probe}.")
        self.probe = probe
        self.class_names = list(class_names)
        self.groups = ParameterGroups(head_lr, layer_decay, decay_norms_and_biases)
        on_layers = self.groups.by_layer or freeze is not None or freeze_batch_norm or init_from is not None
        on_layers = on_layers or takes_matrices(optimizer)
        if net is None and (forward_fn is None or on_layers or gradient_checkpointing):
            raise UserError(
                "model.net is missing. Choose a network, for example model=resnet18. model.forward_fn can replace it "
                "if model.freeze, freeze_batch_norm, init_from, head_lr, layer_decay, optimizer=muon and "
                "gradient_checkpointing are not set."
            )
        self.net = make_net(net, len(self.class_names)) if net is not None else nn.Identity()
        self.criterions = criterions
        if class_weights is not None:
            criterions.class_weights = class_weight_tensor(class_weights, self.class_names)
        self._make_net, self.optimizer = net, optimizer
        self.scheduler = scheduler
        if scheduler_interval not in (None, "step", "epoch"):
            raise UserError(f"model.scheduler_interval must be step, epoch or null, got {scheduler_interval}.")
        self.scheduler_interval = scheduler_interval
        self.forward_fn = forward_fn
        self.monitor = monitor
        self.on_bad_loss = on_bad_loss
        self.optimizer_settings: dict[str, Any] = {}
        """The settings of the optimizer and its scheduler when they were created."""
        self.schedule_steps: int | None = None
        """Steps of the schedule where the run does not know its own yet (`budget=`)."""
        self.strategy = Strategy()
        self.seed: int | None = None
        self._folder, self._publish = Path(), _nothing
        self.head = head_names(without_weights(net), len(self.class_names)) if net is not None and on_layers else set()
        """Names of the head's tensors in the network, where a setting needs them."""
        self.frozen = freeze_layers(self.net, freeze, freeze_batch_norm, self.head)
        self.frozen_parts = {"freeze": freeze, "freeze_batch_norm": freeze_batch_norm}
        if self.frozen:
            self.train()  # all but the frozen layers
        if norm not in (None, "group"):
            raise UserError(f"model.norm must be group or null, got {norm}.")
        whole = self.net if net is not None or forward_fn is None else forward_fn
        self.replaced_norms = with_group_norm(whole, self.frozen) if norm == "group" else []
        self.seen_images: Tensor | None = None
        """Digests of the images that the initial weights were trained on, int64 (images,), if known."""
        if net is not None and init_from is not None:
            self.seen_images = start_from(self.net, init_from, self.class_names, self.head)
        if gradient_checkpointing:
            checkpoint_gradients(self.net)
        if forward_fn is not None:
            bind_net(forward_fn, self.net)
        known = net is not None and is_channels_last(f"{type(self.net).__module__}.")
        self.channels_last = known if channels_last is None else channels_last
        if self.channels_last:
            to_channels_last(self.net)
        self._is_to_be_compiled = compile
        if compile:
            whole.compile()  # in place: assigning torch.compile's result would rename every weight

    def bind(self, seed: int | None, strategy: Strategy, folder: Path, publish: Callable[[], None] = _nothing) -> None:
        """Connect the model to its run.

        Args:
            seed: Seed of dropout and the like; None leaves the generators as they are.
            strategy: How the network is optimised.
            folder: The run folder.
            publish: Writes the report of the strategy, between the ends of two epochs.
        """
        self.seed, self.strategy = seed, strategy
        self._folder, self._publish = folder, publish

    def head_tensors(self) -> set[str]:
        """Names of the head's tensors in the network; empty if it has none."""
        if not self.head and self._make_net is not None:
            with seeded_scope("head"):  # making a network draws random numbers
                self.head = head_names(without_weights(self._make_net), len(self.class_names))
        return self.head

    def on_fit_start(self) -> None:
        self.strategy.on_fit_start(self.trainer, self, self._folder, self._publish)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "imago" in checkpoint:  # missing if only weights are saved
            checkpoint["imago"]["strategy"] = self.strategy.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.strategy.load_state_dict(checkpoint["imago"]["strategy"])

    def forward(self, batch: Batch) -> Batch:
        """Add "logits", float (n, classes), and "prediction", int64 (n,), the index of the most likely class."""
        image = batch["image"]
        if image.ndim == 4:  # the loader delivers them channels-last (NHWC)
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
            return run_forward_fn(self.forward_fn, batch)
        logits = self.net(batch["image"])
        check_output(self.net, logits)
        return batch | {"logits": logits, "prediction": logits.argmax(dim=1)}

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self._step(batch, "test")

    def on_train_epoch_start(self) -> None:
        self.running_losses["train"].reset()
        self.strategy.on_train_epoch_start(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.seed is not None:
            self.strategy.seed_draws("step", self.seed, self.global_rank, self.current_epoch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # each process has its own running statistics: use those of rank 0
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self.running_losses["val"].reset()

    def on_test_epoch_start(self) -> None:
        self.running_losses["test"].reset()

    on_predict_epoch_start = on_test_epoch_start

    def on_train_epoch_end(self) -> None:
        self.check_losses()
        self._log_losses("train")
        for name, value in self.strategy.epoch_metrics().items():
            self.log(name, value, prog_bar=True, logger=False)  # the run record logs it
        scheduler = self.lr_schedulers()
        watched = self.epoch_metrics().get(self.monitor)
        if isinstance(scheduler, ReduceLROnPlateau) and watched is not None:  # no validation, nothing to watch
            scheduler.step(watched)

    def on_validation_epoch_end(self) -> None:
        losses = self._log_losses("val")
        if not self.trainer.sanity_checking:
            self.validated_epoch = self.current_epoch
            if not torch.isfinite(losses["val/loss"]):
                where = f"in epoch {self.current_epoch + 1}, after validation"
                what = f"The loss became {losses['val/loss'].item()} {where}"
                raise DivergenceError(f"{what} (step {self.global_step}). {DIVERGENCE_HINT}")

    def on_test_epoch_end(self) -> None:
        self._log_losses("test")

    def configure_optimizers(self) -> Any:
        parameters = self.groups.divide(self, self.net, self.head)
        make = self.optimizer
        if make is not None and takes_matrices(make):
            make = partial(make, matrices=matrices_of(self.net, self.head))
        optimizer = make_optimizer(make, parameters, self.device, self.trainer, self.groups)
        config = None
        if self.scheduler is not None:
            run = (self.interval, self.trainer, self.monitor, self.schedule_steps)
            config = make_scheduler(self.scheduler, optimizer, *run)
        self.optimizer_settings = optimizer_settings(optimizer, config["scheduler"] if config is not None else None)
        return {"optimizer": optimizer, "lr_scheduler": config} if config is not None else optimizer

    @property
    def interval(self) -> str:
        """`step` or `epoch`: when the scheduler is stepped."""
        assert self.scheduler is not None
        return self.scheduler_interval or ("step" if counts_steps(self.scheduler) else "epoch")

    def train(self, mode: bool = True) -> "DictModule":
        super().train(mode)
        for module in self.frozen:  # a frozen BatchNorm keeps its statistics
            module.training = False  # not that of its parts: the tokens of a transformer are tensors of the whole
        return self

    def _step(self, batch: Batch, stage: str) -> Batch:
        batch = self(batch)
        losses = self.criterions(batch)
        self.running_losses[stage].update(losses, len(batch["label"]))
        return with_losses(batch, losses)

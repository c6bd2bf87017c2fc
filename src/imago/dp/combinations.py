"""What strategy=dp cannot be combined with: looked at before the first step."""

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imago.data.module import ImageDataModule
from imago.dp.gradients import Tape, UnknownGradientError
from imago.dp.secret import PoissonBatchSampler
from imago.module import DictModule
from imago.randomness import keyed

Is = Callable[[Trainer, DictModule, ImageDataModule], bool]

REFUSED: tuple[tuple[Is, str], ...] = (
    (
        lambda trainer, model, data: trainer.world_size > 1,
        "trainer.devices: the noise and the batches of several processes are not shared out. Type trainer.devices=1",
    ),
    (
        lambda trainer, model, data: trainer.gradient_clip_val is not None,
        "trainer.gradient_clip_val: the gradient of each image is clipped. "
        "Type strategy.max_grad_norm= instead, and trainer.gradient_clip_val=null",
    ),
    (
        lambda trainer, model, data: (
            trainer.accumulate_grad_batches != 1 or _has(trainer, GradientAccumulationScheduler)
        ),
        "trainer.accumulate_grad_batches: every step has noise of its own. Type a larger data.batch_size=, with "
        "strategy.physical_batch_size= for the images that fit into memory, and trainer.accumulate_grad_batches=1",
    ),
    (
        lambda trainer, model, data: trainer.precision not in ("32-true", "64-true", "bf16-mixed"),
        "trainer.precision: a scaled loss (16-mixed) would have scaled gradients clipped, and sums of noise need more "
        "bits than 16. Type trainer.precision=bf16-mixed, or 32-true",
    ),
    (
        lambda trainer, model, data: any(each._compiled_call_impl is not None for each in model.net.modules()),
        "model.compile: a compiled network hides its layers. Type model.compile=false",
    ),
    (
        lambda trainer, model, data: model.on_bad_loss == "skip",
        "model.on_bad_loss=skip: which batches are left out would tell of the images. Type model.on_bad_loss=error",
    ),
    (
        lambda trainer, model, data: data.train_transform.batch_draws,
        "data.train_transform.batch has steps that may mix images (MixUp, CutMix): then no gradient is that of one "
        "image. Leave them out; Imago's own RandomHorizontalFlip and Normalize can stay",
    ),
    (
        lambda trainer, model, data: trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        "trainer.overfit_batches: the same batches again and again are no Poisson batches. "
        "Type trainer.overfit_batches=0, or strategy=none",
    ),
    (
        lambda trainer, model, data: not isinstance(data.train_dataloader().batch_sampler, PoissonBatchSampler),
        "The train batches are not drawn by strategy=dp (a sampler with weights, or an own train_dataloader): the "
        "privacy that is reported would not be true. Use the batches of Imago's data modules, or strategy=none",
    ),
    (
        lambda trainer, model, data: _has(trainer, StochasticWeightAveraging) or _has(trainer, WeightAveraging),
        "Callbacks that average weights (SWA, EMA) train, save and score other weights than the counted ones. "
        "Leave them out",
    ),
    (
        lambda trainer, model, data: _has(trainer, BaseFinetuning),
        "Callbacks that unfreeze layers later: their gradients are not clipped. Leave them out; model.freeze=backbone "
        "trains the head",
    ),
    (
        lambda trainer, model, data: any(name.startswith("train/") for name in _watched(trainer, model)),
        "a monitor of train/: losses and metrics of training have no noise, and would choose the weights, the learning "
        "rate or the end. Type monitor=val/loss, or another one of val/",
    ),
    (
        lambda trainer, model, data: isinstance(trainer.optimizers[0], LBFGS),
        "model.optimizer: LBFGS looks at a batch several times in a step. Type model/optimizer=adamw, or sgd",
    ),
    (
        lambda trainer, model, data: bool(trainer.fit_loop.min_epochs or trainer.fit_loop.min_steps),
        "trainer.min_epochs and trainer.min_steps: the privacy budget may end the training earlier. "
        "Type trainer.min_epochs=null trainer.min_steps=null",
    ),
)
"""A test, and what to say."""


def check_combinations(trainer: Trainer, model: DictModule) -> None:
    """Raises ValueError with all that cannot work together."""
    data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
    found = [f"strategy=dp and {say}." for is_given, say in REFUSED if is_given(trainer, model, data)]
    if found:
        raise ValueError("\n".join(found))


def check_samples_apart(model: DictModule, mode: str) -> None:
    """Tries the network on random images, in training.

    Raises:
        ValueError: The gradient of an image is not known, or depends on another one; or what is seen is kept elsewhere.
    """
    data = cast(ImageDataModule, model.trainer.datamodule)  # type: ignore[attr-defined]
    like = data.some_images("train", 1, model.device)
    dtype = like["image"].dtype if like["image"].is_floating_point() else torch.float32
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    state = {name: each.clone() for name, each in model.state_dict().items()}

    def losses_beside(others: int) -> tuple[Tensor, Tape]:
        """Of an image, and of two others with other labels."""
        with keyed("images beside", others):
            rest = torch.rand(2, *like["image"].shape[1:], dtype=dtype)
        with keyed("image"):
            first = torch.rand(1, *like["image"].shape[1:], dtype=dtype)
        labels = torch.tensor([0, others, others]) % len(model.class_names)
        batch: dict[str, Any] = like | {
            "image": torch.cat([first, rest]).to(model.device),
            "label": labels.to(model.device),
            "index": torch.arange(3, device=model.device),
        }
        gpus = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(gpus), Tape(parameters, 3, mode) as tape:
            torch.manual_seed(0)  # of dropout
            return model.criterions.per_image(model(batch))["total"], tape

    losses, tape = losses_beside(0)
    others, _ = losses_beside(1)
    losses[0].backward()
    strange = any(bool(part.squared_norms()[1:].any()) for _, part in tape.parts())
    if strange or not torch.allclose(losses[0], others[0], rtol=1e-3, atol=1e-4):
        raise ValueError(
            "strategy=dp: the loss of an image depends on the others of its batch, or they change places in the "
            "network, so that no gradient is that of one image. Does it normalise over the batch? model.norm=group "
            "replaces BatchNorm"
        )
    if found := [name for name, each in parameters.items() if each.grad is not None]:
        raise UnknownGradientError(
            f"strategy=dp: {found[0]} is used in a way of which the gradient for a single image is not known. "
            "docs/privacy.md lists the networks that can be trained"
        )
    if kept := [name for name, each in model.state_dict().items() if not torch.equal(each, state[name])]:
        raise ValueError(
            f"strategy=dp: {kept[0]} changes with the images that the network sees in training, and would be saved "
            "without noise. Take that layer out"
        )


def _has(trainer: Trainer, kind: type) -> bool:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(each, kind) for each in callbacks)


def _watched(trainer: Trainer, model: DictModule) -> list[str]:
    """The metrics that callbacks and the learning rate follow."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    names = [each.monitor for each in callbacks if isinstance(each, EarlyStopping | ModelCheckpoint)]
    plateau = any(isinstance(each.scheduler, ReduceLROnPlateau) for each in trainer.lr_scheduler_configs)
    return [name for name in [*names, *([model.monitor] if plateau else [])] if name is not None]

"""What strategy=dp cannot be combined with: looked at before the first step."""

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor
from torch.optim import LBFGS

from imago.callbacks.run_record import RunRecord
from imago.data.module import ImageDataModule
from imago.dp.gradients import Tape, UnknownGradientError
from imago.dp.secret import PoissonBatchSampler
from imago.module import DictModule

try:
    from lightning.pytorch.callbacks import WeightAveraging
except ImportError:  # before Lightning 2.6
    WeightAveraging = StochasticWeightAveraging  # type: ignore[misc, assignment]

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
    """Tries the network on two grey images, in training.

    Raises:
        ValueError: The gradient of one is not known, or depends on the other image; or what is seen is kept elsewhere.
    """
    data = cast(ImageDataModule, model.trainer.datamodule)  # type: ignore[attr-defined]
    batch: dict[str, Any] = data.some_images("train", 2, model.device)
    image = torch.rand_like(batch["image"].expand(2, *batch["image"].shape[1:]), dtype=torch.float32)
    image.requires_grad_()
    batch = batch | {"image": image, "label": batch["label"].expand(2), "index": batch["index"].expand(2)}
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with Tape(parameters, 2, mode):
        losses = model.criterions.per_image(model(batch))["total"]
    losses[0].backward()
    if isinstance(image.grad, Tensor) and bool(image.grad[1].any()):
        raise ValueError(
            "strategy=dp: the loss of an image depends on the others of its batch, so that no gradient is that of one "
            "image. Does the network normalise over the batch? model.norm=group replaces BatchNorm"
        )
    if found := [name for name, each in parameters.items() if each.grad is not None]:
        raise UnknownGradientError(
            f"strategy=dp: {found[0]} is used in a way of which the gradient for a single image is not known. "
            "docs/privacy.md lists the networks that can be trained"
        )
    if kept := [name for name, each in model.named_buffers() if not torch.equal(each, buffers[name])]:
        raise ValueError(
            f"strategy=dp: {kept[0]} changes with the images that the network sees in training, and would be saved "
            "without noise. Take that layer out"
        )


def _has(trainer: Trainer, kind: type) -> bool:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(each, kind) for each in callbacks if not isinstance(each, RunRecord))

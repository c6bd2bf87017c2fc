"""DP-SGD (Abadi et al. 2016) as a strategy of the run: what is released is clipped, noisy and counted."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from imago.config.private import REASONS
from imago.data.module import ImageDataModule
from imago.data.samplers import TrainBatchSampler
from imago.definitions import Batch, Positive, PositiveFloat, Probability, ZeroOrMoreFloat, rounded_up
from imago.dp.accounting import ACCOUNTANTS, Ledger
from imago.dp.budget import PrivacyBudget, delta_for
from imago.dp.clipping import CLIPPINGS
from imago.dp.combinations import check_combinations
from imago.dp.parts import detach_batch, join_batches, mean_of_finite, slice_batch
from imago.dp.report import describe_guarantee, epsilon_text, privacy_report, write_privacy_report
from imago.dp.secret import PoissonBatchSampler, SecretDraws, secret_key, seed_from_entropy
from imago.dp.tape import MODES, Tape
from imago.dp.terms import GradTerm, WithNorms
from imago.dp.transform_trial import try_transforms
from imago.dp.trial import try_network
from imago.errors import UserError
from imago.lightning_internals import data_of
from imago.model.module import DictModule
from imago.terminal import counted

log = logging.getLogger(__name__)


class DifferentialPrivacy(PrivacyBudget):
    """DP-SGD: Poisson batches, clipped per-image gradients and noise, with the privacy budget counted.

    Args:
        noise_multiplier: Standard deviation of the noise as a multiple of the clipping norm. None is 1.1, or, with a
            target, the multiplier that keeps the planned steps within it.
        target_epsilon: Budget; training ends before a step that would spend more.
        max_grad_norm: L2 norm to which the gradient of an image is clipped; its initial value with `adaptive`.
        target_delta: `auto` is the power of ten at or below a tenth of 1 / N, for N train images.
        accountant: `prv` (Gopi et al. 2021, tighter) or `rdp` (Mironov 2017).
        clipping: `flat` clips the gradient of an image as a whole, `per_layer` each parameter by itself, `adaptive` as
            a whole to a norm that follows the median of the norms (Andrew et al. 2021).
        grad_sample_mode: `auto` takes the cheaper way layer by layer, `hooks` computes all per-image gradients, `ghost`
            all norms by Gram matrices; the results are the same.
        physical_batch_size: Images that go through the network at a time, if a whole batch needs too much memory; the
            results are the same. 1 ensures that no image can change the gradient of another by mixing.
        secure_rng: Draw everything from the system's cryptographic generator, which is slower.
        public_init: Your promise that weights in files that training starts from have seen none of the train images,
            where nothing can check it.
    """

    shows_train_images = False

    def __init__(
        self,
        noise_multiplier: ZeroOrMoreFloat | None = None,
        target_epsilon: PositiveFloat | None = None,
        max_grad_norm: PositiveFloat = 1.0,
        target_delta: Literal["auto"] | Probability = "auto",
        accountant: Literal["prv", "rdp"] = "prv",
        clipping: Literal["flat", "per_layer", "adaptive"] = "flat",
        grad_sample_mode: Literal["auto", "hooks", "ghost"] = "auto",
        physical_batch_size: Positive | None = None,
        secure_rng: bool = False,
        public_init: bool = False,
    ) -> None:
        for option, choice, known in (
            ("accountant", accountant, ACCOUNTANTS),
            ("clipping", clipping, tuple(CLIPPINGS)),
            ("grad_sample_mode", grad_sample_mode, MODES),
        ):
            if choice not in known:
                raise UserError(f"strategy.{option} must be {', '.join(known[:-1])} or {known[-1]}, got {choice}.")
        for option, value in (
            ("target_epsilon", target_epsilon),
            ("max_grad_norm", max_grad_norm),
            ("physical_batch_size", physical_batch_size),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"strategy.{option} must be a number above 0, got {value}.")
        if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
            raise UserError(f"strategy.noise_multiplier must be a number (0 or more), got {noise_multiplier}.")
        if noise_multiplier == 0 and target_epsilon is not None:
            raise UserError(f"strategy=dp and {REASONS['no_noise']}.")
        if target_delta != "auto" and not (isinstance(target_delta, float) and 0 < target_delta < 1):
            raise UserError(f"strategy.target_delta must be auto or a number between 0 and 1, got {target_delta}.")
        super().__init__(CLIPPINGS[clipping](max_grad_norm), noise_multiplier, target_epsilon, target_delta, accountant)
        self.grad_sample_mode = grad_sample_mode
        self.physical_batch_size = physical_batch_size
        self.secure_rng = secure_rng
        self.public_init = public_init
        self.draws = SecretDraws(secure_rng)
        self.clipping_name = clipping
        self.replaced: list[str] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._sums: dict[str, Tensor] = {}
        self.ignored = 0
        """Number of train images, counted each time, whose gradient was not finite: nothing of them was used."""
        self._folder: Path | None = None
        self._publish: Callable[[], None] = lambda: None
        self._tried_epoch = -1
        self._unprotected = ""
        self._is_accepted = False  # the network was tried, and the budget allows a step

    draw_key = staticmethod(secret_key)

    def seed_draws(self, *parts: int | str) -> None:
        del parts
        seed_from_entropy()

    def batch_stage(self, batch: Batch, stage: Callable[[Batch], Batch]) -> Batch:
        """Apply the stage in parts of `physical_batch_size`; instead of its place in the data every image has a secret
        number (int64), so that all draws by `index` and the seed are made anew."""
        count = len(batch["label"])
        if not count:
            return stage(batch)
        seed_from_entropy()
        hidden = batch | {"index": self.draws.numbers(count, batch["label"].device), "epoch": 0}
        size = self.physical_batch_size or count
        return join_batches([stage(slice_batch(hidden, count, first, size)) for first in range(0, count, size)])

    def check_images(self, images: int, batch_size: int) -> None:
        if batch_size > images:
            raise UserError(
                f"strategy=dp: data.batch_size={batch_size} is above the {images} train images, and each is drawn with "
                "the probability batch size / images, which cannot be above 1. Type "
                f"data.batch_size={max(1, images // 2)}, or up to {images}, with which every step uses all"
            )
        if self._target_delta != "auto" and float(self._target_delta) >= 1 / images:
            raise UserError(
                f"strategy.target_delta={self._target_delta:g} is not below 1 / {images}, the number of train images: "
                "such a guarantee would allow publishing one of them. Type strategy.target_delta=auto, which is "
                f"{delta_for(images):g} here"
            )

    def train_batch_sampler(self, sampler: Sampler[Any]) -> PoissonBatchSampler:
        if type(sampler) is not TrainBatchSampler:
            raise UserError(
                f"strategy=dp draws its own batches, and {type(sampler).__name__} draws them in another way: the "
                "reported privacy would be wrong. Use the batches of Imago's data modules, or strategy=none"
            )
        if sampler.weights is not None:
            raise UserError(f"strategy=dp and {REASONS['sampler']}.")
        self.check_images(sampler.size, sampler.batch_size)
        made = PoissonBatchSampler(sampler.size, sampler.batch_size, self.draws)
        self.num_examples, self.sample_rate = sampler.size, made.rate
        return made

    def on_fit_start(
        self, trainer: Trainer, model: DictModule, folder: Path, publish: Callable[[], None] = lambda: None
    ) -> None:
        check_combinations(trainer, model)
        if self.target_epsilon is None:
            log.warning(
                "strategy=dp without strategy.target_epsilon=: training does not end at any epsilon. To set a limit, "
                "type for example strategy.target_epsilon=3"
            )
        data = cast(ImageDataModule, data_of(trainer))
        drawn = ", drawn from train" if "seed" in (data.sets.drawn_val or ()) else ""
        self._unprotected = f"the {counted(len(data.split('val')), 'val image')}{drawn}"
        self._trainer = trainer
        ckpt_path = trainer.ckpt_path
        same = ckpt_path is not None and folder.absolute() in Path(ckpt_path).absolute().parents
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.attach(parameters, self.open_ledger(folder, same))
        self.settle_noise(trainer)
        self.settle_accountant(trainer)
        try_transforms(data, model.device, self.physical_batch_size)
        log.info("strategy=dp: testing that the network keeps images apart (may take a minute)")
        try_network(model, data, self.grad_sample_mode, self.physical_batch_size)
        log.info("strategy=dp: in a trial, no image changed the gradient of another. A trial is not a proof")
        self._tried_epoch = trainer.current_epoch
        self.replaced = list(model.replaced_norms)
        self._folder, self._publish = folder / "reports", publish
        self._is_accepted = True
        if self.noise_multiplier == 0:
            log.warning("strategy.noise_multiplier=0: without noise there is no privacy")

    def on_train_epoch_start(self, model: DictModule) -> None:
        """Try the network again, because its weights have changed."""
        trainer = model.trainer
        if trainer.current_epoch == self._tried_epoch:
            return
        self._tried_epoch = trainer.current_epoch
        data = cast(ImageDataModule, data_of(trainer))
        try_network(model, data, self.grad_sample_mode, self.physical_batch_size, self._tried_epoch)

    def attach(self, parameters: Mapping[str, nn.Parameter], ledger: Ledger) -> None:
        """Attach the trained parameters, and the ledger of steps."""
        self._parameters = dict(parameters)
        self._ledger = ledger

    def forward(self, model: DictModule, batch: Batch) -> tuple[Batch, Mapping[str, Tensor]]:
        """Run forward and backward in parts of `physical_batch_size` images, and sum the clipped gradients; the losses
        are means over the batch, scalar tensors."""
        self._sums = {}
        seed_from_entropy()  # for dropout, whoever makes the batches
        count = len(batch["label"])
        names = [*model.criterions.criterions, "total"]
        if not count:
            return batch, dict.fromkeys(names, torch.zeros((), device=model.device))
        size = self.physical_batch_size or count
        done = [self._part(model, slice_batch(batch, count, first, size)) for first in range(0, count, size)]
        losses = {name: mean_of_finite(torch.cat([losses[name] for _, losses in done])) for name in names}
        return join_batches([part for part, _ in done]), losses

    def backward(self, loss: Tensor) -> None:
        """Do nothing: `forward` has computed the gradients."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any]) -> None:
        assert self._ledger is not None
        assert self.noise_multiplier is not None
        if self._allowed is not None and self.steps >= self._allowed:
            raise RuntimeError(f"The step would spend more than strategy.target_epsilon={self.target_epsilon}.")
        closure()
        self._count_ahead()
        self._ledger.add(self.noise_multiplier, self.sample_rate)
        self._counted_ahead = max(0, self._counted_ahead - 1)
        expected = self.sample_rate * self.num_examples
        std = self.clipping.noise_std(self.noise_multiplier)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                noisy = self.draws.normal(parameter, std)
                if name in self._sums:
                    noisy += self._sums[name]
                parameter.grad = noisy.div_(expected).to(parameter.dtype)
        self.clipping.adapt(self.draws, self.noise_multiplier, expected)
        optimizer.step()
        if self._trainer is not None and self.steps == self._allowed:
            self._trainer.should_stop = True

    def microbatch_size(self, images: int) -> int:
        return min(images, self.physical_batch_size or images)

    def epoch_metrics(self) -> dict[str, float]:
        if self._ledger is None:
            return {}
        epsilon = self.epsilon()
        return {"privacy/epsilon": float(rounded_up(epsilon)) if math.isfinite(epsilon) else epsilon}

    def report(self) -> dict[str, Any]:
        if not self._is_accepted:  # training has not begun
            return {}
        report = privacy_report(self)
        kept = ("epsilon", "delta", "unit", "steps", "counted", "noise_multiplier", "max_grad_norm", "sample_rate")
        return {name: report[name] for name in kept} | {
            "epsilon": epsilon_text(report["epsilon"]),
            "accountant": report["accountant"],
            "guarantee": describe_guarantee(self),
            "not protected": self._unprotected,
            "publish": "the output of ml-export, not this folder (docs/privacy.md)",
            "details": "reports/privacy.md",
        }

    def write_report(self, folder: Path, is_final: bool = False) -> None:
        self._counted_ahead = 0
        write_privacy_report(self, folder, is_final)

    def _count_ahead(self) -> None:
        """Write a report that covers the rest of the epoch, before a step that the one on the disk does not cover.

        However the run dies, the report then says no less than the ledger and the checkpoints.
        """
        if self._folder is None or self._counted_ahead:
            return
        steps = math.ceil(1 / self.sample_rate)
        self._counted_ahead = steps if self._allowed is None else min(steps, self._allowed - self.steps)
        write_privacy_report(self, self._folder)
        self._publish()

    def _part(self, model: DictModule, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        with Tape(self._parameters, len(batch["label"]), self.grad_sample_mode) as tape:
            batch = model(batch)
            losses = model.criterions.per_image(batch)
        losses["total"].sum().backward()
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            parts: dict[str, GradTerm] = {name: WithNorms(part, part.squared_norms()) for name, part in tape.parts()}
            norms = torch.stack([part.squared_norms() for part in parts.values()]).sum(dim=0)
            if not bool(torch.isfinite(norms).all()):
                parts = self._without(parts, ~torch.isfinite(norms))
            for name, clipped in self.clipping.clipped(parts, len(self._parameters)):
                self._sums[name] = self._sums[name] + clipped if name in self._sums else clipped
        return detach_batch(batch), {name: loss.detach() for name, loss in losses.items()}

    def _without(self, parts: dict[str, GradTerm], images: Tensor) -> dict[str, GradTerm]:
        """Zero the gradients of `images`, bool (n,), that are not finite: no single image may end a private run."""
        if not self.ignored:
            log.warning(
                "The gradient of an image is not finite, and counts as zero. reports/privacy.json counts such images "
                "(images_ignored)"
            )
        self.ignored += int(images.sum())
        return {name: part.without(images) for name, part in parts.items()}

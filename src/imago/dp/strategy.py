"""DP-SGD (Abadi et al. 2016) as a strategy of the run: what is released is clipped, noisy and counted."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from imago.data.loading import TrainBatchSampler
from imago.data.module import ImageDataModule
from imago.dp.accounting import ACCOUNTANTS, Ledger, Steps, accountant_of, epsilon, extended, noise_for, steps_within
from imago.dp.clipping import CLIPPINGS, Adaptive
from imago.dp.combinations import check_combinations
from imago.dp.gradients import MODES, Part, Tape, WithNorms
from imago.dp.report import in_words, privacy_report, write_privacy_report
from imago.dp.secret import PoissonBatchSampler, SecretDraws, secret_key, seed_from_entropy
from imago.dp.transform_trial import try_transforms
from imago.dp.trial import try_network
from imago.module import DictModule
from imago.strategy import Strategy
from imago.transforms import Batch

log = logging.getLogger(__name__)

LEDGER = "privacy_ledger.jsonl"
SPENT = "privacy budget spent"
NOISE = 1.1


class DifferentialPrivacy(Strategy):
    """Trains with Poisson batches, clipped gradients of each image, and noise; counts what that spends.

    Args:
        noise_multiplier: Standard deviation of the noise as a multiple of the clipping norm. None is 1.1, or, with a
            target, what keeps the planned steps within it.
        target_epsilon: Training ends before a step that would spend more.
        max_grad_norm: The norm that the gradient of an image is clipped to; where it starts, with `adaptive`.
        target_delta: `auto` is the power of ten at or below a tenth of 1 / N, for N train images.
        accountant: `prv` (Gopi et al. 2021, tighter) or `rdp` (Mironov 2017).
        clipping: `flat` clips the gradient of an image as a whole, `per_layer` each parameter by itself, `adaptive` as
            a whole to a norm that follows the median of the norms (Andrew et al. 2021).
        grad_sample_mode: `auto` takes the cheaper way layer by layer, `hooks` makes all gradients of single images,
            `ghost` all norms by Gram matrices; the results are the same.
        physical_batch_size: Images that go through the network at a time, where a whole batch needs too much memory;
            the results are the same. 1 makes sure that no image can change the gradient of another by mixing.
        secure_rng: Draw everything from the system's cryptographic generator, which is slower.
    """

    shows_train_images = False

    def __init__(
        self,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        max_grad_norm: float = 1.0,
        target_delta: float | str = "auto",
        accountant: str = "prv",
        clipping: str = "flat",
        grad_sample_mode: str = "auto",
        physical_batch_size: int | None = None,
        secure_rng: bool = False,
    ) -> None:
        for option, given, known in (
            ("accountant", accountant, ACCOUNTANTS),
            ("clipping", clipping, tuple(CLIPPINGS)),
            ("grad_sample_mode", grad_sample_mode, MODES),
        ):
            if given not in known:
                raise ValueError(f"strategy.{option}={given}: give {', '.join(known[:-1])} or {known[-1]}.")
        for option, value in (
            ("target_epsilon", target_epsilon),
            ("max_grad_norm", max_grad_norm),
            ("physical_batch_size", physical_batch_size),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"strategy.{option}={value}: give a number above 0.")
        if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
            raise ValueError(f"strategy.noise_multiplier={noise_multiplier}: give a number, 0 or more.")
        if noise_multiplier == 0 and target_epsilon is not None:
            raise ValueError(
                "strategy.noise_multiplier=0 spends any strategy.target_epsilon= at once: type more noise."
            )
        if target_delta != "auto" and not (isinstance(target_delta, float) and 0 < target_delta < 1):
            raise ValueError(f"strategy.target_delta={target_delta}: give auto, or a number between 0 and 1.")
        self.target_epsilon = target_epsilon
        self.accountant = accountant
        self.grad_sample_mode = grad_sample_mode
        self.physical_batch_size = physical_batch_size
        self.secure_rng = secure_rng
        self.noise_multiplier = noise_multiplier
        self.draws = SecretDraws(secure_rng)
        self.clipping = CLIPPINGS[clipping](max_grad_norm)
        self.clipping_name = clipping
        self.num_examples = 0
        self.sample_rate = 1.0
        self.replaced: list[str] = []
        self._target_delta = target_delta
        self._ledger: Ledger | None = None
        self._state: dict[str, Any] | None = None
        self._allowed: int | None = None  # steps in all
        self._ends_early = False
        self._parameters: dict[str, nn.Parameter] = {}
        self._sums: dict[str, Tensor] = {}
        self._trainer: Trainer | None = None
        self.ignored = 0
        """Images of train batches, counted each time, whose gradient was not finite: nothing of them was used."""
        self._folder: Path | None = None
        self._publish: Callable[[], None] = lambda: None
        self._counted_ahead = 0  # steps that the report on the disk covers, and that may not have been taken yet
        self._tried_epoch = -1

    draw_key = staticmethod(secret_key)

    def seed_draws(self, *parts: int | str) -> None:
        del parts
        seed_from_entropy()

    def batch_stage(self, batch: Batch, stage: Callable[[Batch], Batch]) -> Batch:
        """In parts of `physical_batch_size`; instead of its place in the data each image has a secret number, so that
        whatever is drawn by `index` and the seed is drawn anew."""
        count = len(batch["label"])
        if not count:
            return stage(batch)
        seed_from_entropy()
        hidden = batch | {"index": self.draws.numbers(count, batch["label"].device), "epoch": 0}
        size = self.physical_batch_size or count
        return _joined([stage(_rows(hidden, count, first, size)) for first in range(0, count, size)])

    def train_batch_sampler(self, sampler: Sampler[Any]) -> PoissonBatchSampler:
        if type(sampler) is not TrainBatchSampler:
            raise ValueError(
                f"strategy=dp draws its batches itself, and {type(sampler).__name__} draws them in another way: the "
                "privacy that is reported would not be true. Use the batches of Imago's data modules, or strategy=none"
            )
        made = PoissonBatchSampler(sampler.size, sampler.batch_size, self.draws)
        self.num_examples, self.sample_rate = sampler.size, made.rate
        return made

    def begin(
        self, trainer: Trainer, model: DictModule, folder: Path, publish: Callable[[], None] = lambda: None
    ) -> None:
        check_combinations(trainer, model)
        if self.target_epsilon is None:
            log.warning(
                "strategy=dp without strategy.target_epsilon=: nothing ends the training when epsilon has grown. "
                "Type strategy.target_epsilon=3, for example"
            )
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        try_transforms(data, model.device, self.physical_batch_size)
        try_network(model, data, self.grad_sample_mode, self.physical_batch_size)
        log.info("strategy=dp: tried whether images change each other's gradients: none did. A trial is no proof")
        self._tried_epoch = trainer.current_epoch
        self._trainer = trainer
        self.replaced = list(model.replaced_norms)
        parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        ckpt_path = trainer.ckpt_path
        same = ckpt_path is not None and folder.absolute() in Path(ckpt_path).absolute().parents
        self.attach(parameters, self._opened_ledger(folder, same))
        self._folder, self._publish = folder / "reports", publish
        self._settle_noise(trainer)
        self._settle_accountant(trainer)
        if self.delta >= 1 / self.num_examples:
            log.warning(
                "strategy.target_delta=%g is not below 1 / %d, the number of train images: such a promise would allow "
                "one of them to be published",
                self.delta,
                self.num_examples,
            )
        if self.noise_multiplier == 0:
            log.warning("strategy.noise_multiplier=0: without noise there is no privacy")

    def begin_epoch(self, model: DictModule) -> None:
        """Tries the network once more: its weights have moved."""
        trainer = model.trainer
        if trainer.current_epoch == self._tried_epoch:
            return
        self._tried_epoch = trainer.current_epoch
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        try_network(model, data, self.grad_sample_mode, self.physical_batch_size, self._tried_epoch)

    def attach(self, parameters: Mapping[str, nn.Parameter], ledger: Ledger) -> None:
        """Takes what is trained, and where steps are noted."""
        self._parameters = dict(parameters)
        self._ledger = ledger

    @property
    def delta(self) -> float:
        """The delta of the (epsilon, delta) guarantee."""
        if self._target_delta == "auto":
            return 10.0 ** -math.ceil(math.log10(10 * max(self.num_examples, 1)))
        return float(self._target_delta)

    @property
    def history(self) -> list[Steps]:
        """All noisy steps that the weights depend on, or that were taken in this run and lost."""
        return self._ledger.history if self._ledger is not None else []

    @property
    def steps(self) -> int:
        """How many these are."""
        return sum(count for _, _, count in self.history)

    @property
    def counted(self) -> list[Steps]:
        """`history`, and the steps that the report on the disk counts ahead."""
        return extended(self.history, self.noise_multiplier or 0.0, self.sample_rate, self._counted_ahead)

    def epsilon(self) -> float:
        """An upper bound of what the steps in `history` have spent; infinite where none is known."""
        return epsilon(self.history, self.delta, self.accountant)

    def forward(self, model: DictModule, batch: Batch) -> tuple[Batch, Mapping[str, Tensor]]:
        """Forward and backward, in parts of `physical_batch_size` images; the clipped gradients are summed up."""
        self._sums = {}
        seed_from_entropy()  # of dropout, whoever makes the batches
        count = len(batch["label"])
        names = [*model.criterions.criterions, "total"]
        if not count:
            return batch, dict.fromkeys(names, torch.zeros((), device=model.device))
        size = self.physical_batch_size or count
        done = [self._part(model, _rows(batch, count, first, size)) for first in range(0, count, size)]
        losses = {name: _finite_mean(torch.cat([losses[name] for _, losses in done])) for name in names}
        return _joined([part for part, _ in done]), losses

    def backward(self, loss: Tensor) -> None:
        """The gradients are there."""

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

    def at_once(self, images: int) -> int:
        return min(images, self.physical_batch_size or images)

    def epoch_metrics(self) -> dict[str, float]:
        return {"privacy/epsilon": self.epsilon()} if self._ledger is not None else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [list(each) for each in self.history],
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.clipping.norm,
            "epsilon": self.epsilon(),
            "delta": self.delta,
            "accountant": self.accountant,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "history" not in state:
            raise ValueError(
                "strategy=dp: the checkpoint was trained without privacy, and nobody could say what goes on from it. "
                "Start from the weights: model.net.weights=FILE (.safetensors, .pth), if they are public"
            )
        self._state = state

    def why_it_ended(self) -> str | None:
        return SPENT if self._ends_early and self.steps == self._allowed else None

    def report(self) -> dict[str, Any]:
        if self._ledger is None:  # it has not begun
            return {}
        report = privacy_report(self)
        kept = ("epsilon", "delta", "unit", "steps", "counted", "noise_multiplier", "max_grad_norm", "sample_rate")
        return {name: report[name] for name in kept} | {
            "accountant": report["accountant"],
            "guarantee": in_words(self),
            "details": "reports/privacy.md",
        }

    def write_report(self, folder: Path, is_final: bool = False) -> None:
        self._counted_ahead = 0
        write_privacy_report(self, folder, is_final)

    def _opened_ledger(self, folder: Path, is_the_same_run: bool) -> Ledger:
        ledger = Ledger(folder / LEDGER)
        before: list[Steps] = [(noise, rate, count) for noise, rate, count in (self._state or {}).get("history", [])]
        taken = sum(count for _, _, count in before)
        if ledger.begins_with(before):
            if lost := ledger.steps - taken:
                log.warning("%d steps were taken and are lost: they are counted all the same", lost)
        elif ledger.is_begun_by(before) and (ledger.steps or is_the_same_run):
            raise ValueError(
                f"{ledger.file} has {ledger.steps} steps, the checkpoint {taken}: lines are missing, and nobody can "
                "say what was spent."
            )
        else:
            ledger.add_all(before)
        return ledger

    def _count_ahead(self) -> None:
        """Before a step that the report on the disk does not cover: writes one that covers the rest of the epoch.

        However the run dies, the report then says no less than what the ledger and the checkpoints have.
        """
        if self._folder is None or self._counted_ahead:
            return
        steps = math.ceil(1 / self.sample_rate)
        self._counted_ahead = steps if self._allowed is None else min(steps, self._allowed - self.steps)
        write_privacy_report(self, self._folder)
        self._publish()

    def _settle_accountant(self, trainer: Trainer) -> None:
        """Ends a run here, and not in its middle, whose epsilon no accountant can bound."""
        planned = self._allowed if self._allowed is not None else trainer.estimated_stepping_batches
        if self.noise_multiplier == 0 or math.isinf(planned):
            return
        assert self.noise_multiplier is not None
        history = extended(self.history, self.noise_multiplier, self.sample_rate, max(1, int(planned) - self.steps))
        if math.isinf(epsilon(history, self.delta, self.accountant)):
            raise ValueError(
                f"strategy.noise_multiplier={self.noise_multiplier}: no accountant can bound the epsilon of {planned} "
                f"steps at delta={self.delta:g}. Type more noise"
            )
        if (used := accountant_of(history, self.delta, self.accountant)) != self.accountant:
            log.warning("strategy.accountant=%s cannot count %d steps with so little noise: %s does, which says a "
                        "little more is spent", self.accountant, planned, used)  # fmt: skip
            self.accountant = used

    def _settle_noise(self, trainer: Trainer) -> None:
        """The noise multiplier, and how many steps may be taken in all."""
        planned = trainer.estimated_stepping_batches
        if self._state is not None:
            if isinstance(self.clipping, Adaptive):
                self.clipping.norm = self._state["max_grad_norm"]
            if self.noise_multiplier is None:
                self.noise_multiplier = float(self._state["noise_multiplier"])
        if self.noise_multiplier is None and self.target_epsilon is None:
            self.noise_multiplier = NOISE
        if self.target_epsilon is None:
            return
        if self.noise_multiplier is None:
            if math.isinf(planned):
                raise ValueError(
                    "strategy.target_epsilon= without an end: type trainer.max_epochs=, or "
                    "strategy.noise_multiplier= too."
                )
            self.noise_multiplier = noise_for(
                self.target_epsilon, self.delta, self.sample_rate, int(planned), self.accountant
            )
            log.info(
                "strategy.noise_multiplier=%.4f keeps %d steps within epsilon %g (delta %.2g)",
                *(self.noise_multiplier, planned, self.target_epsilon, self.delta),
            )
        most = int(planned) if math.isfinite(planned) else 10**6
        step = (self.noise_multiplier, self.sample_rate)
        left = steps_within(self.target_epsilon, self.history, *step, most, self.delta, self.accountant)
        self._allowed, self._ends_early = self.steps + left, left < most
        if left == 0 and not self.steps:
            raise ValueError(
                f"strategy.target_epsilon={self.target_epsilon} with "
                f"strategy.noise_multiplier={self.noise_multiplier}: a single step would spend more. "
                "Type more noise, or a larger target."
            )
        if left == 0:
            trainer.should_stop = True
        elif left < most and math.isfinite(planned):
            log.info("The privacy budget is spent after %d steps of %d", left, most)

    def _part(self, model: DictModule, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        with Tape(self._parameters, len(batch["label"]), self.grad_sample_mode) as tape:
            batch = model(batch)
            losses = model.criterions.per_image(batch)
        losses["total"].sum().backward()
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            parts: dict[str, Part] = {name: WithNorms(part, part.squared_norms()) for name, part in tape.parts()}
            norms = torch.stack([part.squared_norms() for part in parts.values()]).sum(dim=0)
            if not bool(torch.isfinite(norms).all()):
                parts = self._without(parts, ~torch.isfinite(norms))
            for name, clipped in self.clipping.clipped(parts, len(self._parameters)):
                self._sums[name] = self._sums[name] + clipped if name in self._sums else clipped
        return _detached(batch), {name: loss.detach() for name, loss in losses.items()}

    def _without(self, parts: dict[str, Part], images: Tensor) -> dict[str, Part]:
        """No single image may end a private run: what is not finite of it counts as 0, and nothing else changes."""
        if not self.ignored:
            log.warning(
                "The gradient of an image is not finite: nothing of it is used. How often that happens is counted in "
                "reports/privacy.json (images_ignored)"
            )
        self.ignored += int(images.sum())
        return {name: part.without(images) for name, part in parts.items()}


def _finite_mean(losses: Tensor) -> Tensor:
    """The mean of the losses that are finite; 0 where none is."""
    finite = torch.isfinite(losses)
    return torch.where(finite, losses, 0.0).sum() / finite.sum().clamp_min(1)


def _rows(batch: Batch, count: int, first: int, size: int) -> Batch:
    """The images from `first` on of a batch of `count`."""
    if first == 0 and size >= count:
        return batch
    return {key: value[first : first + size] if _is_per_image(value, count) else value for key, value in batch.items()}


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part["label"]) for part in parts]
    joined: Batch = {}
    for key, value in parts[0].items():
        each = [part[key] for part in parts]
        if isinstance(value, Tensor) and all(_is_per_image(v, n) for v, n in zip(each, sizes, strict=True)):
            joined[key] = torch.cat(each)
        elif isinstance(value, list):
            joined[key] = [entry for part in each for entry in part]
        else:
            joined[key] = value
    return joined


def _is_per_image(value: Any, count: int) -> bool:
    return (isinstance(value, Tensor) and value.ndim > 0 and len(value) == count) or (
        isinstance(value, list) and len(value) == count
    )


def _detached(batch: Batch) -> Batch:
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in batch.items()}

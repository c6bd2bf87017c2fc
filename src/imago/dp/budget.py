"""The privacy budget of a training run: what its steps have spent, and how many steps remain."""

import logging
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from imago.config.private import REASONS
from imago.definitions import BUDGET_SPENT, rounded_up
from imago.dp.accounting import FINE, Ledger, Steps, accountant_of, epsilon, extended, noise_for, steps_within
from imago.dp.clipping import Adaptive, Clipping
from imago.errors import UserError
from imago.model.strategy import Strategy
from imago.terminal import counted

log = logging.getLogger(__name__)

LEDGER = "privacy_ledger.jsonl"
NOISE = 1.1
NO_END = -1
"""Number of planned steps of a training without an end."""


def delta_for(images: int) -> float:
    """Return the power of ten at or below a tenth of 1 / N, for N train images."""
    return 10.0 ** -math.ceil(math.log10(10 * max(images, 1)))


class PrivacyBudget(Strategy):
    """Strategy that counts noisy steps in a ledger, and ends training before a step that would exceed the budget.

    Args:
        clipping: Clipping of the gradients of single images.
        noise_multiplier: As in DifferentialPrivacy.
        target_epsilon: As in DifferentialPrivacy.
        target_delta: As in DifferentialPrivacy.
        accountant: As in DifferentialPrivacy.
    """

    def __init__(
        self,
        clipping: Clipping,
        noise_multiplier: float | None,
        target_epsilon: float | None,
        target_delta: float | str,
        accountant: str,
    ) -> None:
        self.clipping = clipping
        self.noise_multiplier = noise_multiplier
        self.target_epsilon = target_epsilon
        self.accountant = accountant
        self.num_examples = 0
        self.sample_rate = 1.0
        self._target_delta = target_delta
        self._ledger: Ledger | None = None
        self._state: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._allowed: int | None = None  # steps in all
        self._planned: float = math.inf  # steps in all
        self._before_planned: float | None = None  # of the run that is resumed
        self._ends_early = False
        self.plans: list[Steps] = []
        """Noise, sample rate and number of steps in all, as planned when training began, and whenever they changed."""
        self._counted_ahead = 0  # steps that the report on the disk covers, perhaps not taken yet

    @property
    def delta(self) -> float:
        """The delta of the (epsilon, delta) guarantee."""
        if self._target_delta == "auto":
            return delta_for(self.num_examples)
        return float(self._target_delta)

    @property
    def history(self) -> list[Steps]:
        """All noisy steps that the weights depend on, or that were taken in this run and lost."""
        return self._ledger.history if self._ledger is not None else []

    @property
    def steps(self) -> int:
        """Number of steps in `history`."""
        return sum(count for _, _, count in self.history)

    @property
    def counted(self) -> list[Steps]:
        """Steps of `history`, and those that the report on the disk counts ahead."""
        return extended(self.history, self.noise_multiplier or 0.0, self.sample_rate, self._counted_ahead)

    def epsilon(self) -> float:
        """Return an upper bound of the epsilon that `history` has spent; infinite if none is known."""
        return epsilon(self.history, self.delta, self.accountant)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [list(entry) for entry in self.history],
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.clipping.norm,
            "epsilon": self.epsilon(),
            "delta": self.delta,
            "accountant": self.accountant,
            "assumed": list(self.assumed),
            "planned": self._planned if math.isfinite(self._planned) else None,
            "plans": [list(plan) for plan in self.plans],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "history" not in state:
            raise UserError(
                "strategy=dp: the checkpoint was trained without privacy, and a run that was not private cannot become "
                "private. Start a new run, without ckpt_path= and resume=. If the checkpoint saw other images only, "
                "type model.init_from= instead"
            )
        self._state = state
        self._before_planned = state.get("planned")
        plans = state.get("plans", state["history"][-1:])  # earlier versions did not record them: steps so far
        self.plans = [(noise, rate, count) for noise, rate, count in plans]
        before = [str(text) for text in state.get("assumed", []) if text not in self.assumed]
        for text in before:
            log.warning("%s", text)
        self.assumed = [*self.assumed, *before]

    def stop_reason(self) -> str | None:
        is_through = self._trainer is not None and self._trainer.global_step >= self._planned
        return BUDGET_SPENT if self._ends_early and self.steps == self._allowed and not is_through else None

    def open_ledger(self, folder: Path, is_the_same_run: bool) -> Ledger:
        ledger = Ledger(folder / LEDGER)
        before: list[Steps] = [(noise, rate, count) for noise, rate, count in (self._state or {}).get("history", [])]
        taken = sum(count for _, _, count in before)
        if ledger.begins_with(before):
            if lost := ledger.steps - taken:
                log.warning("%d steps were taken and lost. They count towards the privacy budget all the same", lost)
        elif ledger.is_begun_by(before) and (ledger.steps or is_the_same_run):
            raise UserError(
                f"{ledger.file} has {ledger.steps} steps, the checkpoint has {taken}: lines are missing, and the "
                "privacy that was spent is unknown."
            )
        else:
            ledger.add_all(before)
        return ledger

    def settle_accountant(self, trainer: Trainer) -> None:
        """Settle the accountant; end the run now, and not midway, if none can bound its epsilon."""
        planned = self._allowed if self._allowed is not None else trainer.estimated_stepping_batches
        if self.noise_multiplier == 0 or math.isinf(planned):
            return
        assert self.noise_multiplier is not None
        history = extended(self.history, self.noise_multiplier, self.sample_rate, max(1, int(planned) - self.steps))
        if math.isinf(epsilon(history, self.delta, self.accountant)):
            raise UserError(
                f"strategy.noise_multiplier={self.noise_multiplier}: no accountant can bound the epsilon of {planned} "
                f"steps at delta={self.delta:g}. Type more noise"
            )
        if (used := accountant_of(history, self.delta, self.accountant)) != self.accountant:
            log.warning("strategy.accountant=%s cannot account for %d steps with so little noise: using %s, which "
                        "reports a slightly larger epsilon", self.accountant, planned, used)  # fmt: skip
            self.accountant = used

    def settle_noise(self, trainer: Trainer) -> None:
        """Settle the noise multiplier, and the number of steps that may be taken in all."""
        self._settle_noise(trainer)
        steps = min(self._planned, math.inf if self._allowed is None else self._allowed)
        plan = (self.noise_multiplier or 0.0, self.sample_rate, int(steps) if math.isfinite(steps) else NO_END)
        if plan not in self.plans[-1:]:
            self.plans = [*self.plans, plan]

    def epsilon_of_plan(self) -> float:
        """Return the epsilon of all planned steps, which holds whenever training ends; infinite if the plan changed,
        or has no end."""
        if len(self.plans) != 1 or self.plans[0][2] == NO_END:
            return math.inf
        noise, rate, steps = self.plans[0]
        return epsilon([(noise, rate, max(steps, self.steps))], self.delta, self.accountant)

    def _settle_noise(self, trainer: Trainer) -> None:
        planned = self._planned = trainer.estimated_stepping_batches
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
                raise UserError(f"strategy=dp and {REASONS['no_end']}.")
            log.info("Searching the noise for epsilon %g and %d steps", self.target_epsilon, planned)
            self.noise_multiplier = noise_for(
                self.target_epsilon, self.delta, self.sample_rate, int(planned), self.accountant
            )
            if self.target_epsilon < 5 * FINE:
                log.warning(
                    "strategy.target_epsilon=%g: the accountant adds at least %g to an epsilon, so that the noise is "
                    "larger than necessary", self.target_epsilon, FINE
                )  # fmt: skip
            log.info(
                "strategy.noise_multiplier=%.4f keeps %d steps within epsilon %g (delta %.2g)",
                *(self.noise_multiplier, planned, self.target_epsilon, self.delta),
            )
        most = int(planned) if math.isfinite(planned) else 10**6
        step = (self.noise_multiplier, self.sample_rate)
        left = steps_within(self.target_epsilon, self.history, *step, most, self.delta, self.accountant)
        self._allowed, self._ends_early = self.steps + left, left < most
        if left == 0 and not self.steps:
            raise UserError(
                f"strategy.target_epsilon={self.target_epsilon} with "
                f"strategy.noise_multiplier={self.noise_multiplier}: a single step would spend more. "
                "Type more noise, or a larger target."
            )
        if left == 0 and (spent := self.epsilon()) > self.target_epsilon:
            raise UserError(
                f"strategy.target_epsilon={self.target_epsilon:g}: the run has already spent epsilon "
                f"{rounded_up(spent) if math.isfinite(spent) else 'infinite'}. Type a larger one"
            )
        if left == 0 and self._before_planned is not None and planned > self._before_planned:
            raise UserError(
                f"epsilon {rounded_up(spent)} of {self.target_epsilon:g} is spent, and one more step would exceed it. "
                f"For more steps type a larger budget, too, for example strategy.target_epsilon="
                f"{_larger(self.target_epsilon)}"
            )
        if left == 0:
            trainer.should_stop = True
        elif left < most - self.steps and math.isfinite(planned):
            after = f"{counted(left, 'more step')} ({self._allowed} in all)" if self.steps else f"{left} steps"
            log.info("The privacy budget is spent after %s of %d", after, most)


def _larger(target: float) -> str:
    """A rounder target above this one, as an example to type."""
    return f"{float(f'{1.5 * target:.1g}'):g}"

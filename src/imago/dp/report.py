"""What a run with strategy=dp guarantees, and what it does not: `reports/privacy.json` and `.md`."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from imago.definitions import rounded_up
from imago.dp.accounting import Steps, epsilon
from imago.dp.clipping import Clipping
from imago.files import write_json, write_text

UNIT = "one image"
PERSONS = "a person with several images, or duplicates: k images have k times the epsilon, and a larger delta"
ROUNDING = "attacks on floating-point noise (strategy.secure_rng=false)"
TIMING = "the timing of steps"
ODOMETER = (
    "if results led to it: epsilon counts the steps as if they had been fixed in advance (for privacy odometers see "
    "Rogers et al. 2016)"
)
OF_PRIVACY = re.compile(r"strategy\b|privacy|private|epsilon|noise\b|public\b", re.IGNORECASE)
"""Words of warnings that concern the guarantee."""
LATER = "The table is computed at the end of training.\n"
FALSE_ALARMS = (0.001, 0.01, 0.1)
ACCOUNTANTS = {"prv": "PRV accountant (Gopi et al. 2021)", "rdp": "RDP accountant (Mironov 2017)"}


class PrivateTraining(Protocol):
    """Private training, as far as a report reads it; `strategy=dp` is one."""

    accountant: str
    clipping: Clipping
    clipping_name: Literal["flat", "per_layer", "adaptive"]
    grad_sample_mode: Literal["auto", "hooks", "ghost"]
    ignored: int
    noise_multiplier: float | None
    num_examples: int
    physical_batch_size: int | None
    plans: list[Steps]
    replaced: list[str]
    sample_rate: float
    secure_rng: bool
    target_epsilon: float | None

    assumed: Sequence[str]
    uncovered: Sequence[str]
    warnings: Sequence[str]

    @property
    def counted(self) -> list[Steps]:
        """All steps that the report covers, including those counted ahead."""

    @property
    def delta(self) -> float:
        """The delta of the (epsilon, delta) guarantee."""

    def epsilon_of_plan(self) -> float:
        """Return the epsilon of all planned steps, which holds whenever training ends; infinite if there is none."""

    @property
    def history(self) -> list[Steps]:
        """All steps that were taken."""

    @property
    def steps(self) -> int:
        """Number of steps that were taken."""


def privacy_report(dp: PrivateTraining) -> dict[str, Any]:
    """Make the report, in plain types. `epsilon` is a number, `unknown` without a bound, or `infinite` without noise.

    During training, steps are counted `ahead`, so that the report says no less than what was spent however the run
    dies. `max_grad_norm` is the latest one if it is adaptive.
    """
    history = dp.counted
    steps = sum(count for _, _, count in history)
    return {
        "mechanism": f"DP-SGD: Poisson sampling, {dp.clipping_name} clipping for each image, Gaussian noise",
        "accountant": dp.accountant,
        "noise_multiplier": dp.noise_multiplier,
        "max_grad_norm": dp.clipping.norm,
        "sample_rate": dp.sample_rate,
        "steps": steps,
        "counted": "exactly" if steps == dp.steps else f"{steps - dp.steps} steps ahead, to the end of the epoch",
        "epsilon": _number(dp, epsilon(history, dp.delta, dp.accountant)),
        "delta": dp.delta,
        "unit": UNIT,
        "num_examples": dp.num_examples,
        "target_epsilon": dp.target_epsilon,
        "grad_sample_mode": dp.grad_sample_mode,
        "physical_batch_size": dp.physical_batch_size,
        "secure_rng": dp.secure_rng,
        "images_ignored": dp.ignored,
        "neighbouring": "two sets of train images of which one has one more image; their number is treated as public",
        "steps_by_noise": [
            {"noise_multiplier": noise, "sample_rate": rate, "steps": count} for noise, rate, count in history
        ],
        "replaced": dp.replaced,
        "warnings": [text for text in dp.warnings if OF_PRIVACY.search(text)],
        "not_covered": _not_covered(dp),
    }


def _not_covered(dp: PrivateTraining) -> list[str]:
    """List what epsilon does not cover: `uncovered` and `assumed` of the training, and what holds for each."""
    ignored = f"the number of gradients that were not finite and were ignored ({dp.ignored})" if dp.ignored else ""
    rounding = "" if dp.secure_rng else ROUNDING
    return list(filter(None, [*dp.assumed, *dp.uncovered, _of_the_end(dp), PERSONS, ignored, rounding, TIMING]))


def _of_the_end(dp: PrivateTraining) -> str:
    """State what holds if results decided how many steps there were, or how much noise; empty where both were fixed."""
    planned, steps = dp.plans[-1][2] if dp.plans else 0, dp.steps
    if len(dp.plans) > 1:
        return f"a change of steps, noise or batch size when the run was resumed, {ODOMETER}"
    if planned < 0:
        return f"the end of training, because no number of steps was planned, {ODOMETER}"
    if steps >= planned:
        return ""
    value = dp.epsilon_of_plan()
    held = f". The epsilon of all planned steps, {rounded_up(value)}, holds in any case" if math.isfinite(value) else ""
    return f"the end of training, after {steps} of {planned} planned steps, {ODOMETER}{held}"


def describe_guarantee(dp: PrivateTraining) -> str:
    """State the guarantee in a sentence."""
    value = epsilon(dp.counted, dp.delta, dp.accountant)
    if not math.isfinite(value):
        return f"no guarantee: epsilon is {_number(dp, value)}"
    rate = most_hits(value, dp.delta, 0.01)
    return (
        f"({rounded_up(value)}, {dp.delta:g})-differentially private for adding or removing one image: a membership "
        f"test with 1% false positives finds at most {rounded_up(100 * rate, 2)}% of the members"
    )


def most_hits(epsilon: float, delta: float, false_alarms: float) -> float:
    """Greatest fraction of members that any membership test finds if it takes a fraction `false_alarms` of the others
    for members (Kairouz et al. 2015, theorem 2.1)."""
    above = math.exp(min(epsilon, 700)) * false_alarms + delta
    below = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return max(0.0, min(1.0, above, below))


def epsilon_text(epsilon: float | str) -> str:
    """Format the `epsilon` of a report or checkpoint: rounded up, or in words where there is no bound."""
    if isinstance(epsilon, str):
        return epsilon
    return rounded_up(epsilon) if math.isfinite(epsilon) else "infinite"


def write_privacy_report(dp: PrivateTraining, folder: Path, is_final: bool = False) -> None:
    """Write both files; at the end of training with the epsilons for other deltas, which can take 20 s."""
    report = privacy_report(dp)
    if is_final:
        report["epsilon_by_delta"] = _by_delta(dp)
    write_json(folder / "privacy.json", report)
    write_text(folder / "privacy.md", _page(dp, report, is_final))


def _page(dp: PrivateTraining, report: dict[str, Any], is_final: bool) -> str:
    value, delta = report["epsilon"], dp.delta
    shown = report | {"epsilon": epsilon_text(value)}
    rows = "".join(f"| {name} | {entry} |\n" for name, entry in shown.items() if not isinstance(entry, list | dict))
    sections = [f"# Privacy\n\n{_guarantee(value, delta)}\n"]
    if isinstance(value, float):
        hits = "".join(
            f"| {rate:.1%} | {rounded_up(100 * most_hits(value, delta, rate), 2)}% |\n" for rate in FALSE_ALARMS
        )
        sections.append(
            "The adversary has the weights after every step, knows all other images, the code, the settings and the "
            "seed, and tests whether one image was trained on:\n\n| false positive rate | true positive rate, at most "
            f"|\n| --- | --- |\n{hits}"
        )
    sections.append(
        "The guarantee holds for the weights of all steps. Publish the output of `ml-export`, not the run folder or "
        "the checkpoints, which contain more about the data (see below).\n"
    )
    sections.append(f"| | |\n| --- | --- |\n{rows}")
    if isinstance(value, float):
        sections.append(f"## Epsilon for other deltas\n\n{_delta_table(report) if is_final else LATER}")
        ahead = f"The steps are counted {report['counted']}.\n\n" if report["steps"] != dp.steps else ""
        sections.append(f"## For a paper\n\n{ahead}{_paragraph(dp, report)}\n")
    replaced = "".join(f"- {name}\n" for name in report["replaced"]) or "- nothing\n"
    sections.append(f"## BatchNorm layers replaced by GroupNorm\n\n{replaced}")
    if report["warnings"]:
        lines = "".join(f"- {' '.join(text.split())}\n" for text in report["warnings"])
        sections.append(f"## Warnings about privacy\n\nAll warnings of the run are in `summary.txt`.\n\n{lines}")
    sections.append("## Not covered\n\n" + "".join(f"- {line}\n" for line in report["not_covered"]))
    return "\n".join(sections)


def _guarantee(value: Any, delta: float) -> str:
    if not isinstance(value, float):
        return f"There is no guarantee: epsilon is {value}."
    epsilon = rounded_up(value)
    return (
        f"The weights are ({epsilon}, {delta:g})-differentially private for adding or removing one image: for any two "
        f"sets of train images D and D' of which one has one more image, and any set S of weights, "
        f"P[M(D) in S] <= exp({epsilon}) P[M(D') in S] + {delta:g}. The number of train images is treated as public, "
        "and so are the sample rate and the number of steps, which follow from it. Taken together, k images "
        f"of one person have an epsilon of k * {epsilon} and a delta of k * exp((k - 1) * {epsilon}) * {delta:g} at "
        "most (group privacy). The draw of val from train, and what else is listed below, is not covered."
    )


def _paragraph(dp: PrivateTraining, report: dict[str, Any]) -> str:
    clipping = {
        "flat": f"the gradient of each image was clipped to an L2 norm of {dp.clipping.norm:g}",
        "per_layer": f"the gradients of each image were clipped layer by layer, to an L2 norm of {dp.clipping.norm:g} "
        "in all",
        "adaptive": "the gradient of each image was clipped to an adaptive L2 norm (Andrew et al. 2021), whose cost is "
        "included",
    }[dp.clipping_name]
    return (
        f"> We trained with DP-SGD (Abadi et al. 2016) on {dp.num_examples} images: {report['steps']} steps, each on a "
        f"Poisson sample with rate {dp.sample_rate:.4g}; {clipping}, and Gaussian noise with multiplier "
        f"{dp.noise_multiplier:.4g} was added. Augmentation and dropout used randomness that is independent of the "
        f"data. The weights are ({rounded_up(report['epsilon'], 2)}, {dp.delta:g})-differentially private for the "
        f"addition or removal of one image, by the {ACCOUNTANTS[dp.accountant]} of Opacus. Validation and test images, "
        "the choice of settings and the choice of the checkpoint are not covered by this guarantee."
        f"{f' Nor is {end}.' if (end := _of_the_end(dp)) else ''}"
    )


def _delta_table(report: dict[str, Any]) -> str:
    rows = "".join(f"| {name} | {epsilon_text(entry)} |\n" for name, entry in report["epsilon_by_delta"].items())
    return f"| delta | epsilon |\n| --- | --- |\n{rows}"


def _by_delta(dp: PrivateTraining) -> dict[str, Any]:
    deltas = sorted({10.0**-power for power in range(3, 9)} | {dp.delta}, reverse=True)
    return {f"{delta:g}": _number(dp, epsilon(dp.history, delta, dp.accountant)) for delta in deltas}


def _number(dp: PrivateTraining, value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "infinite" if any(noise == 0 for noise, _, _ in dp.counted) else "unknown"

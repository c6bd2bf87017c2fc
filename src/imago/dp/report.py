"""What a run with strategy=dp promises, and what it does not: `reports/privacy.json` and `.md`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.writing import write_json, write_text

if TYPE_CHECKING:
    from imago.dp.strategy import DifferentialPrivacy

NOT_COVERED = (
    "which checkpoint was kept as the best one, where it was chosen on private validation images",
    "other runs on the same images: a search over settings spends the budget of each",
    "the learning rate and the end of training, where they follow private validation images",
    "the number of train images, their class counts and their fingerprint, in the checkpoints and the reports",
    "the losses and metrics of training and validation, in the logs, the checkpoints and the reports",
    "the reports about the train and val images: predictions, worst mistakes, thumbnails",
    "pretrained weights, class weights and normalisation: they are taken as public",
)


def privacy_report(dp: "DifferentialPrivacy") -> dict[str, Any]:
    """Plain types. `max_grad_norm` is the last one, where it is adapted."""
    return {
        "mechanism": f"DP-SGD: Poisson sampling, {dp.clipping_name} clipping for each image, Gaussian noise",
        "accountant": dp.accountant,
        "noise_multiplier": dp.noise_multiplier,
        "max_grad_norm": dp.clipping.norm,
        "sample_rate": dp.sample_rate,
        "steps": dp.steps,
        "epsilon": dp.epsilon(),
        "delta": dp.delta,
        "num_examples": dp.num_examples,
        "target_epsilon": dp.target_epsilon,
        "grad_sample_mode": dp.grad_sample_mode,
        "secure_rng": dp.secure_rng,
        "neighbouring": "two sets of train images of which one has one image more",
        "steps_by_noise": [
            {"noise_multiplier": noise, "sample_rate": rate, "steps": count} for noise, rate, count in dp.history
        ],
        "replaced": dp.replaced,
        "not_covered": list(NOT_COVERED),
    }


def write_privacy_report(dp: "DifferentialPrivacy", folder: Path) -> None:
    """Writes both files."""
    told = privacy_report(dp)
    write_json(folder / "privacy.json", told)
    rows = "".join(f"| {name} | {value} |\n" for name, value in told.items() if not isinstance(value, list))
    replaced = "".join(f"- {name}\n" for name in told["replaced"]) or "- nothing\n"
    not_covered = "".join(f"- {each}\n" for each in told["not_covered"])
    write_text(
        folder / "privacy.md",
        f"# Privacy\n\nWhoever sees the weights learns, with a probability of at least 1 - {dp.delta:g}, at most a "
        f"factor of exp({dp.epsilon():.4f}) about whether any one image was trained on.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n## BatchNorm that was replaced by GroupNorm\n\n{replaced}\n"
        f"## Not covered\n\n{not_covered}",
    )

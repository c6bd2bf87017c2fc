"""What private runs on the same images spend together: theorem 3.16 of Dwork and Roth 2014, basic composition."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from imago.definitions import rounded_up
from imago.run.overview import Overview


def total_spent(runs: Sequence[Overview]) -> str:
    """Sum of the epsilons and deltas of private runs: `epsilon 5.5000, delta 2e-05`, or `no bound`."""
    spent = [run.status["epsilon"] for run in runs]
    if not all(isinstance(epsilon, int | float) for epsilon in spent):
        return "no bound"
    deltas = [run.status["delta"] for run in runs if "delta" in run.status]
    known = f", delta {sum(deltas):g}" if len(deltas) == len(spent) else ""  # earlier versions did not record theirs
    return f"epsilon {rounded_up(sum(spent))}{known}"


def private_runs(runs: Sequence[Overview]) -> list[Overview]:
    """Those of the runs that were trained with strategy=dp, however they ended."""
    return [run for run in runs if "epsilon" in run.status]


def on_same_data(run: Overview, folder: str, fingerprint: str) -> bool:
    """Whether a run has read the folder, wherever links lead, one in it or around it, or a copy with these splits."""
    if not run.data:
        return False
    one, other = Path(run.data["folder"]), Path(folder).resolve()
    is_nested = one.is_relative_to(other) or other.is_relative_to(one)
    return is_nested or run.data["fingerprint"] == fingerprint


def describe_totals(runs: Sequence[Overview]) -> Iterator[str]:
    """Sentence for the data of each two or more private runs: what they have spent together."""
    rest = [run for run in private_runs(runs) if run.data]
    while rest:
        group, size = [rest[0]], 0
        while len(group) > size:  # runs on a copy lead to further runs on that copy
            size = len(group)
            group = [
                run
                for run in rest
                if any(on_same_data(run, known.data["folder"], known.data["fingerprint"]) for known in group)
            ]
        rest = [run for run in rest if run not in group]
        if len(group) > 1:
            yield (
                f"Privacy: the {len(group)} private runs on {group[0].data['folder']} have {total_spent(group)} "
                "together. Runs on the same images add up, also those that were deleted or lie elsewhere "
                "(docs/privacy.md)"
            )

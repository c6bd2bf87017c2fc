"""Privacy that runs on the same images spend together: theorem 3.16 of Dwork and Roth 2014, basic composition."""

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from imago.definitions import rounded_up
from imago.run.folder import read_status
from imago.run.overview import Overview, find_runs
from imago.run.saved_yaml import read_yaml
from imago.terminal import counted


def total_spent(runs: Sequence[Overview]) -> str:
    """Sum of the epsilons and deltas of private runs: `epsilon 5.5000, delta 2e-05`, or `no bound`."""
    if any(not _has_bound(run) for run in runs):
        return "no bound"
    spent = sum(Decimal(repr(run.status["epsilon"])) for run in runs)  # as written: they are rounded up already
    deltas = [run.status["delta"] for run in runs if "delta" in run.status]
    known = f", delta {sum(deltas):g}" if len(deltas) == len(runs) else ""  # earlier versions did not record theirs
    return f"epsilon {rounded_up(spent)}{known}"


def _has_bound(run: Overview) -> bool:
    epsilon = run.status["epsilon"]
    return isinstance(epsilon, int | float) and math.isfinite(epsilon)


def others_on_same_data(run_folder: Path, log_dir: Path, folder: str, fingerprint: str) -> list[Overview]:
    """The runs below `log_dir`, but the one in `run_folder`, that have read these images."""
    return [
        run
        for run in find_runs(log_dir)
        if run.folder.resolve() != run_folder.resolve() and on_same_data(run, folder, fingerprint)
    ]


def describe_others(runs: Sequence[Overview], log_dir: Path) -> str:
    """Sentence about the private ones of other runs on the same data; empty without any."""
    private = private_runs(runs)
    if not private:
        return ""
    them = f"{counted(len(private), 'other private run')} on these data below {log_dir.absolute()}"
    if at_fault := [run.folder.name for run in private if not _has_bound(run)]:
        why = f"{at_fault[0]} has no bound of epsilon"
        return f"{them}: {why}, so that for all runs together there is no guarantee (docs/privacy.md)"
    together = "together, " * (len(private) > 1)
    return f"{them}: {together}{total_spent(private)}. Those of this run come on top (docs/privacy.md)"


def is_private_run(folder: Path) -> bool:
    """Whether any file of a run says that it was trained with strategy=dp: the others may be damaged or gone."""
    strategy = str(read_yaml(folder / "config.yaml", "strategy", "_target_"))
    says_so = "epsilon" in read_status(folder / "status.json") or (folder / "reports" / "privacy.json").is_file()
    return says_so or strategy.startswith("imago.dp.")


def private_runs(runs: Sequence[Overview]) -> list[Overview]:
    """Those of the runs that were trained with strategy=dp, however they ended."""
    return [run for run in runs if "epsilon" in run.status]


def on_same_data(run: Overview, folder: str, fingerprint: str) -> bool:
    """Whether a run has read the folder, wherever links lead, one in it or around it, or a copy with these splits."""
    if not run.data:
        return False
    read, asked = Path(run.data["folder"]), Path(folder).resolve()
    is_nested = read.is_relative_to(asked) or asked.is_relative_to(read)
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

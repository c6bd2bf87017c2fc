"""Comparison of a replay with its run: whether the results are identical, and if not, what else has changed."""

from pathlib import Path
from typing import Any

import torch

from imago.checkpoint.read import LAST, read_checkpoint
from imago.files import UnreadableError, read_json, write_json
from imago.report.content import LARGEST


def check_replayable(before: Path) -> None:
    """Raise UserError if the checkpoint that the replay is compared with cannot be read."""
    file = before / "checkpoints" / LAST
    if file.is_file():
        read_checkpoint(file, mmap=True, key="replay")


def compare(before: Path, now: Path) -> dict[str, Any]:
    """Compare two run folders, and write `reports/replay.json` to the second.

    `different` lists the results that differ (epochs, weights, predictions), `around` what may explain it (versions,
    git, threads, data).
    """
    different = [name for name, same in _outcomes(before, now).items() if not same]
    comparison = {"replayed": str(before), "different": different, "around": _around(before, now)}
    write_json(now / "reports" / "replay.json", comparison)
    return comparison


def describe_replay(found: dict[str, Any]) -> str:
    """Describe the result of `compare` in sentences."""
    if not found["different"]:
        return f"The replay of {found['replayed']} is bit-identical."
    around = "; ".join(found["around"]) or "nothing known. Type deterministic=true for both runs"
    return (
        f"The replay of {found['replayed']} differs: {', '.join(found['different'])}.\n"
        f"Changes in its environment: {around}."
    )


def _outcomes(before: Path, now: Path) -> dict[str, bool]:
    same = {"epochs (metrics.jsonl)": _read(before / "metrics.jsonl") == _read(now / "metrics.jsonl")}
    last = Path("checkpoints", LAST)
    if (before / last).is_file() and (now / last).is_file():
        ours, theirs = (read_checkpoint(run / last)["state_dict"] for run in (before, now))
        equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        same[f"weights ({last})"] = equal
    for file in sorted((before / "reports").glob("predictions_*.csv")):
        replayed = now / "reports" / file.name
        if replayed.is_file():
            same[f"predictions ({file.name})"] = _read(file) == _read(replayed)
    return same


def _around(before: Path, now: Path) -> list[str]:
    """List `NAME BEFORE -> NOW` for all facts that differ."""
    facts = []
    for run in (before, now):
        here, data = (_facts(run / "reports" / f"{name}.json") for name in ("environment", "data"))
        flat = {f"version of {name}": value for name, value in here.get("versions", {}).items()}
        flat |= {f"git {name}": value for name, value in here.get("git", {}).items()}
        flat |= {name: here.get(name) for name in ("platform", "cpu_threads")}
        facts.append(flat | {"data": data.get("fingerprint")})
    return [
        f"{name} {facts[0].get(name)} -> {value}" for name, value in facts[1].items() if facts[0].get(name) != value
    ]


def _facts(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, {"*": object, "versions": {"*": object}, "git": {"*": object}}, LARGEST)
    except (OSError, UnreadableError):
        return {}


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""

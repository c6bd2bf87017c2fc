"""Lists runs with their true state: a run that says it is running may be dead.

ml-status
ml-status logs/train/multiruns --json
"""

import argparse
import json
import shlex
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from imago.config.invocation import for_hydra
from imago.config.root import PROJECT_ROOT
from imago.run import lock as run_lock
from imago.run.folder import read_status
from imago.terminal import console, fail, plain, say

STALE_SECONDS = 90
"""Without a heartbeat for so long, a run on another machine counts as dead; one is due every 20 seconds."""
STYLES = {"running": "cyan", "completed": "green", "failed": "red", "dead": "red"}


def main() -> None:
    """Command line of `ml-status`."""
    parser = argparse.ArgumentParser(prog="ml-status", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=PROJECT_ROOT / "logs",
        help="folder that contains the runs (default: logs)",
    )
    parser.add_argument("--json", action="store_true", help="print all details as JSON")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        fail(f"{arguments.folder} is not a folder. Type ml-status FOLDER, the paths.log_dir= of the runs.")
    runs = sorted(_runs(arguments.folder), key=lambda run: str(run.get("started")))
    if arguments.json:
        print(json.dumps(runs, indent=2))  # ASCII: no control sequences for the terminal
        return
    if not runs:
        say(f"There are no runs below {arguments.folder}.")
        return
    console().print(_table(runs, arguments.folder))
    if dead := [run["folder"] for run in runs if run["state"] == "dead" and run["resumable"]]:
        word = f"resume={for_hydra(dead[-1])}"
        if plain(word) == word:
            say(f"Dead runs go on with: ml-train {shlex.quote(word)}")


def true_state(folder: Path, status: dict[str, Any]) -> str:
    """State in `status.json`, but `dead` if a run that says it is running is not alive."""
    said = str(status.get("status", "unknown"))
    if said != "running":
        return said
    if status.get("host") == socket.gethostname():
        with suppress(OSError):  # no locks here
            return "running" if run_lock.is_taken(folder) else "dead"
    return "running" if _seconds_since(status.get("heartbeat")) < STALE_SECONDS else "dead"


def _runs(folder: Path) -> Iterator[dict[str, Any]]:
    for file in folder.rglob("status.json"):
        status = read_status(file)
        resumable = (file.parent / "checkpoints" / "last.ckpt").is_file()
        yield status | {"folder": str(file.parent), "state": true_state(file.parent, status), "resumable": resumable}


def _table(runs: list[dict[str, Any]], folder: Path) -> Table:
    table = Table(title=f"Runs below {folder}")
    for column in ("run", "state", "epoch", "step", "last sign", "error"):
        table.add_column(column, justify="right" if column in ("epoch", "step") else "left", overflow="fold")
    for run in runs:
        name = str(Path(run["folder"]).relative_to(folder))
        error = (str(run.get("error") or "").splitlines() or [""])[0]
        state = Text(run["state"], style=STYLES.get(run["state"], "yellow"))
        numbers = (str(run.get(key, "")) for key in ("epoch", "step"))
        table.add_row(Text(name), state, *numbers, _ago(run.get("heartbeat")), Text(error))
    return table


def _seconds_since(time: Any) -> float:
    try:
        return (datetime.now().astimezone() - datetime.fromisoformat(str(time))).total_seconds()
    except ValueError:
        return float("inf")


def _ago(time: Any) -> str:
    seconds = _seconds_since(time)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if length <= seconds < float("inf"):
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago" if seconds < 60 else "never"


if __name__ == "__main__":
    main()

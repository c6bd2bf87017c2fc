"""Runs at a glance: what their folders say of them, read within bounds, since they may be damaged, or a stranger's."""

import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from imago.config.invocation import override_key, override_value
from imago.config.root import COMMAND_KEYS, OTHER_COMMANDS
from imago.config.tree import leaves
from imago.definitions import CHECKED, best_mode
from imago.files import MEGABYTE, MISFIT, NUMBER, UnreadableError, fitting, read_json, read_text
from imago.run import lock as run_lock
from imago.run.folder import STATUS, read_status
from imago.run.saved_yaml import read_yaml

STALE_SECONDS = 90
"""Without a heartbeat for so long, a run on another machine counts as dead; one is due every 20 seconds."""
PARTS = ("checkpoints", "reports", "plots", "tensorboard", "csv", ".hydra")
"""Subfolders of a run folder that hold no other run."""
LARGEST = 16 * MEGABYTE
SCORE = {"split": str, "n": int, "acc": NUMBER, "f1": NUMBER, "loss": NUMBER}
LATER = {"time": str, "folder": str, "split!": str, "n!": int, "acc!": NUMBER, "f1": NUMBER}
SCORED_AGAIN = "scored_again.jsonl"
"""Later scores by `ml-eval`, in the folder of the run: a row for each split."""
DATA = {
    **dict.fromkeys(("folder!", "fingerprint!"), str),
    "drawn": [str],
    "class_names": [str],
    "counts": {"*": {"*": int}},
    "stamps": {"*": str},
}
NO_SETTINGS = ("paths", "hydra", "hparams_search", "name", "task_name", "report", "plots", *COMMAND_KEYS)
"""Keys that say where or how a run is made, not what it trains."""
EPOCHS = ("trainer.max_epochs", "trainer.max_steps")
"""Settings that a run of the head alone does not use."""
DEEPEST = 20
"""Levels of the value of a setting that are shown in JSON."""


@dataclass(frozen=True)
class Overview:
    """What is known of one run.

    Args:
        folder: Its run folder.
        status: The known keys of its `status.json`.
        state: Its status, but `dead` if it says that it is running and is not alive.
    """

    folder: Path
    status: Mapping[str, Any] = field(default_factory=dict)
    state: str = "unknown"

    @classmethod
    def read(cls, folder: Path) -> "Overview":
        """Read the state of the run in `folder`; everything else is read when it is asked for."""
        status = read_status(folder / "status.json")
        return cls(folder, status, true_state(folder, status))

    @property
    def task(self) -> str:
        """`train`, or the command that made the folder (`eval`, `inference`, …)."""
        task = self.config.get("task_name")
        return task if task in OTHER_COMMANDS else "train"

    @property
    def has_begun(self) -> bool:
        """Whether training began, or may yet begin."""
        return self.state != CHECKED and ("epoch" in self.status or self.state == "running" or self.is_resumable)

    @cached_property
    def is_resumable(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.folder / "checkpoints" / "last.ckpt").is_file()

    @cached_property
    def checkpoint(self) -> Path | None:
        """The best checkpoint, otherwise the last one; it is not opened."""
        files = (self.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        return next((file for file in files if file.is_file()), None)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config, with its interpolations; empty if it cannot be read."""
        content = read_yaml(self.folder / ".hydra" / "config.yaml")
        return content if isinstance(content, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        """The typed overrides; empty if they cannot be read."""
        content = read_yaml(self.folder / ".hydra" / "overrides.yaml")
        return [word for word in content if isinstance(word, str)] if isinstance(content, list) else []

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Setting or group -> value; groups only where an option was typed."""
        trained = {key: value for key, value in self.config.items() if key not in NO_SETTINGS}
        words = [word for word in self.overrides if "=" in word and not word.startswith("~")]
        typed = {override_key(word): override_value(word) for word in words}
        settings = {key: value for key, value in typed.items() if key.partition(".")[0] not in NO_SETTINGS}
        settings |= leaves(trained) if trained else {}
        for key in EPOCHS if settings.get("model.probe") == "only" else ():
            settings.pop(key, None)
        return settings

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Group -> option, as Hydra composed them; empty if they cannot be read."""
        content = read_yaml(self.folder / ".hydra" / "hydra.yaml", "hydra", "runtime", "choices")
        return content if isinstance(content, dict) else {}

    def setting(self, key: str) -> Any:
        """Value of a setting, or the option of a group even if it was not typed; None if it is not known."""
        return self.settings[key] if key in self.settings else self.choices.get(key)

    @property
    def seconds(self) -> float | None:
        """Seconds from the start to the last sign of life."""
        started, last = (seconds_since(self.status.get(key)) for key in ("started", "heartbeat"))
        return started - last if math.isfinite(started) and last <= started else None

    @property
    def monitor(self) -> str:
        """Name of the metric that chooses the best checkpoint; empty if it is not known."""
        monitor = self.config.get("monitor")
        if isinstance(monitor, str) and "${" in monitor:
            monitor = self.config.get("optimized_metric")
        return monitor if isinstance(monitor, str) and "${" not in monitor else ""

    @property
    def mode(self) -> str:
        """`max` if a greater value of the monitored metric is better, else `min`."""
        mode = self.config.get("mode")
        return str(mode) if mode in ("min", "max") else best_mode(self.monitor)

    @property
    def best(self) -> float | None:
        """Best value of the monitored metric; so far, if the run has not ended."""
        value = self.status.get("best_value")
        return value if _is_number(value) else self.metrics.get(self.monitor)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Metric -> best value over the epochs in `metrics.jsonl`."""
        values: dict[str, list[float]] = {}
        for row in _rows(self.folder / "metrics.jsonl"):
            for name, value in row.items():
                if name not in ("epoch", "step") and _is_number(value):
                    values.setdefault(name, []).append(value)
        modes = {name: best_mode(name) for name in values} | {self.monitor: self.mode}
        return {name: (max if modes[name] == "max" else min)(known) for name, known in values.items()}

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Rows of the epochs, with the numbers that they have; without that of a head that was fitted before them."""
        rows = [
            {key: value for key, value in row.items() if _is_number(value)}
            for row in _rows(self.folder / "metrics.jsonl")
        ]
        return [row for row in rows if row.get("epoch", -1) >= 0]

    @cached_property
    def test(self) -> dict[str, Any]:
        """`split`, `n`, `acc`, `f1` and `loss` on the test split; `split` is `val` if there was no test split."""
        try:
            return read_json(self.folder / "reports" / "metrics_test.json", SCORE, LARGEST)
        except (OSError, UnreadableError):
            return {}

    @cached_property
    def later(self) -> list[dict[str, Any]]:
        """Scores by later `ml-eval`, the newest last: `time`, `folder`, `split`, `n`, `acc` and `f1`."""
        rows = [fitting(row, LATER) for row in _rows(self.folder / SCORED_AGAIN)]
        return [row for row in rows if row is not MISFIT]

    @cached_property
    def data(self) -> dict[str, Any]:
        """`folder`, without links, and `fingerprint` of the images that it read, `drawn`, the splits that were drawn
        from train by a seed, `class_names`, `counts` and `stamps`; empty if they are not known."""
        try:
            return read_json(self.folder / "reports" / "data.json", DATA, LARGEST)
        except (OSError, UnreadableError):
            return {}

    def scored_images(self, metric: str) -> str | None:
        """Fingerprint of the images that a metric is computed on, such as `val/acc`, or `acc` and `loss` of the test
        split; None if it is not known."""
        split = self.test.get("split") if metric in ("acc", "loss") else metric.partition("/")[0]
        return self.status.get("card", {}).get("stamps", {}).get(split)

    def scored_split(self, split: str) -> str:
        """The split that was really scored as `split`: val, if there was no test split."""
        try:
            return read_json(self.folder / "reports" / f"metrics_{split}.json", SCORE, LARGEST).get("split", split)
        except (OSError, UnreadableError):
            return split

    def stamp(self, split: str, images: int) -> str | None:
        """Fingerprint of a split, if its images are the `images` that were scored; None if it is not known."""
        if sum(self.data.get("counts", {}).get(split, {}).values()) != images:
            return None
        return self.data.get("stamps", {}).get(split) or self.status.get("card", {}).get("stamps", {}).get(split)

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain types for JSON."""
        return {
            **{key: value for key, value in self.status.items() if key in STATUS},
            "folder": str(self.folder),
            "state": self.state,
            "task": self.task,
            "has_begun": self.has_begun,
            "resumable": self.is_resumable,
            "monitor": self.monitor or None,
            "mode": self.mode,
            "best_value": self.best,
            "best_metrics": self.metrics | ({self.monitor: self.best} if self.monitor in self.metrics else {}),
            "test": self.test or None,
            "scored_again": self.later,
            "overrides": self.overrides,
            "settings": {key: _plain(value) for key, value in self.settings.items()},
        }


def find_runs(folder: Path) -> list[Overview]:
    """Read the runs below `folder`, in the order in which they began."""
    runs = [Overview.read(run_folder) for run_folder in _run_folders(folder)]
    return sorted(runs, key=lambda run: (str(run.status.get("started") or ""), str(run.folder)))


def _run_folders(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        if "status.json" in files or "status.json" in folders:
            yield Path(name)
            folders[:] = [part for part in folders if part not in PARTS]


def true_state(folder: Path, status: Mapping[str, Any]) -> str:
    """State in `status.json`, but `dead` if a run that says it is running is not alive."""
    said = str(status.get("status", "unknown"))
    if said != "running":
        return said
    if status.get("host") == socket.gethostname():
        with suppress(OSError):  # no locks here
            return "running" if run_lock.is_taken(folder) else "dead"
    return "running" if seconds_since(status.get("heartbeat")) < STALE_SECONDS else "dead"


def seconds_since(time: Any) -> float:
    """Seconds since a time in ISO format; infinite if it is not one."""
    try:
        return (datetime.now().astimezone() - datetime.fromisoformat(str(time))).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


def first_line(text: Any) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in str(text or "").splitlines() if line.strip()), "")


def _plain(value: Any, depth: int = 0) -> Any:
    """Convert what a YAML file may hold to what JSON may hold."""
    if depth < DEEPEST and isinstance(value, dict):
        return {str(key): _plain(entry, depth + 1) for key, entry in value.items()}
    if depth < DEEPEST and isinstance(value, list):
        return [_plain(entry, depth + 1) for entry in value]
    return value if _is_number(value) or isinstance(value, str | bool | None) else type(value).__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and math.isfinite(value)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; those that are damaged are left out."""
    try:
        lines = read_text(path, LARGEST).splitlines()
    except (OSError, UnreadableError):
        return
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row

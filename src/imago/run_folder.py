"""The run folder: what ran, and how it stands."""

import json
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from imago.writing import write_json, write_text

ORDER = (
    "Status",
    "Results",
    "Best",
    "Progress",
    "Last epoch",
    "Timing",
    "Run",
    "Data",
    "Parameters",
    "Device",
    "Strategy",
    "Configuration",
)


LATEST = "latest"


class RunFolderError(RuntimeError):
    """The folder cannot be used for this run."""


@dataclass
class RunFolder:
    """One run, one folder: keeps `status.json` and `summary.txt` up to date.

    `sections` are the parts of the summary: title (one of `ORDER`) -> lines. Of a run in several processes only
    `rank` 0 writes; they meet at `port`.
    """

    path: Path
    rank: int = 0
    processes: int = 1
    port: int = 0
    status: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    _last_write: float = field(default=0.0, init=False)

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Takes `path` for a new run.

        Raises:
            RunFolderError: It holds a finished run, or one that has a checkpoint: nothing is overwritten.
        """
        path.mkdir(parents=True, exist_ok=True)
        status_file = path / "status.json"
        if not status_file.is_file() and any(path.iterdir()):
            raise RunFolderError(f"{path} holds files of something else than a run. Give another hydra.run.dir=.")
        if status_file.is_file():
            status = _read(status_file)
            if _is_alive(status):
                raise RunFolderError(
                    f"{path} is in use by the running process {status['pid']}. Give another hydra.run.dir=."
                )
            if status.get("status") == "completed":
                raise RunFolderError(f"{path} holds a finished run. Give another hydra.run.dir=, or remove the folder.")
            if any(path.glob("checkpoints/*.ckpt")):
                raise RunFolderError(
                    f"{path} holds an unfinished run with a checkpoint. Go on from it in a new folder with\n"
                    f"  ckpt_path={path}/checkpoints/last.ckpt\nor give another hydra.run.dir=, or remove the folder."
                )
        run = cls(path)
        run.update(status="running", started=now(), pid=os.getpid(), host=socket.gethostname(), error=None)
        return run

    def update(self, **status: Any) -> None:
        """Merges into `status.json` and rewrites both files; every write is a heartbeat."""
        if self.rank:
            return
        self.status |= status
        self.status["heartbeat"] = now()
        self._last_write = time.monotonic()
        write_json(self.path / "status.json", self.status)
        write_text(self.path / "summary.txt", self._summary())

    def beat(self, every_seconds: float) -> None:
        """A heartbeat, unless the last one is younger than that."""
        if time.monotonic() - self._last_write >= every_seconds:
            self.update()

    def _summary(self) -> str:
        seconds = datetime.now().astimezone() - datetime.fromisoformat(self.status["started"])
        timing = {
            "started": self.status["started"],
            "written": self.status["heartbeat"],
            "took": str(seconds).partition(".")[0],
        }
        shown = ("status", "epoch", "step", "error")
        status: dict[str, Any] = {key: self.status[key] for key in shown if key in self.status}
        parts: dict[str, dict[str, Any]] = {"Status": status, "Timing": timing, **self.sections}
        return "\n".join(_section(title, parts[title]) for title in sorted(parts, key=ORDER.index))


def find_run(given: str, log_dir: Path, holding: str = "status.json") -> Path:
    """The run folder that `given` stands for; `latest` is the newest in `log_dir` that has the file `holding`.

    Raises:
        ValueError: There is none.
    """
    if given != LATEST:
        folder = Path(given).expanduser().absolute()
        if not (folder / "status.json").is_file():
            raise ValueError(f"{given} is no run folder: give one (it holds status.json), or the word latest.")
        return folder
    runs = [*log_dir.glob("*/runs/*"), *log_dir.glob("*/multiruns/*/*")]
    trained = [run for run in runs if (run / "metrics.jsonl").is_file() and (run / holding).is_file()]
    if not trained:
        raise ValueError(f"latest: no run below {log_dir} has {holding}. Train first, or give a run folder.")
    return max(trained, key=lambda run: (run / ".hydra" / "config.yaml").stat().st_mtime)  # written at its start


def _section(title: str, lines: dict[str, Any]) -> str:
    width = max((len(str(key)) for key in lines), default=0)
    body = "".join(f"  {key:<{width}}  {_shown(value)}\n" for key, value in lines.items() if value is not None)
    return f"{title}\n{body}"


def _shown(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("\n", "\n" + " " * 6)


def _is_alive(status: dict[str, Any]) -> bool:
    """Whether another process of this machine is still at it."""
    pid: Any = status.get("pid")
    if status.get("status") != "running" or status.get("host") != socket.gethostname() or pid == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # a damaged status is that of a run which died


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")

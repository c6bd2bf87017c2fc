"""The run folder: what ran, and its status."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from imago.config.invocation import Invocation
from imago.config.launcher import Launch
from imago.files import NUMBER, TEXT, UnreadableError, overwrite_json, read_json, write_json, write_text
from imago.run import lock as run_lock
from imago.run.background import repeated
from imago.run.search_place import Trial

ORDER = (
    "Status",
    "Results",
    "Warnings",
    "Strategy",
    "Training",
    "Head alone",
    "Best",
    "Soup",
    "Progress",
    "Last epoch",
    "Timing",
    "Profile",
    "Run",
    "Data",
    "Configuration",
)
LEFT_OVER = ".*.tmp"  # files of a process that was killed while writing
HEARTBEAT_SECONDS = 20
PROGRAM_BEGAN: list[float] = []
"""Value of `time.monotonic()` when a command was typed, until its first run takes its folder."""


@dataclass(frozen=True)
class PlotOptions:
    """Formats of the figures below `plots/` (png, svg, pdf; none draws none), and whether they have a title."""

    formats: tuple[str, ...] = ("png",)
    title: bool = True

    @classmethod
    def of(cls, plots: Any) -> "PlotOptions":
        """Options of a `plots` node; those of earlier runs have no `title`."""
        formats = [plots["format"]] if isinstance(plots["format"], str) else plots["format"]
        return cls(tuple(formats), plots.get("title", True))


PNG_WITH_TITLE = PlotOptions()


class RunFolderError(RuntimeError):
    """The folder cannot be used for this run."""


@dataclass
class RunFolder:
    """Folder of one run. Keeps `status.json` and `summary.txt` up to date.

    `sections` are the parts of the summary: title (one of `ORDER`) -> lines. If a run has several processes, only
    `rank` 0 writes; they meet at `port`, on this machine or at the address of a `launch`. If a run is resumed, `former`
    is the previous status of the folder, and `resume_from` its checkpoint: until that has been accepted, nothing in the
    folder changes but the log, so that a run that cannot be resumed with the new settings keeps its own. `trial` is the
    place of the run in a search.
    """

    path: Path
    rank: int = 0
    processes: int = 1
    port: int = 0
    launch: Launch | None = None
    trial: Trial | None = None
    status: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    former: dict[str, Any] = field(default_factory=dict)
    resume_from: Path | None = None
    plots: PlotOptions = PNG_WITH_TITLE
    warnings: list[str] = field(default_factory=list)
    """Warnings that were logged, in their order and each once; for the end of the run."""
    invocation: Invocation = field(default_factory=lambda: Invocation(""))
    began: float = field(default_factory=lambda: PROGRAM_BEGAN.pop() if PROGRAM_BEGAN else time.monotonic())
    """Value of `time.monotonic()` when the command was typed, or, for further runs, when they took their folder."""
    _pending: list[Callable[[], None]] | None = field(default=None, init=False)
    _writing: threading.RLock = field(default_factory=threading.RLock, init=False)

    @classmethod
    def claim(cls, path: Path, goes_on: bool = False, invocation: Invocation | None = None) -> "RunFolder":
        """Claim `path` for this process, until `release`; `former` is the status of the run that it holds already.

        Raises:
            RunFolderError: Another process has it; or, unless the run is resumed (`goes_on`), it holds a finished run
                or one that has a checkpoint: nothing is overwritten.
        """
        invocation = invocation or Invocation("")
        path.mkdir(parents=True, exist_ok=True)
        status_file = path / "status.json"
        strange = [entry.name for entry in path.iterdir() if entry.name not in (run_lock.FILE, ".hydra")]
        if not status_file.is_file() and any(not fnmatch(name, LEFT_OVER) for name in strange):
            raise RunFolderError(f"{path} has files, but is not a run folder. Type another hydra.run.dir=.")
        former = (read_status(status_file) or {"status": "unknown"}) if status_file.is_file() else {}
        is_locked = not run_lock.take(path)
        if is_locked or (not run_lock.held(path) and _is_alive(former)):
            said = former.get("pid", ""), former.get("host", "a machine")
            process, machine = (run_lock.owner(path) if is_locked else None) or said
            raise RunFolderError(
                f"{path} is in use by process {process} on {machine}. Wait until it has ended, or type another "
                "hydra.run.dir=."
            )
        if not goes_on and (refusal := _taken_by(former, path, invocation)):
            run_lock.release(path)
            raise RunFolderError(refusal)
        folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.is_symlink()]
        for left_over in (file for folder in (path, *folders) for file in folder.glob(LEFT_OVER)):
            if left_over.is_file() and not left_over.is_symlink():
                left_over.unlink(missing_ok=True)
        run = cls(path, former=former, invocation=invocation)
        run._pending = [] if former else None
        return run

    def start(self) -> None:
        """Begin the run, or resume it."""
        kept = {
            key: self.former[key]
            for key in ("started", "epoch", "step", "epsilon", "delta", "loggers", "card")
            if key in self.former
        }
        self.status = {"started": now()} | kept
        self.warnings[:] = self.former.get("warnings", [])
        if self.former:
            self.status |= {"resumed": now(), "times_resumed": self.former.get("times_resumed", 0) + 1}
        self.update(status="running", pid=os.getpid(), host=socket.gethostname(), error=None)

    def write_when_accepted(self, write: Callable[[], None]) -> None:
        """Call `write` as soon as the run may change its folder: at once, unless it is resumed."""
        if self._pending is None:
            write()
        else:
            self._pending.append(write)

    @property
    def is_accepted(self) -> bool:
        """Whether the run may change its folder."""
        return self._pending is None

    def accept(self) -> None:
        """Let the folder change: the checkpoint of a resumed run has been restored, or there is none."""
        pending, self._pending = self._pending or [], None
        if not self.rank:
            for write in pending:
                write()

    def resume_hint(self, space: str = " ") -> str:
        """Sentence, after `space`, with the command that resumes the run; empty before there is a checkpoint, or where
        the settings that were typed are not those of the run."""
        is_resumable = self.is_accepted and (self.path / "checkpoints" / "last.ckpt").is_file()
        return f"{space}Resume with: {self.invocation.resume_command(self.path)}" if is_resumable else ""

    def release(self) -> None:
        """Release the folder for other processes."""
        run_lock.release(self.path)

    def update(self, **status: Any) -> None:
        """Merge `status` into `status.json` and rewrite both files. Every write is a heartbeat."""
        if self.rank:
            return
        with self._writing:
            self.status = {"started": now()} | self.status | status
            if self.warnings:
                self.status["warnings"] = list(self.warnings)
                self.sections["Warnings"] = {str(number): text for number, text in enumerate(self.warnings, 1)}
            else:  # those of an earlier scoring may have been removed
                self.status.pop("warnings", None)
                self.sections.pop("Warnings", None)
            if self._pending is None:
                self._beat()
                write_text(self.path / "summary.txt", self._summary())

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Inside, `status.json` is rewritten every 20 seconds, so that a dead run can be told from a slow one."""

        def beat() -> None:
            with self._writing, suppress(OSError):  # a full disk is reported by the writes that matter
                if self._pending is None:
                    self._beat()

        with repeated(beat, HEARTBEAT_SECONDS):
            yield

    def overwrite_status(self) -> None:
        """Write `status.json` in place: on a full disk there is no room for another file beside it."""
        if self._pending is None:
            with self._writing:
                overwrite_json(self.path / "status.json", dict(self.status))

    def _beat(self) -> None:
        self.status["heartbeat"] = now()
        write_json(self.path / "status.json", dict(self.status))

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


def _taken_by(former: dict[str, Any], path: Path, invocation: Invocation) -> str | None:
    """Reason why a new run cannot have the folder; None if nothing would be lost."""
    if former.get("status") == "completed":
        return f"{path} contains a finished run. Type another hydra.run.dir=, or remove the folder."
    if former and any(path.glob("checkpoints/*.ckpt")):
        command = invocation.resume_command(path)
        return (
            f"{path} contains an unfinished run with a checkpoint. Resume it with\n  {command}\n"
            "(auto_resume=true resumes it with the same command), or type another hydra.run.dir=."
        )
    return None


def _section(title: str, lines: dict[str, Any]) -> str:
    width = max((len(str(key)) for key in lines), default=0)
    body = "".join(f"  {key:<{width}}  {_shown(value)}\n" for key, value in lines.items() if value is not None)
    return f"{title}\n{body}"


def _shown(value: Any) -> str:
    text = str(value)
    if isinstance(value, float):
        text = f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.4g}"
    return text.replace("\n", "\n" + " " * 6)


def _is_alive(status: dict[str, Any]) -> bool:
    """Whether another process of this machine still runs, judged by its PID: for file systems without locks."""
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


CARD = {
    "network": str,
    "parameters": int,
    "trained_parameters": int,
    "weights": str,
    "optimizer": str,
    "learning_rate": (*NUMBER, type(None)),
    "head_learning_rate": (*NUMBER, type(None)),
    "batch_size": int,
    "device": str,
    "precision": str,
    "images": {"*": int},
    "stamps": {"*": str},
    "classes": int,
}
"""What a training is: the entry `card` of `status.json`."""
HEAD = {
    "monitor!": str,
    **dict.fromkeys(("value!", "acc!"), (*NUMBER, type(None))),
    **dict.fromkeys(("baseline_acc!", "C!"), NUMBER),
    **dict.fromkeys(("folds!", "images!"), int),
    "fine-tuning": str,
}
"""What is known of a head that was fitted first: the entry `head` of `status.json`."""
STATUS = {
    **dict.fromkeys(("status", "started", "resumed", "heartbeat", "host", "reason"), str),
    **dict.fromkeys(("epoch", "step", "pid", "times_resumed"), int),
    "error": TEXT,
    "epsilon": (str, *NUMBER),
    "delta": NUMBER,
    "best_value": (*NUMBER, type(None)),
    "timing": {"*": (*NUMBER, type(None))},
    "profile": {"*": (str, *NUMBER)},
    "loggers": {"*": str},
    "best_epoch": (int, type(None)),
    "card": CARD,
    "head": HEAD,
    "warnings": [str],
}
"""The content of `status.json`."""


def read_status(path: Path) -> dict[str, Any]:
    """Content of a `status.json`, as far as it has the types that Imago writes; empty if it is damaged."""
    try:
        return read_json(path, STATUS)
    except (OSError, UnreadableError):
        return {}  # the file of a run that died, or another file


def now() -> str:
    """Current time, to the second, with its time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")

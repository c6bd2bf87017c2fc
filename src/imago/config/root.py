"""Location of the configs, and the keys that their root may have."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

_HERE = Path(__file__).resolve().parent.parent
_CLONE = _HERE.parent.parent
IN_CLONE = not (_HERE / "configs").is_dir()
CONFIG_DIR = str(_CLONE / "configs" if IN_CLONE else _HERE / "configs")
PROJECT_ROOT = _CLONE if IN_CLONE else Path.cwd()
COMMAND_KEYS = ("resume", "auto_resume", "replay", "preflight", "trust_generated")  # how to run, not what
OTHER_COMMANDS = ("eval", "inference", "export", "serve", "visualise", "doctor")
"""Values of `task_name` by which the run folders of the commands that train nothing are known."""


@dataclass
class Root:
    """Keys that a config may have at its root; any other is refused with its name and the file it came from."""

    data: Any = None
    model: Any = None
    trainer: Any = None
    strategy: Any = None
    callbacks: Any = None
    logger: Any = None
    paths: Any = None
    task_name: str = "train"
    name: str = "base"
    tags: list[str] = field(default_factory=list)
    seed: int | None = 42
    deterministic: bool = False
    matmul_precision: str = "high"
    train: bool = True
    test: bool = True
    ckpt_path: Any = None  # ml-inference takes several
    resume: str | None = None
    auto_resume: bool = False
    replay: str | None = None
    preflight: Any = True  # or the word only
    budget: str | None = None
    trust_generated: bool = False
    trusted_targets: list[str] = field(default_factory=list)
    monitor: str = "val/acc"
    mode: str = "max"
    optimized_metric: str = "val/acc"
    report: Any = None
    plots: Any = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class KeptRoot(Root):
    """`Root` whose fields do not replace values composed before."""

    def __post_init__(self) -> None:
        for entry in fields(Root):
            setattr(self, entry.name, MISSING)

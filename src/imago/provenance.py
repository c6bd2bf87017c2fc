"""Where a run came from: versions, machine, git, command line."""

import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision

from imago import __version__
from imago.config import IN_CLONE, PROJECT_ROOT


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "imago": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


@cache
def git_state(folder: Path | None = None) -> dict[str, Any]:
    """`commit` and `dirty` (whether tracked files were changed) of the project; None where it is in no git."""
    where = folder or (PROJECT_ROOT if IN_CLONE else Path.cwd())

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):  # no git, or a slow network drive
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit is not None else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def environment() -> dict[str, Any]:
    """What a report says of where it ran."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if sys.argv[0].endswith(".py") else sys.argv),
        "folder": str(Path.cwd()),
        "versions": versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
    }

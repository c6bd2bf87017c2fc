"""Provenance of a run: versions, machine, git, command line."""

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision

from imago.config.root import IN_CLONE, PROJECT_ROOT
from imago.definitions import __version__


def versions() -> dict[str, str]:
    """Versions of Imago, torch, torchvision and Python."""
    return {
        "imago": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


@cache
def git_state(clone: Path | None = PROJECT_ROOT if IN_CLONE else None) -> dict[str, Any]:
    """`commit` and `dirty` (whether tracked files were changed) of the clone that Imago is in; None without one.

    Git is run in no other folder: it executes what a repository's own config names (core.fsmonitor, filters), and the
    current folder may be a stranger's.
    """
    if clone is None or not (clone / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(clone), "-c", "core.fsmonitor=false", "--no-optional-locks", *words]
        only_here = os.environ | {"GIT_CEILING_DIRECTORIES": str(clone.parent)}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=only_here)
        except (OSError, subprocess.TimeoutExpired):  # no git, or a slow network drive
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit is not None else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def environment() -> dict[str, Any]:
    """Environment of a run, for its report."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if sys.argv[0].endswith(".py") else sys.argv),
        "folder": str(Path.cwd()),
        "versions": versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
    }

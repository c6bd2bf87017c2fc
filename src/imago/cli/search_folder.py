"""The folder of a search (`hparams_search=optuna`): a new one, or that of the same search that was stopped."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from imago.cli.compose import own_folder
from imago.config.invocation import for_hydra, override_key
from imago.config.resolvers import unique_slug
from imago.files import UnreadableError, read_json, write_json
from imago.masking import masked_override
from imago.run import lock

SWEEPER = "hydra_plugins.imago_sweeper.ImagoSweeper"
FILE = "search.json"
SEARCHING, DONE, FAILED = "searching", "done", "failed"
NO_IDENTITY = (
    *("hydra.mode", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "hydra.sweeper.isolation"),
    *("hydra.sweeper.receipt", "hydra.sweeper.max_failure_rate"),
)
"""Overrides that may differ when the same search continues."""


def is_own_search(config: DictConfig) -> bool:
    """Whether a sweep is a search of ours."""
    return str(config.hydra.sweeper.get("_target_")) == SWEEPER


def search_words(config: DictConfig) -> list[str]:
    """Typed overrides by which a search is known, without those that may change when it continues."""
    words = [str(word) for word in (*config.hydra.overrides.task, *hydra_words(config))]
    return sorted(masked_override(word) for word in words if not override_key(word).startswith(NO_IDENTITY))


def hydra_words(config: DictConfig) -> list[str]:
    """Overrides of Hydra's own keys, with the folder that --config-dir names as `hydra.searchpath`: trials take no
    flags."""
    words = [str(word) for word in config.hydra.overrides.hydra if override_key(str(word)) != "hydra.searchpath"]
    folder = own_folder(sys.argv[1:])
    paths = [*([f"file://{folder.resolve()}"] if folder is not None else []), *(config.hydra.get("searchpath") or [])]
    return [*words, f"hydra.searchpath=[{','.join(for_hydra(str(path)) for path in paths)}]"] if paths else words


def choose_folder(config: DictConfig) -> None:
    """Put the folder of a search into its config, unless one was typed: that of the study that was named, or of the
    same search that was stopped and is not under way."""
    folder = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore[call-overload, index]
    if not folder.startswith("${unused_folder:"):
        return
    parent = Path(config.paths.log_dir, config.task_name, "multiruns")
    name, chosen = config.hydra.sweeper.get("study_name"), None
    if name is not None:
        chosen = parent / unique_slug(str(name))
    elif config.hydra.sweeper.get("storage") is not None:
        chosen = _stopped(parent, search_words(config))
    if chosen is not None:
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.sweep.dir = str(chosen)


def note_search(folder: Path, words: Sequence[str], state: str) -> None:
    """Note what is searched in a folder, and whether that has ended."""
    write_json(folder / FILE, {"words": list(words), "state": state})


def _stopped(parent: Path, words: Sequence[str]) -> Path | None:
    """The newest folder of the same search that was stopped, whatever stopped it."""
    folders = sorted((path.parent for path in parent.glob(f"*/{FILE}")), key=lambda path: path.name, reverse=True)
    for folder in folders:
        try:
            noted: Any = read_json(folder / FILE, {"words!": [str], "state!": str})
            if noted["words"] == list(words) and noted["state"] == SEARCHING and not lock.is_taken(folder):
                return folder
        except (OSError, UnreadableError):
            continue
    return None

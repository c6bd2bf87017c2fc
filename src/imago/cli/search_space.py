"""Check a search (`hparams_search=`) before its study is made: each trial would say the same."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import yaml
from omegaconf import DictConfig

from imago.cli.compose import composed, own_folders
from imago.cli.experiment_words import entries_below, placed
from imago.cli.unknown_settings import known_settings, unknown_setting
from imago.config.invocation import Invocation, override_key, override_value
from imago.config.launcher import Launch
from imago.config.monitors import monitor_problems, unlogged_monitors
from imago.config.own_files import own_file
from imago.config.root import CONFIG_DIR
from imago.errors import UserError

GROUP = "hparams_search"
PARAMS = ("hydra", "sweeper", "params")


def check_search(words: Sequence[str], command: str, program: str, launch: Launch | None = None) -> None:
    """Raise UserError for settings in the search space that do not exist, for a metric that nothing logs, and for a
    search in the processes of a `launch`."""
    name = next((override_value(word) for word in words if override_key(word) == GROUP), "null")
    if launch is not None and name != "null" and "hydra/sweeper=optuna" not in words:
        raise UserError(
            f"{launch.where}, and a search starts the processes of its trials itself. Type it without "
            f"{launch.launcher}; for several devices in each trial add trainer=ddp trainer.devices={launch.processes}."
        )
    file = own_file(own_folders(words), GROUP, name)
    cfg = composed(command, words) if file is not None else None
    if file is None or cfg is None:  # Hydra says why
        return
    overrides = tuple(word for word in words if "=" in word and not word.startswith("-"))
    folders = tuple(map(str, own_folders(words)))
    invocation = Invocation(command, overrides, choices={GROUP: name}, config_folders=(*folders, CONFIG_DIR))
    unknown = _unknown_params(file, cfg, words, f"{program} --help-all")
    problems = chain(unknown, monitor_problems(cfg, invocation), unlogged_monitors(cfg, invocation))
    if lines := [*problems]:
        raise UserError("\n".join(lines))


def _unknown_params(file: Path, cfg: DictConfig, words: Sequence[str], help_all: str) -> Iterator[str]:
    known = {*known_settings(cfg)}
    for entry, _ in entries_below(yaml.compose(file.read_text(encoding="utf-8")), *PARAMS):
        key = str(entry.value)
        if key in known or key.startswith(("+", "~")) or Path(CONFIG_DIR, key).is_dir():
            continue
        hint, _ = unknown_setting(key, "", cfg, words, help_all)
        instead = " and ".join(map(override_key, hint.words))
        said = " ".join(filter(None, [f"Imago calls it {instead}." if instead else "", hint.note]))
        yield placed(file, entry, f"Unknown setting {key}. {said}")

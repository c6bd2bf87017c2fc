"""The settings of an earlier run, for `resume=RUN` and `replay=RUN`: what is typed besides wins.

They are read from the run folder, and may make whatever they name, as settings that are typed may: this is for runs of
one's own. A checkpoint of somebody else's is for `ckpt_path=`.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from imago.carried_config import log_dir_of
from imago.config import OF_THE_COMMAND, for_hydra, leaves
from imago.masking import MASK
from imago.reading import read_yaml
from imago.run_folder import find_run
from imago.terminal import say

OPTION = "from_run"
GROUPS = ("data", "model", "trainer", "strategy", "callbacks", "logger", "paths")
WORDS = ("resume", "replay")


def goes_on(main: Callable[[], Any]) -> Callable[[], Any]:
    """Finds the run that `resume=` or `replay=` names before Hydra composes, and offers its settings."""

    @functools.wraps(main)
    def command() -> Any:
        sys.argv[1:] = _prepared(sys.argv[1:])
        return main()

    return command


def _prepared(words: list[str]) -> list[str]:
    """The command line for the run that `resume=` or `replay=` stands for; as it is without them."""
    _offer({}, "base")
    at = next((i for i, word in enumerate(words) if word.lstrip("+").partition("=")[0] in WORDS), None)
    if at is None:
        return words
    key, _, given = words[at].lstrip("+").partition("=")
    given = given.strip("'\"")
    if given in ("", "null"):
        return words
    others = [word.lstrip("+~").partition("=")[0] for word in words]
    for word in ("experiment", "debug", "hparams_search", "ckpt_path", *WORDS):
        if word in others and word != key:
            raise ValueError(f"{words[at]} takes the settings of that run: leave {word}= out.")
    for word in ("-m", "--multirun", "--config-name", "-cn"):
        if word in words:
            raise ValueError(f"{words[at]} is one run with its own settings: leave {word} out.")
    folder = find_run(given, log_dir_of(words))
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{words[at]}: {folder} has no .hydra/config.yaml, so its settings are not known.")
    content = cast(dict[str, Any], OmegaConf.to_container(read_yaml(file), resolve=False))
    resolved = read_yaml(folder / "config.yaml")
    if "train" not in content or content.get("task_name") is None:
        raise ValueError(f"{words[at]}: {folder} is of another command than ml-train.")
    _offer(content, str(resolved.get("name", "base")))
    say(f"{key}: {folder}")
    _check_secrets(content, others, words[at])
    here = [f"hydra.run.dir={for_hydra(str(folder))}"] if key == "resume" else []
    if here and "hydra.run.dir" in others:
        typed = next(word.partition("=")[2].strip("'\"") for word in words if word.startswith("hydra.run.dir="))
        if Path(typed).absolute() != folder.absolute():
            raise ValueError(f"{words[at]} goes on in that folder: leave hydra.run.dir= out.")
        here = []
    return ["--config-name", OPTION, *words[:at], f"{key}={for_hydra(str(folder))}", *here, *words[at + 1 :]]


def _check_secrets(content: dict[str, Any], typed: list[str], word: str) -> None:
    """Raises ValueError for a secret that was typed: it is in no file, and has to be typed again."""
    if lost := next((key for key, value in leaves(content) if value == MASK and key not in typed), None):
        raise ValueError(f"{word}: {lost} was a secret, which no file keeps. Type it again: +{lost}=…")


def _offer(content: dict[str, Any], name: str) -> None:
    """Makes settings the option `from_run` of each group, and of the root."""
    store = ConfigStore.instance()
    for group in GROUPS:
        store.store(group=group, name=OPTION, node=OmegaConf.create(dict(content.get(group) or {})))
    root = {key: value for key, value in content.items() if key not in (*GROUPS, *OF_THE_COMMAND, "name")}
    store.store(name="settings_of_run", node=OmegaConf.create(root | {"name": name}))

"""Settings that come from a checkpoint (`ckpt_path=`) or an earlier run (`resume=`, `replay=`)."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from imago.cli.compose import log_dir_of
from imago.config.carried import GROUPS, OPTION, ROOT_KEYS, TRAINER_COMMAND_KEYS, read_checkpoint_config
from imago.config.invocation import for_hydra, override_key, override_value
from imago.config.private import is_private
from imago.config.root import COMMAND_KEYS, CONFIG_DIR, OTHER_COMMANDS
from imago.config.saved import RUN_OPTION, read_yaml
from imago.config.tree import leaves
from imago.errors import UserError
from imago.masking import MASK
from imago.run.find import LATEST, find_run
from imago.run.overview import Overview
from imago.terminal import say

WITHOUT_CHECKPOINT = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "-sc")
FOR_TRAINING = ("train", "test", "report", "report.splits", "resume", "auto_resume", "replay", "preflight")


def register_checkpoint_options(content: dict[str, Any]) -> None:
    """Make the config of a checkpoint the option `from_checkpoint` of each group, and of the root."""
    store = ConfigStore.instance()
    for group in GROUPS:
        store.store(group=group, name=OPTION, node=OmegaConf.create(dict(content.get(group) or {})))
    here = cast(DictConfig, OmegaConf.load(Path(CONFIG_DIR, "trainer", "default.yaml")))
    trainer = OmegaConf.create(dict(content.get("trainer") or {}))
    for option in TRAINER_COMMAND_KEYS:
        trainer.pop(option, None)
        if option in here:
            trainer[option] = here[option]
    store.store(group="trainer", name=OPTION, node=trainer)
    store.store(name=OPTION, node=OmegaConf.create({key: content[key] for key in ROOT_KEYS if key in content}))


@dataclass(frozen=True)
class Arguments:
    """A command line with the files and folders that its words stand for.

    `own_checkpoint` is the checkpoint whose config is composed, where this user's key has signed it: by the content
    that was read for it, and not by what the file may hold meanwhile.
    """

    words: list[str]
    own_checkpoint: str | None = None


def plain_args(words: list[str]) -> Arguments:
    """The command line as it is."""
    return Arguments(words)


def resolve_checkpoint_args(words: list[str], predicts: bool = False) -> Arguments:
    """The command line with the files that `ckpt_path=` stands for; their config is made an option of each group.

    For a command that `predicts`, it may be an export, or a list, of which the first one's config is taken.

    Raises:
        ValueError: There is no `ckpt_path=`, or nothing that can be read.
    """
    register_checkpoint_options({})
    at = next((i for i, word in enumerate(words) if override_key(word) == "ckpt_path"), None)
    if at is None:
        if any(word.split("=")[0] in WITHOUT_CHECKPOINT for word in words):
            return Arguments(words)
        raise UserError("ckpt_path is missing. Type ckpt_path=RUN (a run folder), ckpt_path=latest, or a file")
    for word in words:
        if override_key(word) in FOR_TRAINING:
            split = word.lstrip("+~").startswith(("train", "test", "report"))
            hint = " To choose what is scored, type split=test or split=[train,val]." if split else ""
            raise UserError(f"{word} applies to training only.{hint}")
    override = OverridesParser.create().parse_overrides([words[at]])[0]
    if override.is_sweep_override():
        raise UserError(
            f"{words[at]}: checkpoints cannot be swept. Run one command for each. "
            "For an ensemble use ml-inference 'ckpt_path=[A,B]'"
        )
    value = override.value()
    if isinstance(value, list) and not predicts:
        raise UserError(f"ckpt_path must be one checkpoint, got {words[at]}. For an ensemble use ml-inference.")
    names = [str(name) for name in value] if isinstance(value, list) else [str(value)]
    if value in (None, []) or "" in names:
        raise UserError("ckpt_path is missing. Type ckpt_path=RUN (a run folder), ckpt_path=latest, or a file")

    from imago.checkpoint.exported import read_model
    from imago.checkpoint.read import find_checkpoint, read_checkpoint
    from imago.checkpoint.signing import is_signed

    log_dir = log_dir_of(words) if LATEST in names else Path()
    files = [find_checkpoint(name, log_dir) for name in names]
    if LATEST in names:
        say(f"ckpt_path=latest: {files[names.index(LATEST)]}")
    checkpoint = read_model(files[0]) if predicts else read_checkpoint(files[0])
    own = is_signed(checkpoint)
    register_checkpoint_options(read_checkpoint_config(checkpoint["imago"].get("config"), files[0], own))
    quoted = [for_hydra(str(file)) for file in files]
    word = f"ckpt_path=[{','.join(quoted)}]" if isinstance(value, list) else f"ckpt_path={quoted[0]}"
    return Arguments([*words[:at], word, *words[at + 1 :]], str(files[0]) if own else None)


RUN_GROUPS = ("data", "model", "trainer", "strategy", "callbacks", "logger", "paths")
WORDS = ("resume", "replay")


def resolve_run_args(words: list[str]) -> Arguments:
    """The command line for the run that `resume=` or `replay=` stands for; as it is without them.

    The settings are read from the run folder, and may make whatever they name, as settings that are typed may: this is
    for runs of one's own. A checkpoint of somebody else's is for `ckpt_path=`.
    """
    _register_run_options({}, "base")
    at = next((i for i, word in enumerate(words) if override_key(word) in WORDS), None)
    if at is None:
        return Arguments(words)
    key, named_run = override_key(words[at]), override_value(words[at]).strip("'\"")
    if named_run in ("", "null"):
        return Arguments(words)
    keys = [override_key(word) for word in words]
    for word in ("recipe", "experiment", "debug", "hparams_search", "ckpt_path", *WORDS):
        if word in keys and word != key:
            raise UserError(f"{words[at]} uses the settings of that run: remove {word}=.")
    for word in ("-m", "--multirun", "--config-name", "-cn"):
        if word in words:
            raise UserError(f"{words[at]} is one run with its own settings: remove {word}.")
    folder = find_run(named_run, log_dir_of(words))
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise UserError(f"{words[at]}: {folder} has no .hydra/config.yaml, so its settings are unknown.")
    content = cast(dict[str, Any], OmegaConf.to_container(read_yaml(file), resolve=False))
    resolved = read_yaml(folder / "config.yaml")
    if content.get("task_name") in OTHER_COMMANDS:
        raise UserError(f"{words[at]}: {folder} is not a run of ml-train.")
    _register_run_options(content, str(resolved.get("name", "base")))
    say(f"{key}: {folder}")
    _check_secrets(content, keys, words[at])
    if key == "resume" and "strategy=dp" in words:
        _check_privacy(content, folder, words[at])
    here = [f"hydra.run.dir={for_hydra(str(folder))}"] if key == "resume" else []
    if here and "hydra.run.dir" in keys:
        typed = next(word.partition("=")[2].strip("'\"") for word in words if word.startswith("hydra.run.dir="))
        if Path(typed).absolute() != folder.absolute():
            raise UserError(f"{words[at]} continues in that folder: remove hydra.run.dir=.")
        here = []
    return Arguments(
        ["--config-name", RUN_OPTION, *words[:at], f"{key}={for_hydra(str(folder))}", *here, *words[at + 1 :]]
    )


def _check_secrets(content: dict[str, Any], typed: list[str], word: str) -> None:
    """Raises ValueError for a secret that was typed: it is in no file, and has to be typed again."""
    if lost := next((key for key, value in leaves(content) if value == MASK and key not in typed), None):
        raise UserError(f"{word}: {lost} is a secret, which is not stored. Type it again: +{lost}=…")


def check_private_start(cfg: DictConfig) -> None:
    """Raise UserError where private training starts from `ckpt_path` of a run that was not private."""
    if not cfg.train or cfg.ckpt_path is None or not is_private(cfg):
        return
    path = Path(str(cfg.ckpt_path)).expanduser()
    folder = path if path.is_dir() else path.absolute().parent.parent
    if (config := Overview(folder).config) and config.get("task_name") not in OTHER_COMMANDS:
        _check_privacy(config, folder, f"ckpt_path={cfg.ckpt_path}")


def _check_privacy(content: Mapping[str, Any], folder: Path, word: str) -> None:
    """Raise UserError if a run that is to become private was not."""
    if is_private(OmegaConf.create({"strategy": content.get("strategy") or {}})):
        return
    again = [
        entry for entry in Overview(folder).overrides if override_key(entry) not in ("strategy", "ckpt_path", *WORDS)
    ]
    raise UserError(
        f"{word} strategy=dp: a run that was not private cannot become private, because its weights have seen the "
        "images without noise. Start a new run, for example ml-train "
        f"{shlex.join([*again, 'strategy=dp', 'strategy.target_epsilon=3'])}"
    )


def _register_run_options(content: dict[str, Any], name: str) -> None:
    """Make the settings of a run the option `from_run` of each group, and of the root."""
    store = ConfigStore.instance()
    for group in RUN_GROUPS:
        store.store(group=group, name=RUN_OPTION, node=OmegaConf.create(dict(content.get(group) or {})))
    root = {key: value for key, value in content.items() if key not in (*RUN_GROUPS, *COMMAND_KEYS, "name")}
    store.store(name="settings_of_run", node=OmegaConf.create(root | {"name": name}))

"""Configs that are composed besides that of the command."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imago.cli.hydra_internals import composed_again, forget_application
from imago.config.auto_model import AUTO, describe_choice, register_auto_model
from imago.config.checks import lacks_data
from imago.config.invocation import Invocation, for_hydra, override_key
from imago.config.preprocessing import choose_preprocessing
from imago.config.root import COMMAND_KEYS, CONFIG_DIR
from imago.config.schema import shipped
from imago.config.tree import leaves
from imago.masking import masked_config
from imago.terminal import say


def log_dir_of(words: list[str]) -> Path:
    """Where runs are, by what was typed and this machine's own settings."""
    typed = [word for word in words if _is_path_override(word)]
    forget_application()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return Path(compose("train", typed).paths.log_dir).expanduser()


def _is_path_override(word: str) -> bool:
    try:
        override: Override = OverridesParser.create().parse_overrides([word])[0]
    except HydraException:
        return False
    return override.get_key_element().lstrip("+~").startswith("paths") and not override.is_sweep_override()


def config_changes(cfg: DictConfig, invocation: Invocation) -> list[dict[str, Any]]:
    """What differs from the command's defaults: `key`, `default` and `value`, as they are written in YAML."""
    try:
        before = _defaults(invocation)
    except HydraException:  # a config of one's own that needs an override
        return []
    after = _plain_settings(cfg)
    no_settings = ("hydra", "paths", "name", "task_name", *COMMAND_KEYS)
    keys = [key for key in {**before, **after} if key.partition(".")[0] not in no_settings]
    return [
        {"key": key, "default": before.get(key), "value": after.get(key)}
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _defaults(invocation: Invocation) -> dict[str, Any]:
    """Settings without overrides. Trainings of one process compose them once, as long as no shipped file changes; those
    of commands that start from a checkpoint are its settings."""
    if invocation.search_path or invocation.config_name != "train":
        return _composed_defaults(invocation.config_name, invocation.search_path)
    return _defaults_of_train(
        tuple((str(file), file.stat().st_mtime_ns) for file in sorted(Path(CONFIG_DIR).rglob("*.yaml")))
    )


@lru_cache(4)
def _defaults_of_train(_: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Settings of `ml-train` without overrides, while the shipped files have these times."""
    return _composed_defaults("train", ())


def _composed_defaults(config_name: str, words: Sequence[str]) -> dict[str, Any]:
    return _plain_settings(choose_preprocessing(composed_again(config_name, words)))


def _plain_settings(cfg: DictConfig) -> dict[str, Any]:
    return dict(leaves(masked_config(OmegaConf.to_container(cfg, resolve=False))))


def describe_changes(changes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Lines of the summary: the settings that differ from the defaults, as one would type their values."""
    values = {str(change["key"]): json.dumps(change["value"], ensure_ascii=False) for change in changes}
    return {key: value.strip('"') for key, value in values.items()} | {"all settings": "config.yaml"}


def with_data(cfg: DictConfig, invocation: Invocation) -> DictConfig:
    """`cfg`, with the embedded digits where no data is chosen."""
    if not isinstance(cfg.data, DictConfig):  # the check of the settings says what a group is
        return cfg
    asked = bool(invocation.keys & {"data", "data.data_dir"})
    if asked or not lacks_data(cfg.data):
        return cfg
    say("No data was chosen: using the embedded digits. To use your own folder type data.data_dir=PATH")
    digits = composed_again(invocation.config_name, ["data=digits", *invocation.search_path, *invocation.overrides])
    OmegaConf.set_struct(cfg, False)
    cfg.data = digits.data
    OmegaConf.set_struct(cfg, True)
    return cfg


def with_data_and_model(cfg: DictConfig, invocation: Invocation) -> DictConfig:
    """`cfg`, with the embedded digits where no data is chosen. Says what `model=auto` has become."""
    if HydraConfig.get().runtime.choices.get("model") == AUTO and (
        line := describe_choice(invocation.choices["model"])
    ):
        say(line)
    return with_data(cfg, invocation)


def own_folder(typed: list[str]) -> Path | None:
    """The folder that --config-dir names."""
    folder = next((b for a, b in pairwise([*typed, ""]) if a in ("--config-dir", "-cd")), None)
    folder = next((word.partition("=")[2] for word in typed if word.startswith("--config-dir=")), folder)
    return Path(folder) if folder else None


def own_folders(typed: Sequence[str]) -> list[Path]:
    """The folders of configs that --config-dir and hydra.searchpath name."""
    paths = [Path(path) for word in typed if "searchpath" in word for path in re.findall(r"file://([^,\]'\"]+)", word)]
    return [folder for folder in (own_folder(list(typed)), *paths) if folder is not None]


def compose_base(config_name: str, typed: list[str]) -> DictConfig | None:
    """The config with the groups that were typed alone: one of the remaining overrides is the mistake."""
    cfg = compose_groups(config_name, typed)
    return cfg if cfg is not None else _composed(config_name, [])


def compose_groups(config_name: str, typed: Sequence[str]) -> DictConfig | None:
    """The config with the groups and targets that were typed and no further settings; None if it cannot be composed."""
    groups = search_path(typed)
    for word in typed:
        override = _parsed(word)
        is_group = override is not None and Path(CONFIG_DIR, override.get_key_element().lstrip("+~")).is_dir()
        if is_group and not is_sweep(word):
            groups.append(word)
    register_auto_model(typed, [*own_folders(typed), Path(CONFIG_DIR)])
    cfg = _composed(config_name, groups)
    if cfg is not None:
        _choose_targets(cfg, typed)
    return cfg


def _choose_targets(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Put each typed `_target_` in its node, without the arguments of the former one that it does not take."""
    for word in typed:
        path, _, last = override_key(word).rpartition(".")
        node = OmegaConf.select(cfg, path) if last == "_target_" and not is_sweep(word) else None
        if isinstance(node, DictConfig) and "_target_" in node:
            node._target_ = typed_value(word)
            schema = shipped().get(str(node._target_))
            is_open = schema is None or schema["additionalProperties"]
            taken = node if is_open or schema is None else {"_target_", "_partial_", *schema["properties"]}
            with open_dict(node):
                for name in [name for name in map(str, node) if name not in taken]:
                    del node[name]


def composed(config_name: str, typed: Sequence[str]) -> DictConfig | None:
    """The config of a command line; None if Hydra does not accept it. The values of a sweep are not tried."""
    words = [word for word in typed if ("=" in word or word.startswith("~")) and not word.startswith("-")]
    if any(_parsed(word) is None for word in words):
        return None
    register_auto_model(typed, [*own_folders(typed), Path(CONFIG_DIR)])
    return _composed(config_name, [*search_path(typed), *(word for word in words if not is_sweep(word))])


def search_path(typed: Sequence[str]) -> list[str]:
    """The override by which the folders of own configs are found without a flag."""
    folder = own_folder(list(typed))
    return [f"hydra.searchpath=['file://{folder.resolve()}']"] if folder is not None else []


def is_sweep(word: str) -> bool:
    """Whether an override has several values, of which a sweep takes one after the other."""
    override = _parsed(word)
    return override is not None and override.is_sweep_override()


def typed_value(word: str) -> Any:
    """The value of an override, as Hydra reads it."""
    override = _parsed(word)
    value = override.value() if override is not None else None
    return str(value) if isinstance(value, QuotedString) else value


def readable(word: str) -> str:
    """An override as it is, or with its value in quotes where Hydra cannot read it: a path with spaces."""
    key, sign, value = word.partition("=")
    return word if not sign or word.startswith("-") or _parsed(word) is not None else f"{key}={for_hydra(value)}"


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except HydraException:
        return None


def _composed(config_name: str, words: Sequence[str]) -> DictConfig | None:
    forget_application()
    try:
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            return compose(config_name, list(words))
    except (HydraException, OmegaConfBaseException, ValueError):
        return None

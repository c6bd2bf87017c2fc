"""Config files of a run folder, and the differences between two of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import Invocation, override_key
from imago.config.root import COMMAND_KEYS
from imago.config.tree import leaves
from imago.files import UnreadableError, read_text, write_text
from imago.masking import masked_config

RUN_OPTION = "from_run"
"""Name of the config, and of the option of each group, with the settings of a run that is resumed or replayed."""


def settings_changed(cfg: DictConfig, folder: Path) -> list[str]:
    """List `KEY BEFORE -> NOW` for each setting that differs from the `config.yaml` of a run folder."""
    file = folder / "config.yaml"
    if not file.is_file():
        return []
    before = dict(leaves(OmegaConf.to_container(read_yaml(file))))
    now = dict(leaves(masked_config(OmegaConf.to_container(cfg, resolve=True))))  # as config.yaml has it
    moved = str(before.get("paths.output_dir")), str(now.get("paths.output_dir"))
    before = {key: value.replace(*moved) if isinstance(value, str) else value for key, value in before.items()}
    not_settings = (*COMMAND_KEYS, "name", "paths", "ckpt_path")
    return [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key.partition(".")[0] not in not_settings
    ]


def drawn_seed(folder: Path) -> int | None:
    """Read the seed from the `config.yaml` of a run folder; None without one."""
    file = folder / "config.yaml"
    seed = read_yaml(file).get("seed") if file.is_file() else None
    return seed if isinstance(seed, int) else None


def found_batch_size(folder: Path) -> int | str:
    """Read the batch size from the `config.yaml` of a run folder; `auto` where none was found."""
    file = folder / "config.yaml"
    size: int | str = OmegaConf.select(read_yaml(file), "data.batch_size") if file.is_file() else "auto"
    return size


def as_new_run(cfg: DictConfig, invocation: Invocation) -> Invocation:
    """The invocation that composes a resumed or replayed run from the defaults: what was typed for it then and now."""
    files = Path(cfg.resume or cfg.replay or "", ".hydra")
    if invocation.config_name != RUN_OPTION or not (files / "hydra.yaml").is_file():
        return invocation
    before = read_yaml(files / "hydra.yaml").hydra
    typed = yaml.safe_load(read_text(files / "overrides.yaml"))
    now = [word for word in invocation.overrides if override_key(word) not in COMMAND_KEYS]
    hydra: Any = OmegaConf.create(invocation.hydra)
    chosen = {group: option for group, option in hydra.hydra.runtime.choices.items() if option != RUN_OPTION}
    hydra.hydra.runtime.choices = {**before.runtime.choices, **chosen}
    hydra.hydra.runtime.config_sources = before.runtime.config_sources
    hydra.hydra.job.config_name = before.job.config_name
    return invocation.composed_from(hydra, _joined(typed, now))


def _joined(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Overrides of a run, and those that were typed since, which replace whatever they set."""
    keys = tuple(f"{override_key(word).replace('/', '.')}." for word in now)
    kept = [word for word in before if not f"{override_key(word).replace('/', '.')}.".startswith(keys)]
    added = {override_key(word) for word in before if word.startswith("+")}
    return [*kept, *(f"+{word}" if override_key(word) in added and word[0] not in "+~" else word for word in now)]


def save_config(cfg: Any, folder: Path, invocation: Invocation) -> None:
    """Write `config.yaml` (what ran) and Hydra's own `.hydra/` files, those of a resumed run as if it was new."""
    invocation = as_new_run(cfg, invocation)
    hydra_files = folder / ".hydra"
    hydra_files.mkdir(exist_ok=True)
    write_text(folder / "config.yaml", yaml_of(cfg, resolve=True))
    write_text(hydra_files / "config.yaml", yaml_of(cfg))
    write_text(hydra_files / "hydra.yaml", yaml_of(OmegaConf.create(invocation.hydra)))
    write_text(hydra_files / "overrides.yaml", yaml_of(OmegaConf.create(list(invocation.overrides))))


def yaml_of(cfg: Any, resolve: bool = False) -> str:
    """Convert a config to YAML without its secrets."""
    content: Any = masked_config(OmegaConf.to_container(cfg, resolve=resolve))
    return OmegaConf.to_yaml(OmegaConf.create(content))


def mask_sweep(folder: Path) -> None:
    """Remove the secrets from `multirun.yaml`, which Hydra writes at the start of a sweep."""
    file = folder / "multirun.yaml"
    if file.is_file():
        write_text(file, yaml_of(OmegaConf.load(file)))


def read_yaml(path: Path) -> DictConfig:
    """Read the config in a YAML file of a run folder.

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is not a config, or has aliases.
    """
    text = read_text(path)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UnreadableError(f"{path} has YAML aliases, which are not allowed in the files of a run.")
        content = OmegaConf.create(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise UnreadableError(f"{path} is damaged: it is not a config.")
    return content

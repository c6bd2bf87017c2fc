"""What was typed, and what Hydra made of it: read from Hydra once, a plain value from then on."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from imago.config.root import CONFIG_DIR


@dataclass(frozen=True)
class Invocation:
    """One call of a command.

    Args:
        config_name: The config that was composed.
        overrides: What was typed but Hydra's own keys; interpolations stay what they are.
        hydra_overrides: What was typed of Hydra's own keys.
        choices: Group -> the option that was chosen.
        config_folders: Where configs are looked for; the first that has one wins.
        output_dir: The run folder.
        sweep_dir: The folder of the sweep that the run is a job of; None for a run by itself.
        sweeper: The settings of Hydra's sweeper.
        changes_directory: `hydra.job.chdir`.
        verbose: `hydra.verbose`.
        hydra: All of Hydra's own settings, as YAML.
        own_checkpoint: The checkpoint that the config came out of, where this user's key has signed it.
    """

    config_name: str
    overrides: tuple[str, ...] = ()
    hydra_overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    config_folders: tuple[str, ...] = (CONFIG_DIR,)
    output_dir: str = "."
    sweep_dir: str | None = None
    sweeper: Mapping[str, Any] = field(default_factory=dict)
    changes_directory: bool = False
    verbose: bool = False
    hydra: str = ""
    own_checkpoint: str | None = None

    @classmethod
    def from_hydra(cls, own_checkpoint: str | None = None) -> "Invocation":
        """The call that Hydra has composed; to be asked for inside of its job only."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        sources = [Path(each.path) for each in hydra.runtime.config_sources if each.schema == "file" and each.path]
        content: Any = OmegaConf.to_container(OmegaConf.create({"sweeper": hydra.sweeper}), resolve=False)
        return cls(
            config_name=hydra.job.config_name or "",
            overrides=tuple(composed_overrides()),
            hydra_overrides=tuple(map(str, hydra.overrides.hydra)),
            choices={str(key): str(value) for key, value in hydra.runtime.choices.items() if value is not None},
            config_folders=tuple(dict.fromkeys([*map(str, sources), CONFIG_DIR])),
            output_dir=str(hydra.runtime.output_dir),
            sweep_dir=str(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None,
            sweeper=content["sweeper"],
            changes_directory=bool(hydra.job.chdir),
            verbose=bool(hydra.verbose),
            hydra=OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})),
            own_checkpoint=own_checkpoint,
        )

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Invocation":
        """The inverse of `to_plain`."""
        tuples: dict[str, Any] = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        return cls(**{**content, **tuples})

    def to_plain(self) -> dict[str, Any]:
        """Plain types, for another process of the run."""
        return asdict(self)

    @property
    def keys(self) -> set[str]:
        """The settings, and groups, that were typed."""
        return {override_key(word) for word in self.overrides}


def composed_overrides() -> list[str]:
    """What was typed but Hydra's own keys, while Hydra composes."""
    from hydra.core.hydra_config import HydraConfig

    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def override_key(word: str) -> str:
    """The setting, or group, that an override names: `+model.net.name=vit_b_16` -> `model.net.name`."""
    return word.lstrip("+~").partition("=")[0]


def override_value(word: str) -> str:
    """What an override gives, as it was typed."""
    return word.partition("=")[2]


def for_hydra(value: str) -> str:
    """`value` in the quotes that Hydra's grammar needs for unusual characters."""
    return value if re.fullmatch(r"[\w./:-]+", value) else "'" + value.replace("'", "\\'") + "'"

"""What was typed, and what Hydra composed from it: read from Hydra once, then a plain value."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from imago.config.root import CONFIG_DIR
from imago.masking import masked_override


@dataclass(frozen=True)
class Invocation:
    """One call of a command.

    Args:
        config_name: Name of the composed config.
        overrides: Typed overrides, except those of Hydra's own keys; interpolations stay unresolved.
        hydra_overrides: Typed overrides of Hydra's own keys.
        choices: Group -> chosen option.
        config_folders: Folders in which configs are searched; the first that has one wins.
        output_dir: Run folder.
        sweep_dir: Folder of the sweep to which the run belongs; None for a single run.
        sweeper: Settings of Hydra's sweeper.
        changes_directory: `hydra.job.chdir`.
        verbose: `hydra.verbose`.
        hydra: All of Hydra's own settings, as YAML.
        own_checkpoint: Checkpoint that the config was read from, if this user's key signed it.
        program: The command as it is typed, `python src/train.py` for example.
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
    program: str = "ml-train"

    @classmethod
    def from_hydra(cls, own_checkpoint: str | None = None, program: str = "ml-train") -> "Invocation":
        """Read the invocation from Hydra; possible only within its job."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        content: Any = OmegaConf.to_container(OmegaConf.create({"sweeper": hydra.sweeper}), resolve=False)
        return cls(
            **_composition(hydra),
            overrides=tuple(composed_overrides()),
            hydra_overrides=tuple(map(str, hydra.overrides.hydra)),
            output_dir=str(hydra.runtime.output_dir),
            sweep_dir=str(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None,
            sweeper=content["sweeper"],
            changes_directory=bool(hydra.job.chdir),
            verbose=bool(hydra.verbose),
            hydra=OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})),
            own_checkpoint=own_checkpoint,
            program=program,
        )

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Invocation":
        """Convert plain types back; the inverse of `to_plain`."""
        tuples: dict[str, Any] = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        return cls(**{**content, **tuples})

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain types, for another process of the run."""
        return asdict(self)

    def with_choice(self, group: str, option: str) -> "Invocation":
        """The invocation as if `option` had been chosen."""
        hydra = OmegaConf.create(self.hydra)
        OmegaConf.update(hydra, f"hydra.runtime.choices.{group}", option)
        return replace(self, choices={**self.choices, group: option}, hydra=OmegaConf.to_yaml(hydra))

    def composed_from(self, hydra: Any, overrides: Sequence[str]) -> "Invocation":
        """The invocation with the config name, the choices and the folders of other Hydra settings, and `overrides`."""
        return replace(self, **_composition(hydra.hydra), overrides=tuple(overrides), hydra=OmegaConf.to_yaml(hydra))

    @property
    def command(self) -> str:
        """Command line that composes these settings, without secrets."""
        folders = [folder for folder in self.config_folders if folder != CONFIG_DIR]
        flags = [word for folder in folders[:1] for word in ("--config-dir", folder)]  # Hydra takes one
        name = [] if self.config_name == "train" else ["--config-name", self.config_name]
        words = [*flags, *name, *map(masked_override, self.overrides)]
        return f"{self.program} {shlex.join(words)}".rstrip()

    def resume_command(self, folder: str | Path, *words: str) -> str:
        """Command line that resumes the run in `folder`, with further `words`."""
        return f"{self.program} {shlex.join([f'resume={for_hydra(str(folder))}', *words])}"

    @property
    def search_path(self) -> tuple[str, ...]:
        """Typed overrides of the folders in which configs are searched."""
        return tuple(word for word in self.hydra_overrides if "searchpath" in override_key(word))

    @property
    def keys(self) -> set[str]:
        """Settings and groups that were typed."""
        return {override_key(word) for word in self.overrides}


def _composition(hydra: Any) -> dict[str, Any]:
    """Name of the composed config, chosen options, and the folders in which configs are searched."""
    sources = [Path(entry.path) for entry in hydra.runtime.config_sources if entry.schema == "file" and entry.path]
    return {
        "config_name": hydra.job.config_name or "",
        "choices": {str(key): str(value) for key, value in hydra.runtime.choices.items() if value is not None},
        "config_folders": tuple(dict.fromkeys([*map(str, sources), CONFIG_DIR])),
    }


def composed_overrides() -> list[str]:
    """Typed overrides, except those of Hydra's own keys; available while Hydra composes."""
    from hydra.core.hydra_config import HydraConfig

    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def override_key(word: str) -> str:
    """Setting or group that an override names: `+model.net.name=vit_b_16` -> `model.net.name`."""
    return word.lstrip("+~").partition("=")[0]


def override_value(word: str) -> str:
    """Value of an override, as typed."""
    return word.partition("=")[2]


def for_hydra(value: str) -> str:
    """Quote `value` as Hydra's grammar requires for unusual characters."""
    return value if re.fullmatch(r"[\w./:*-]+", value) else "'" + value.replace("'", "\\'") + "'"


def typed_path(key: str, path: str | Path) -> str:
    """Override that sets `key` to a path, quoted for Hydra and for a shell."""
    return shlex.quote(f"{key}={for_hydra(str(path))}")

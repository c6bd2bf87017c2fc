"""The command for which words were typed, and what is wrong with a word."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from imago.config.hints import Hint
from imago.config.root import CONFIG_DIR


@dataclass(frozen=True)
class Typed:
    """The command for which words were typed.

    `settings` are the keys at the root of its config, `folders` those of own configs; `experiment`, `sweep` and
    `private` say whether an experiment, a sweep or private training was typed; `parts` are the groups whose `_target_`
    was typed, and `keys` all settings and groups.
    """

    command: str
    settings: Collection[str]
    folders: Sequence[Path] = ()
    experiment: bool = False
    sweep: bool = False
    parts: Collection[str] = ()
    private: bool = False
    keys: Collection[str] = ()

    def has_option(self, group: str, value: str) -> bool:
        """Whether a file is that option of a group."""
        return value.removesuffix(".yaml") in self.options(group)

    def options(self, group: str) -> list[str]:
        """The options of a group, those of own configs too."""
        folders = [Path(folder, group) for folder in (Path(CONFIG_DIR), *self.folders)]
        return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})

    def is_group(self, key: str) -> bool:
        """Whether options of that group can be chosen."""
        return any(Path(folder, key).is_dir() for folder in (Path(CONFIG_DIR), *self.folders))


@dataclass(frozen=True)
class Finding:
    """A word that no command of Imago takes, as it was typed, and the hint for it.

    `is_unknown` where other trainers do not take it either: the error of Hydra is as good, where it is the only one.
    `meant` are the words in its place where the hint only asks whether they are meant.
    """

    typed: str
    what: str
    hint: Hint
    is_unknown: bool = False
    meant: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words in its place."""
        return self.hint.words or self.meant


Part = tuple[list[str], Finding | None]
"""Words that belong together, such as a flag and its value, and what is wrong with them."""


def similar_options(option: str, options: Sequence[str], most: int = 1) -> list[str]:
    """Options that are spelled alike, or else share a word: `default` for `default_callbacks`."""
    words = {*option.split("_")}
    close = difflib.get_close_matches(option, options, n=most)
    return close or [known for known in options if words & {*known.split("_")}][:most]

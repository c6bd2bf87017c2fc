"""What is meant by a setting that the composed config does not have."""

import difflib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from imago.cli.compose import own_folders
from imago.cli.help import option_with
from imago.config.combinations import NOT_OF_THE_TRAINER
from imago.config.foreign_words import WORDS, meaning
from imago.config.hints import Hint
from imago.config.invocation import override_key, override_value
from imago.config.node_checks import NAMED
from imago.config.own_code import allow_imports, imported
from imago.config.part_places import METRICS, is_class, moved_words, right_place
from imago.config.root import CONFIG_DIR
from imago.config.schema import Schema, closest, shipped
from imago.masking import masked_override

ENTRIES = (*NAMED, METRICS)
"""Groups whose entries have names of the user's choice."""
ADDED = ("num_classes", "class_names")
"""Arguments that a run adds."""
HYDRA_KEYS = (*("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"), "hydra.verbose", "hydra.searchpath")
"""Settings of Hydra that people type."""
OF_A_SEARCH = [
    f"hydra.sweeper.{name}"
    for name in (
        *("n_trials", "n_jobs", "direction", "objectives", "study_name", "storage", "sampler.seed", "pruner"),
        *("isolation", "max_failure_rate", "receipt"),
    )
]


def known_settings(base: DictConfig) -> list[str]:
    """All settings of a config, and those of Hydra that people type."""
    return [*_keys(base), *HYDRA_KEYS]


def unknown_setting(
    key: str, value: str, base: DictConfig, typed: Sequence[str], help_all: str
) -> tuple[Hint, tuple[str, ...]]:
    """The hint for a setting that is not in `base`, and what to type in its place where there is one answer.

    Args:
        key: The setting.
        value: Its value, as typed.
        base: The config with the groups that were typed.
        typed: All words that were typed.
        help_all: Command that lists all settings.
    """
    if key.startswith("trainer.") and (why := NOT_OF_THE_TRAINER.get(key.removeprefix("trainer."))) is not None:
        return Hint(note=why), ()
    if key.startswith("hydra.sweeper."):
        is_search = any(override_key(word) == "hparams_search" for word in typed)
        note = (
            closest(key, OF_A_SEARCH, help_all) if is_search else "It belongs to a search: add -m hparams_search=optuna"
        )
        return Hint(note=note), ()
    node, last = parent(base, key)
    if (part := _of_own_part(key, value, base, typed)) is not None:
        return part, part.words
    schema = schema_of(node)
    if node is not None and schema is not None and last in schema["properties"]:
        added = f"+{key}={value}"
        return Hint(note=f"It is an argument of {node._target_}: to add it, type {added}"), (added,)
    known = known_settings(base)
    if (sibling := sibling_of(key, known)) is not None:
        return _guess([sibling], value)
    if (option := option_with(key)) is not None:
        is_chosen = any(override_key(word) == override_key(option) for word in typed)
        also = () if is_chosen else (option, f"{key}={value}")
        line = shlex.join([option, masked_override(f"{key}={value}" if value else key)])
        return Hint(note=f"It is a setting of {option}: type {line}"), also
    if (hint := meaning(key, value)) is not None:
        return hint, ()
    if last == "_target_":
        return Hint(note="Nothing is made there. docs/extend/README.md says where parts of your own go."), ()
    if meant := _elsewhere(key, known):
        return _guess(meant, value)
    if schema is not None and not schema["additionalProperties"]:
        return Hint(note=closest(last, list(schema["properties"]), help_all)), ()
    if key.rpartition(".")[0] in ENTRIES and is_class(value):
        added = f"+{key}._target_={value}"
        return Hint(note=f"To add it, type {added}"), (added,)
    if node is not None and "." in key:
        return Hint(note=f"To add it, type +{key}={value}"), (f"+{key}={value}",)
    own = "" if "." in key else f" Put variables of your own below params: +params.{key}"
    return Hint(note=f"{closest(key, known, help_all)}{own}"), ()


def _guess(keys: Sequence[str], value: str) -> tuple[Hint, tuple[str, ...]]:
    """The hint that asks whether one of `keys` is meant, with the value that was typed; a file has it already."""
    words = [f"{key}={value}" if value else key for key in keys]
    shown = " or ".join(shlex.quote(masked_override(word)) for word in words)
    return Hint(note=f"Did you mean {shown}?"), tuple(words) if len(words) == 1 else ()


def _of_own_part(key: str, value: str, base: DictConfig, typed: Sequence[str]) -> Hint | None:
    """The hint for a part of one's own whose place is misspelt, wrong, or new, or for an argument of such a part."""
    path, _, last = key.rpartition(".")
    targets = (override_value(word) for word in typed if override_key(word) == f"{path}._target_")
    target = value if last == "_target_" else next(targets, None) or _own_target(base, path)
    if target is None:
        return None
    known = shipped().get(target) or _own_schema(target, typed) or {"properties": {last: {}}}
    if last not in (*known["properties"], "_target_"):
        return None if target in shipped() else _argument_hint(path, last, value, target, known, base)
    if (place := right_place(path)) is not None:
        return Hint(moved_words(path, place[1], [f"+{key}={value}"]), f"{place[0]}.")
    is_entry = path.rpartition(".")[0] in ENTRIES
    meant = path if is_entry else _respelled(path, base)
    node = OmegaConf.select(base, meant) if meant is not None else None
    if isinstance(node, DictConfig) and last in node:
        return Hint((f"{meant}.{last}={value}",), f"There is no {path}.") if meant != path else None
    if last == "_target_":
        return Hint((f"+{key}={value}",), "A new entry needs the +.") if is_entry else None
    return Hint((f"+{meant or path}.{last}={value}",), "An argument that no config file has needs the +.")


def _argument_hint(path: str, name: str, value: str, target: str, schema: Schema, base: DictConfig) -> Hint | None:
    """The hint for an argument that a class of one's own does not take: the one that is spelled alike, and all."""
    known = list(schema["properties"])
    if schema["additionalProperties"]:
        return None
    place = right_place(path)
    path = place[1] if place is not None else path
    node = OmegaConf.select(base, path)
    close = difflib.get_close_matches(name, known, n=1)
    words = [f"{'' if node is not None and key in node else '+'}{path}.{key}={value}" for key in close]
    return Hint(tuple(words), f"{target} takes {', '.join(known) or 'no arguments'}.")


def _own_target(base: DictConfig, path: str) -> str | None:
    """The `_target_` of a node, if Imago does not ship it."""
    node = OmegaConf.select(base, path) if path else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    return str(target) if target is not None and target not in shipped() else None


def _own_schema(target: str, typed: Sequence[str]) -> Schema | None:
    """The schema of a class of the user's own, which is imported for it; None if it cannot be.

    Nothing is imported that only a checkpoint names.
    """
    files = (file for folder in (*own_folders(typed), Path(CONFIG_DIR)) for file in folder.rglob("*.yaml"))
    named = any(target in word for word in typed) or any(target in file.read_text(errors="replace") for file in files)
    if not named:
        return None
    allow_imports([target], Path.cwd())
    if (part := imported(target)) is None:
        return None
    from imago.config.signatures import arguments_schema  # imports torch

    schema = arguments_schema(part)
    return {**schema, "properties": {key: kind for key, kind in schema["properties"].items() if key not in ADDED}}


def _respelled(path: str, base: DictConfig) -> str | None:
    """The group in `base` whose name, and the names above it, are spelled alike."""
    node: Any = base
    names: list[str] = []
    for group in path.split("."):
        known = [str(name) for name in node] if isinstance(node, DictConfig) else []
        close = difflib.get_close_matches(group, known, n=1, cutoff=0.75)
        if not close:
            return None
        names.append(close[0])
        node = node[close[0]]
    return ".".join(names)


def parent(cfg: DictConfig, key: str) -> tuple[DictConfig | None, str]:
    """The node that holds a setting, and the name of the setting there."""
    path, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, path) if path else None
    return (node if isinstance(node, DictConfig) else None), last


def schema_of(node: DictConfig | None) -> Schema | None:
    """The schema of the target of a node."""
    return shipped().get(str(node.get("_target_"))) if node is not None else None


def sibling_of(key: str, known: Sequence[str]) -> str | None:
    """The setting beside `key` that is spelled alike."""
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]}
    cutoff = 0.6 if key.rpartition(".")[2] not in WORDS else 0.85
    close = difflib.get_close_matches(key.rpartition(".")[2], siblings, n=1, cutoff=cutoff)
    return siblings[close[0]] if close else None


def _elsewhere(key: str, known: Sequence[str]) -> list[str]:
    """Settings of that name, or almost, in other groups, or in a group whose name is spelled alike."""
    group, _, last = key.rpartition(".")
    if group in known:
        return []
    if elsewhere := [name for name in known if name.rpartition(".")[2] == last]:
        alike = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
        return alike or elsewhere[:3]
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    return [ends[close] for close in difflib.get_close_matches(last, ends, n=1, cutoff=0.8)]


def _keys(cfg: Any, path: str = "") -> Iterable[str]:
    content = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    if not isinstance(content, dict):
        return
    for name, value in cast(dict[str, Any], content).items():
        if not str(name).startswith("_"):
            key = f"{path}.{name}" if path else str(name)
            yield key
            yield from _keys(value, key)

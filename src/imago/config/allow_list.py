"""Allow-list of the objects that the config in a checkpoint may make: a checkpoint may be untrusted.

The file itself is inspected in checkpoint/guard.py, before anything of it is read.
"""

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.schema import shipped
from imago.config.targets import SAFE_FILES, families_of
from imago.config.tree import nodes
from imago.errors import UserError

DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
ELSEWHERE = re.compile(r"\w:/|::")
TRANSFORMS = ("data.eval_transform", "data.transform")
"""Settings of the data group that a network needs."""
FOLDERS = {  # argument -> setting of the folder that it must lie in
    "dirpath": "paths.output_dir",
    "default_root_dir": "paths.output_dir",
    "cache_dir": "paths.cache_dir",
    "root": "paths.data_dir",
}


def check_targets(
    cfg: DictConfig,
    groups: Sequence[str],
    trusted: Sequence[str],
    typed: Sequence[str] = (),
    is_export: bool = False,
    in_python: bool = False,
) -> None:
    """Raise UserError for a `_target_` in one of the `groups` of `cfg` that is not on the allow-list.

    Both the name and the object that it leads to must be: a name may lead through an allowed package to something that
    the package only imports. All names are checked before anything is imported. `trusted` are further prefixes of
    names to accept; `typed` are the command-line overrides, whose values are trusted.
    `is_export` and `in_python` are for the advice: an export has no signature, and Python takes a list.
    """
    advice = _trust([*trusted, *own_prefixes(cfg, groups, trusted)], is_export, in_python)
    words = [word.lstrip("+") for word in typed]
    makers = [(path, node) for group in groups for path, node in nodes(OmegaConf.select(cfg, group), group)]
    makers = [
        (path, node)
        for path, node in makers
        if f"{path}._target_={node._target_}" not in words
        and not any(str(node._target_).startswith(prefix) for prefix in trusted if prefix)
    ]
    for group in groups:
        _check_resolved(group, OmegaConf.select(cfg, group), words)
    for path, node in makers:
        if not _is_named(node._target_) or not _is_in_place(node._target_, path):
            raise UserError(refusal(path, node._target_, advice=advice))
    for path, node in makers:
        if not _leads_to_it(node._target_):
            raise UserError(refusal(path, node._target_))
        for name in [str(key) for key in node if not str(key).startswith("_")]:
            is_typed = any(word.startswith(f"{path}.{name}=") for word in words)
            if not is_typed and not _may_be_given(cfg, node._target_, name, node[name]):
                raise UserError(refusal(path, node._target_, f" with {name}={node[name]}"))


def _check_resolved(group: str, node: Any, typed: Sequence[str]) -> None:
    """Raise UserError for texts that would be resolved again, and for data that are not files of this machine."""
    if not OmegaConf.is_config(node):
        return
    entries = [OmegaConf.to_container(node, resolve=True)]
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict | list):
            entries.extend(entry.values() if isinstance(entry, dict) else entry)
        elif not isinstance(entry, str) or any(word.endswith(f"={entry}") for word in typed):
            continue
        elif "${" in entry or (group == "data" and ELSEWHERE.search(entry)):
            raise UserError(f"This checkpoint has {entry!r} ({group}), which is not allowed. Nothing was executed.")


def own_prefixes(cfg: DictConfig, groups: Sequence[str], trusted: Sequence[str] = ()) -> list[str]:
    """Prefixes such as `my_nets.` to trust for those targets in `groups` that are neither on the allow-list nor in one
    of its libraries: nobody should trust a whole library."""
    targets = [str(node._target_) for group in groups for _, node in nodes(OmegaConf.select(cfg, group), group)]
    own = [
        target for target in targets if not _is_named(target) and not target.startswith(tuple(filter(None, trusted)))
    ]
    packages = [target.rpartition(".")[0] for target in own]
    return [f"{package}." for package in dict.fromkeys(packages) if package and not _is_library(package)]


def _trust(prefixes: list[str], is_export: bool, in_python: bool) -> str:
    """Sentence that says how to allow targets with these prefixes."""
    type_them = f"pass trusted_targets={prefixes}" if in_python else f"type 'trusted_targets=[{','.join(prefixes)}]'"
    if is_export:
        return f"If it is your own, or you trust its author, {type_them}. An export has no signature"
    return (
        f"If you trust its author, {type_them}. If you wrote it on another machine, copy your key here: see "
        "docs/security.md"
    )


def _is_library(package: str) -> bool:
    return package.partition(".")[0] in {name.partition(".")[0] for name in shipped()} | {"os", "builtins"}


def refusal(path: str, target: Any, arguments: str = "", advice: str = "") -> str:
    """Return the message for a target that a checkpoint may not name."""
    message = (
        f"This checkpoint wants to create {target}{arguments} ({path}), which is not on the allow-list. "
        "Nothing was executed."
    )
    package, _, _ = str(target).rpartition(".")
    return message if not package or _is_library(package) else f"{message}\n{advice}"


def _is_named(target: Any) -> bool:
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        return False
    return target in shipped() or any(family.accepts is not None for family in families_of(target))


def _is_in_place(target: str, path: str) -> bool:
    return all(path in family.keys for family in families_of(target) if family.keys is not None)


def _leads_to_it(target: str) -> bool:
    module, _, name = target.rpartition(".")
    try:
        leads_to = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):  # Hydra would also walk through attributes
        return False
    if target in shipped():
        return True
    tests = [family.accepts for family in families_of(target) if family.accepts is not None]
    return tests[0](leads_to)  # the first row is the narrowest


def _may_be_given(cfg: DictConfig, target: str, name: str, value: Any) -> bool:
    """Whether an argument is harmless: files and folders must lie in the run's own folders."""
    if any(name not in family.arguments for family in families_of(target) if family.arguments is not None):
        return False
    if target == "datasets.load_dataset" and name == "path":
        return value in SAFE_FILES
    if name != "weights" and any(name in family.downloads for family in families_of(target)):
        return value in (None, False)  # `weights` is removed before a network is made (`without_pretrained`)
    if name == "filename":
        return value is None or (isinstance(value, str) and Path(value).name == value and ".." not in value)
    if target == "imago.data.TorchVisionDataModule" and name == "data_dir":
        return _is_below(cfg, value, "paths.data_dir")
    return name not in FOLDERS or value is None or _is_below(cfg, value, FOLDERS[name])


def _is_below(cfg: DictConfig, value: Any, setting: str) -> bool:
    folder = OmegaConf.select(cfg, setting)
    return folder is not None and Path(os.path.abspath(str(value))).is_relative_to(os.path.abspath(folder))

"""Where a setting came from: the command line, or one of the YAML files that a config was composed of."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from imago.config import CONFIG_DIR, typed_overrides


def origin_of(key: str) -> str:
    """`typed`, or `in configs/experiment/mine.yaml`; empty where it cannot be told."""
    for override in typed_overrides():
        name = override.lstrip("+").partition("=")[0].replace("/", ".")
        is_group = Path(CONFIG_DIR, override.lstrip("+").partition("=")[0]).is_dir()
        if name == key or (key.startswith(f"{name}.") and not is_group):
            return "typed"
    found = [(path, package) for path, package in _files() if _holds(path, package, key)]
    if not found:
        return ""
    path, package = found[-1]
    return f"in {_shown(path)}, line {_line(path, _parts(package, key))}"


def is_typed(key: str) -> bool:
    """Whether it stands on the command line."""
    return origin_of(key) == "typed"


def is_ones_own(key: str) -> bool:
    """Whether a setting was typed, or stands in a file that Imago does not ship."""
    if is_typed(key):
        return True
    found = [path for path, package in _files() if _holds(path, package, key)]
    return bool(found) and not found[-1].is_relative_to(CONFIG_DIR)


def is_inherited(key: str, target: str) -> bool:
    """Whether a setting stands in a file that the one of `target` comes after: it was written for another target."""
    if is_typed(key):
        return False
    places = [
        [n for n, (path, package) in enumerate(_files()) if _holds(path, package, each)] for each in (key, target)
    ]
    if is_typed(target):
        return bool(places[0])
    return bool(places[0] and places[1]) and places[0][-1] < places[1][-1]


def _files() -> Iterator[tuple[Path, str]]:
    """The chosen files and those they start from, with their packages; the later ones win."""
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file" and source.path]
    folders = list(dict.fromkeys([*folders, Path(CONFIG_DIR)]))
    chosen = [(str(group), str(option)) for group, option in runtime.choices.items() if option is not None]
    chosen.sort(key=lambda choice: choice[0] in ("experiment", "hparams_search", "debug"))
    for group, option in [("", HydraConfig.get().job.config_name or ""), *chosen]:
        if not group.startswith("hydra"):
            yield from _with_defaults(folders, group, option)


def _with_defaults(folders: list[Path], group: str, option: str) -> Iterator[tuple[Path, str]]:
    path = next((f / group / f"{option}.yaml" for f in folders if (f / group / f"{option}.yaml").is_file()), None)
    if path is None:
        return
    if group:
        for entry in _plain(path).get("defaults") or []:
            if isinstance(entry, str) and entry != "_self_":
                yield from _with_defaults(folders, group, entry)
    yield path, "" if re.search(r"^# *@package _global_", path.read_text(), re.MULTILINE) else group.replace("/", ".")


def _holds(path: Path, package: str, key: str) -> bool:
    if package and not key.startswith(f"{package}."):
        return False
    value: Any = _plain(path)
    for part in _parts(package, key):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _parts(package: str, key: str) -> list[str]:
    return (key.removeprefix(f"{package}.") if package else key).split(".")


def _line(path: Path, parts: list[str]) -> int:
    """Where a key stands in a YAML file."""
    node: Any = yaml.compose(path.read_text(encoding="utf-8"))
    line = 1
    for part in parts:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next(((key, value) for key, value in entries if key.value == part), (None, None))
        if key is None:
            break
        line = key.start_mark.line + 1
    return line


def _plain(path: Path) -> dict[str, Any]:
    cfg = OmegaConf.load(path)
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)) if isinstance(cfg, DictConfig) else {}


def _shown(path: Path) -> str:
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(shown)

"""Source of a setting: the command line, or one of the YAML files that the config was composed of."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from imago.config.invocation import Invocation, override_key, override_value
from imago.config.root import CONFIG_DIR

GLOBAL = ("recipe", "data/augment", "experiment", "hparams_search", "debug")
"""Groups that come last, in this order, and set what belongs to others."""
NOTHING = object()
"""Value of a setting that a file does not have."""


def origin_of(key: str, invocation: Invocation) -> str:
    """Source of a setting: `typed`, or `in configs/experiment/mine.yaml, line 3`; empty if unknown."""
    for override in invocation.overrides:
        name = override_key(override).replace("/", ".")
        is_group = Path(CONFIG_DIR, override_key(override)).is_dir()
        below = key.removeprefix(f"{name}.")
        if name == key or (below != key and not is_group and _has_entry(override_value(override), below)):
            return "typed"
    holders = [(path, package) for path, package in _files(invocation) if holds(path, package, key)]
    if not holders:
        return ""
    path, package = holders[-1]
    return f"in {shown_path(path)}, line {_line(path, _parts(package, key))}"


def _has_entry(value: str, key: str) -> bool:
    """Whether a typed value sets an entry below it: a dictionary is merged, and leaves what it does not name."""
    first = re.escape(key.partition(".")[0])
    return not value.startswith("{") or re.search(rf"[{{,]\s*{first}\s*:", value) is not None


def in_file(key: str, invocation: Invocation) -> str:
    """File and line of a setting, in brackets; empty if it was typed."""
    origin = origin_of(key, invocation)
    return f" ({origin})" if origin not in ("", "typed") else ""


def with_places(message: str, invocation: Invocation) -> str:
    """Add to each setting with which a line of `message` begins the file of the user's, and the line, that has it."""

    def placed(match: re.Match[str]) -> str:
        return match[0] + (in_file(match[1], invocation) if is_users_own(match[1], invocation) else "")

    return re.sub(r"(?:^|while creating )([a-z_]+(?:\.\w+)+)(?=[:;)])", placed, message, flags=re.MULTILINE)


def is_typed(key: str, invocation: Invocation) -> bool:
    """Whether a setting was typed on the command line."""
    return origin_of(key, invocation) == "typed"


def is_users_own(key: str, invocation: Invocation) -> bool:
    """Whether a setting was typed, or is in a file that Imago does not ship."""
    if is_typed(key, invocation):
        return True
    holders = [path for path, package in _files(invocation) if holds(path, package, key)]
    return bool(holders) and not holders[-1].is_relative_to(CONFIG_DIR)


def is_of_group(key: str, group: str, invocation: Invocation) -> bool:
    """Whether the value of a setting is that of the chosen option of `group`."""
    holders = [path for path, package in _files(invocation) if holds(path, package, key)]
    return not is_typed(key, invocation) and bool(holders) and holders[-1].parent.name == group


def is_inherited(key: str, target: str, invocation: Invocation) -> bool:
    """Whether a setting is in a file that comes before that of `target`, and was written for another target."""
    if is_typed(key, invocation):
        return False
    files = list(_files(invocation))
    of_key = [number for number, (path, package) in enumerate(files) if holds(path, package, key)]
    of_target = [number for number, (path, package) in enumerate(files) if holds(path, package, target)]
    if is_typed(target, invocation):
        return bool(of_key)
    if not of_key or not of_target or of_key[-1] >= of_target[-1]:
        return False
    former = [number for number in of_target if number <= of_key[-1]]
    return not former or _value(*files[former[-1]], target) != _value(*files[of_target[-1]], target)


def _files(invocation: Invocation) -> Iterator[tuple[Path, str]]:
    """Chosen files and their defaults, with their packages; later ones win."""
    folders = [Path(folder) for folder in invocation.config_folders]
    lists = [
        (override_key(word), name)
        for word in invocation.overrides
        if override_value(word).startswith("[") and Path(CONFIG_DIR, override_key(word)).is_dir()
        for name in re.findall(r"[^\[\]', ]+", override_value(word))
    ]  # callbacks=[default,hook], which Hydra does not count among the choices
    yield from _with_defaults(folders, "", invocation.config_name, {}, set())
    yield from chosen_files(folders, [*invocation.choices.items(), *lists])


def chosen_files(folders: Sequence[Path], choices: Iterable[tuple[str, str]]) -> Iterator[tuple[Path, str]]:
    """Files of the options (group, name) that were chosen, and their defaults, with their packages; later ones win."""
    choices = [(group, option) for group, option in choices if not group.startswith("hydra")]
    nested: set[str] = set()  # they come where the defaults of another file name them
    for group, option in sorted(choices, key=_rank):
        if group not in nested:
            yield from _with_defaults(folders, group, option, dict(choices), nested)


def _rank(choice: tuple[str, str]) -> tuple[int, int]:
    group = choice[0]
    return GLOBAL.index(group) if group in GLOBAL else -1, group.count("/")


def _with_defaults(
    folders: Sequence[Path], group: str, option: str, choices: Mapping[str, str], nested: set[str]
) -> Iterator[tuple[Path, str]]:
    path = next((f / group / f"{option}.yaml" for f in folders if (f / group / f"{option}.yaml").is_file()), None)
    if path is None:
        return
    content, is_global = _read(path)
    own = path, "" if is_global else group.replace("/", ".")
    defaults = list(content.get("defaults") or []) if group else []
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            yield own
        elif isinstance(entry, str):
            yield from _with_defaults(folders, group, entry, choices, nested)
        elif isinstance(entry, dict) and not is_global:
            for name, chosen in entry.items():
                inner = f"{group}/{name}"
                if re.fullmatch(r"\w+", str(name)) and inner not in nested:
                    nested.add(inner)
                    yield from _with_defaults(folders, inner, choices.get(inner, str(chosen)), choices, nested)


def holds(path: Path, package: str, key: str) -> bool:
    """Whether a YAML file with the given package sets a key."""
    return _value(path, package, key) is not NOTHING


def _value(path: Path, package: str, key: str) -> Any:
    if package and not key.startswith(f"{package}."):
        return NOTHING
    value: Any = _read(path)[0]
    for part in _parts(package, key):
        if not isinstance(value, dict) or part not in value:
            return NOTHING
        value = value[part]
    return value


def _parts(package: str, key: str) -> list[str]:
    return (key.removeprefix(f"{package}.") if package else key).split(".")


def _line(path: Path, parts: list[str]) -> int:
    """Line number of a key in a YAML file."""
    node: Any = yaml.compose(path.read_text(encoding="utf-8"))
    line = 1
    for part in parts:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next(((key, value) for key, value in entries if key.value == part), (None, None))
        if key is None:
            break
        line = key.start_mark.line + 1
    return line


def _read(path: Path) -> tuple[dict[str, Any], bool]:
    """Keys of a YAML file, and whether its package is `_global_`. Cached: a command asks 300 times, which took a third
    of the time of a short run."""
    return _read_once(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read_once(path: Path, _: int) -> tuple[dict[str, Any], bool]:
    text = path.read_text(encoding="utf-8")
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    is_global = re.search(r"^# *@package _global_", text, re.MULTILINE) is not None
    return content if isinstance(content, dict) else {}, is_global


def shown_path(path: Path) -> str:
    """A file as one would type it here."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(shown)

"""Pages of `--help`, `--help-all` and `--version`, read from the comments in the config files: no torch, no composing.

A setting is `key: default  # explanation` in YAML; `{a, b}` at the beginning of an explanation are its choices.
"""

import platform
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from imago.config.auto_model import AUTO, BY_NAME, NET_NAME, PRETRAINED
from imago.config.root import CONFIG_DIR
from imago.config.targets import timm_names, torchvision_names
from imago.definitions import __version__

FIRST = {  # command -> inherited settings without which it does little
    "train": ("data.data_dir", "model.net.name", "trainer.max_epochs"),
    "eval": ("ckpt_path",),
    "inference": ("ckpt_path",),
    "export": ("ckpt_path",),
    "serve": ("ckpt_path",),
    "doctor": ("data.data_dir",),
}
COMMON = {  # command -> further inherited settings that most people type
    "train": (
        *("data.image_size", "data.batch_size", "data.num_workers", "data.val_ratio", "data.test_ratio"),
        *("model.net.weights", "model.freeze", "model.init_from", "model.optimizer.lr"),
        *("trainer.devices", "callbacks.early_stopping.patience"),
    ),
    "eval": ("data.data_dir", "data.batch_size", "data.num_workers", "trusted_targets"),
    "inference": ("data.data_dir", "data.batch_size", "data.num_workers", "trusted_targets"),
    "export": ("trusted_targets",),
    "serve": ("trusted_targets",),
    "visualise": ("data.data_dir", "data.image_size"),
    "doctor": ("data.exclude", "data.num_workers"),
}
RUN_DIR = ("hydra.run.dir=FOLDER", "run folder, in place of a new one below paths.log_dir")
CHOSEN = {
    **{"train": (), "eval": ("data", "trainer", "logger"), "inference": ("data", "trainer")},
    **{"export": (), "serve": ()},
}
"""Groups whose options are listed; an empty tuple with `train` stands for all of them."""
FLAGS = (
    ("--help", "Show this page, with the settings of options that are typed: strategy=dp --help."),
    ("--help-all", "Show every setting, the inherited ones too."),
    ("--version", "Show the versions of Imago, torch, Lightning and Python."),
    ("--cfg job", "Show the settings that a command line leads to, and run nothing."),
    ("-m", "Run a sweep: each combination of values that commas separate."),
    ("--config-dir DIR", "Add a folder of your own configs."),
)
LINE = re.compile(r"( *)([A-Za-z]\w*):(?: +(.*?))?(?: +# (.*))?$")
HIDDEN = ("defaults", "hydra", "_target_", "_partial_", "task_name")


@dataclass(frozen=True)
class Setting:
    """A key with its default, as written in YAML, and its explanation."""

    key: str
    default: str
    text: str


def page_for(words: Sequence[str], command: str, program: str) -> str | None:
    """The text for `--version`, `--help`, `--help-all` or `--networks`; None where none of them was typed."""
    if "--version" in words:
        return version_line()
    if "--networks" in words:
        return "\n".join(timm_names() if "model=timm" in words else torchvision_names())
    if "--help-all" in words or "--help" in words or "-h" in words:
        return help_page(command, program, "--help-all" in words, words)
    return None


def version_line() -> str:
    """`imago 0.2.0 (torch 2.15.0, lightning 2.6.6, Python 3.12.7)`, from the metadata of the packages."""
    torch, lightning = _version("torch"), _version("lightning")
    return f"imago {__version__} (torch {torch}, lightning {lightning}, Python {platform.python_version()})"


def help_page(command: str, program: str, every: bool = False, typed: Sequence[str] = ()) -> str:
    """The help of a command; with `every`, all settings. Options that are `typed` have a part of their own."""
    file = Path(CONFIG_DIR, f"{command}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    words = (content.get("hydra") or {}).get("help") or {}
    chosen = {word: path for word in typed if (path := _option_file(word)) is not None}
    inherited = {setting.key: setting for setting in _inherited(content)}
    if NET_NAME in inherited:  # its file has the default of model=torchvision
        inherited[NET_NAME] = replace(inherited[NET_NAME], default="NAME")
    own = [*(inherited[key] for key in FIRST.get(command, ())), *file_settings(file)]
    names = {setting.key for setting in own}
    common = [inherited[key] for key in COMMON.get(command, ()) if key in inherited and key not in names]
    rest = [setting for key, setting in inherited.items() if key not in names]
    options = {word: list(file_settings(path, _package(path))) for word, path in chosen.items()}
    parts = [
        str(words.get("header", "")),
        f"Usage: {program} [KEY=VALUE ...] [GROUP=OPTION ...] [FLAG ...]",
        _examples(str(words.get("footer", "")), f"ml-{command}", program),
        *(f"Settings of {word}\n{_rows(map(_shown, settings))}" for word, settings in options.items() if settings),
        f"Settings and their defaults\n{_rows(own if every else map(_shown, own))}",
    ]
    if every:
        parts.append(f"Inherited settings{_whose(content)}\n{_rows(rest)}")
    else:
        parts.append(
            f"Inherited settings that are often typed (--help-all shows all of them)\n{_rows(common, RUN_DIR)}"
        )
    if rows := _groups(command, content, every, [*chosen]):
        parts.append(f"Groups and their options\n{_rows(rows)}")
    parts.append("Flags\n" + _table([*FLAGS, *([NETWORKS] if command == "train" else [])]))
    return "\n\n".join(part.rstrip() for part in parts if part.strip())


NETWORKS = ("--networks", "List the networks of torchvision, or with model=timm those of timm, for model.net.name=.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _whose(content: dict[str, Any]) -> str:
    return " and their defaults in training; a checkpoint brings its own" if "checkpoint" in content["defaults"] else ""


def _examples(footer: str, name: str, program: str) -> str:
    """The examples of a command with the program as it was typed; what each does stands beside or below it."""
    title, *lines = footer.replace("$$", "$").splitlines() or [""]
    split = [re.split(r"  +", line.strip(), maxsplit=1) for line in lines]
    rows = [(typed.replace(name, program), *text) for typed, *text in split]
    width = max((len(row[0]) for row in rows if len(row) > 1), default=0)
    shown = []
    for typed, *text in rows:
        is_beside = text and width + len(text[0]) + 4 <= _width()
        shown.append(f"  {typed:<{width}}  {text[0]}" if is_beside else f"  {typed}")
        if text and not is_beside:
            shown.append(f"      {text[0]}")
    return "\n".join([title, *shown]) if lines else title


def option_with(key: str) -> str | None:
    """The option of a group whose file has the setting: `model.optimizer.momentum` -> `model/optimizer=sgd`."""
    options = []
    for file in Path(CONFIG_DIR).rglob("*.yaml"):
        group = file.parent.relative_to(CONFIG_DIR).as_posix()
        is_searched = group.partition("/")[0] not in (".", "recipe", "experiment", "debug", "hydra", "paths", "local")
        if is_searched and any(setting.key == key for setting in file_settings(file, group.replace("/", "."))):
            options.append(f"{group}={file.stem}")
    return max(options, default=None)  # model=torchvision, not model=resnet18


def settings_named(name: str, command: str) -> list[str]:
    """The settings of a command whose last part is `name`: `test_ratio` -> `data.test_ratio`."""
    file = Path(CONFIG_DIR, f"{command}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    keys = {setting.key for setting in (*file_settings(file), *_inherited(content))}
    return sorted(key for key in keys if key.rpartition(".")[2] == name)


def file_settings(file: Path, package: str = "") -> Iterator[Setting]:
    """The settings of one file, in its order; a list of several lines is left out."""
    text = file.read_text(encoding="utf-8")
    package = "" if "@package _global_" in text else package
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            continue
        indent, name, value, comment = len(match[1]), match[2], match[3], match[4]
        path = [(depth, part) for depth, part in path if depth < indent]
        path.append((indent, name))
        parts = [part for _, part in path]
        is_group = value is None or value.startswith("#")
        if not is_group and not any(part in HIDDEN or part.startswith("_") for part in parts):
            key = ".".join(filter(None, [package, *parts]))
            if not key.startswith("hydra."):
                yield Setting(key, value or "", comment or "")


def _inherited(content: dict[str, Any]) -> Iterator[Setting]:
    """The settings of the files that a config starts from; later files win, and keep the explanations."""
    merged: dict[str, Setting] = {}
    for file, package in _files(content.get("defaults") or [], ""):
        for setting in file_settings(file, package):
            before = merged.get(setting.key)
            text = setting.text or (before.text if before is not None else "")
            merged[setting.key] = Setting(setting.key, setting.default, text)
    yield from merged.values()


def _files(defaults: Sequence[Any], group: str) -> Iterator[tuple[Path, str]]:
    replaced = {
        key.removeprefix("override "): option
        for entry in defaults
        if isinstance(entry, dict)
        for key, option in entry.items()
        if key.startswith("override ")
    }
    for entry in defaults:
        chosen = entry if isinstance(entry, dict) else {"": entry}
        for key, option in chosen.items():
            if key.startswith(("override ", "optional ")) or option in (None, "_self_") or key in replaced:
                continue
            option = "default" if option == "from_checkpoint" and key != "" else option
            options = option if isinstance(option, list) else _documented(key, option)
            for name in options:
                place = "/".join(filter(None, [group, key]))
                file = Path(CONFIG_DIR, place, f"{name}.yaml")
                if file.is_file():
                    below = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
                    yield from _files(below.get("defaults") or [], place)
                    yield file, place.replace("/", ".")


def _documented(group: str, option: str) -> tuple[str, ...]:
    """The options that document a group: those of training for one that comes from a checkpoint, and those that
    model=auto may become."""
    if group == "model" and option in ("default", AUTO):
        return PRETRAINED, BY_NAME
    return ("image_folder" if group == "data" and option == "default" else option,)


def _option_file(word: str) -> Path | None:
    """The file of an option that was typed, `strategy=dp`."""
    group, _, option = word.partition("=")
    file = Path(CONFIG_DIR, group, f"{option}.yaml")
    return file if re.fullmatch(r"[a-z_/]+=\w+", word) and file.is_file() else None


def _package(file: Path) -> str:
    return file.parent.relative_to(CONFIG_DIR).as_posix().replace("/", ".")


def _groups(command: str, content: dict[str, Any], every: bool, typed: Sequence[str] = ()) -> list[Setting]:
    chosen = {
        key.removeprefix("override "): option
        for entry in content.get("defaults") or []
        if isinstance(entry, dict)
        for key, option in entry.items()
    } | dict(word.split("=") for word in typed)
    names = CHOSEN.get(command, ("data", "experiment"))
    if every or command == "train":
        names = tuple(
            sorted(str(path.relative_to(CONFIG_DIR)) for path in Path(CONFIG_DIR).rglob("*") if _is_group(path))
        )
    rows = []
    for group in names:
        options = sorted(file.stem for file in Path(CONFIG_DIR, group).glob("*.yaml"))
        default = chosen.get(group)
        text = "{" + ", ".join(options) + "}"
        rows.append(Setting(group, "" if default in (None, "from_checkpoint") else str(default), text))
    return rows


def _is_group(path: Path) -> bool:
    is_offered = path.name not in ("schema", "local", "hydra", "paths") and path.parent.name != "hydra"
    return is_offered and path.is_dir() and any(path.glob("*.yaml"))


def _shown(setting: Setting) -> Setting:
    """The setting; with an ellipsis for a default that a function computes, whose explanation says how."""
    return replace(setting, default=re.sub(r"\$\{[a-z_]+:.*\}$", "\N{HORIZONTAL ELLIPSIS}", setting.default))


def _rows(settings: Iterable[Setting], *more: tuple[str, str]) -> str:
    return _table([*((f"{setting.key}={setting.default}", setting.text) for setting in settings), *more])


def _width() -> int:
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 100)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns; a long name has its explanation on the next line."""
    width = _width()
    left = min(max((len(name) for name, _ in rows if len(name) <= 34), default=0), 34) + 2
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - left - 2, break_on_hyphens=False)
        first = f"  {name:<{left}}"
        if len(name) > left - 2 and wrapped:
            lines.append(f"  {name}")
            first = " " * (left + 2)
        lines.append((first + (wrapped[0] if wrapped else "")).rstrip())
        lines += [" " * (left + 2) + line for line in wrapped[1:]]
    return "\n".join(lines)

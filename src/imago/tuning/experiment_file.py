"""A learning rate in an experiment file: a new one, or one of the user's, whose other lines stay as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from imago.config.invocation import override_key, override_value
from imago.config.root import CONFIG_DIR
from imago.errors import UserError
from imago.files import read_text, write_text

KEY = ("model", "optimizer", "lr")


def check_target(file: Path) -> None:
    """Raise UserError where no experiment can be written."""
    if file.suffix != ".yaml":
        raise UserError(f"--write {file} is no YAML file. Type --write my_configs/experiment/mine.yaml, for example.")
    if not file.parent.is_dir() and file.parent.exists():
        raise UserError(f"--write {file}: {file.parent} is no folder.")
    if file.exists():
        _mapping(file, read_text(file))


def write_rate(file: Path, rate: float, words: Sequence[str], remark: str) -> None:
    """Write `model.optimizer.lr` to an experiment file. A new one has the settings of `words`, too, and `remark` in its
    header.

    Raises:
        UserError: The file is no YAML file with settings.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _new_file(file, rate, words, remark))
        return
    text = read_text(file)
    write_text(file, _with_rate(text, _mapping(file, text), rate))


def _mapping(file: Path, text: str) -> yaml.MappingNode:
    try:
        content = yaml.compose(text)
    except yaml.YAMLError as error:
        raise UserError(f"--write {file} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, yaml.MappingNode) or content.flow_style:
        raise UserError(f"--write {file} has no settings. Type the name of an experiment file, or of a new one.")
    return content


def _with_rate(text: str, node: yaml.MappingNode, rate: float) -> str:
    """`text` with the rate in the place of a former one, or in new lines of the group that is to hold it."""
    for depth, name in enumerate(KEY):
        entry = next((value for key, value in node.value if key.value == name), None)
        if entry is None:
            return _with_lines(text, node, KEY[depth:], rate)
        if depth == len(KEY) - 1 and isinstance(entry, yaml.ScalarNode):
            return text[: entry.start_mark.index] + f"{rate:g}" + text[entry.end_mark.index :]
        if not isinstance(entry, yaml.MappingNode) or entry.flow_style:
            break
        node = entry
    raise UserError(
        f"{'.'.join(KEY[: depth + 1])} in the experiment file is no group with lines of its own. Change it."
    )


def _with_lines(text: str, node: yaml.MappingNode, keys: Sequence[str], rate: float) -> str:
    """`text` with lines for `keys`, before the first entry of `node`, or at the end where they belong to the root."""
    is_root = keys == KEY
    lines = text.splitlines(keepends=True)
    if is_root and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    at = len(lines) if is_root else node.value[0][0].start_mark.line
    indent = 0 if is_root else node.value[0][0].start_mark.column
    new = "\n".join(f"{' ' * (indent + 2 * number)}{key}:" for number, key in enumerate(keys))
    return "".join([*lines[:at], f"{new} {rate:g}\n", *lines[at:]])


def _new_file(file: Path, rate: float, words: Sequence[str], remark: str) -> str:
    """An experiment with the settings that were typed, and the rate."""
    base: list[str] = []
    choices: dict[str, str] = {}
    values: list[str] = []
    for word in words:
        key, value = override_key(word), override_value(word)
        if key == "experiment":
            base = [f"  - {value}\n"]
        elif Path(CONFIG_DIR, key).is_dir() and not value.startswith("{"):
            choices[key] = f"  - override /{key}: {value}\n"
        elif not word.startswith("~") and not key.startswith("hydra"):
            values.append(f"{key}={value}")
    settings: Any = OmegaConf.from_dotlist([*values, f"{'.'.join(KEY)}={rate:g}"])
    folder = file.parent.parent
    own = "" if folder.resolve() == Path(CONFIG_DIR).resolve() else f"--config-dir {folder} "
    head = f"# @package _global_\n# ml-train {own}experiment={file.stem}\n# {remark}\n"
    defaults = f"defaults:\n{''.join([*base, *choices.values()])}  - _self_\n\n" if base or choices else ""
    return head + defaults + OmegaConf.to_yaml(settings)

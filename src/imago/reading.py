"""Reading files that somebody else may have written: regular ones, of a bounded size, with values of known kinds."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

MEGABYTE = 2**20
NUMBER = (int, float)
TEXT = (str, type(None))


class UnreadableError(ValueError):
    """The file is not one of ours."""


def read_text(path: Path, most: int = MEGABYTE) -> str:
    """The text of a regular file of at most `most` bytes; a pipe or a device would never end.

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is another kind of file, larger, or not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableError(f"{path} is not a regular file.")
        content = file.read(most + 1)
    if len(content) > most:
        raise UnreadableError(f"{path} is larger than {most // MEGABYTE} MB, as no file of a run is.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path} is not text in UTF-8.") from error


def read_json(path: Path, shape: Any, most: int = MEGABYTE) -> Any:
    """The content of a JSON file, as far as it fits `shape` (see `fitting`).

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is not JSON, or does not fit.
    """
    try:
        content = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path} is damaged: it is not JSON.") from error
    fitted = fitting(content, shape)
    if fitted is MISFIT:
        raise UnreadableError(f"{path} is damaged: it holds something else than Imago writes there.")
    return fitted


MISFIT = object()


def fitting(value: Any, shape: Any) -> Any:
    """`value` as far as it fits, or MISFIT.

    A shape is a type or several; `[shape]`, a list of such; `{"*": shape}`, a dictionary of such under any names; or
    `{name: shape}`: other names are left out, and so is what does not fit, unless the name ends in `!`: then the whole
    is a misfit.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return MISFIT
        entries = [fitting(entry, shape[0]) for entry in value]
        return MISFIT if any(entry is MISFIT for entry in entries) else entries
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return MISFIT
        if "*" in shape:
            pairs = {name: fitting(entry, shape["*"]) for name, entry in value.items()}
            return MISFIT if any(entry is MISFIT for entry in pairs.values()) else pairs
        kept: dict[str, Any] = {}
        for key, part in shape.items():
            name = key.removesuffix("!")
            entry = fitting(value[name], part) if name in value else MISFIT
            if entry is not MISFIT:
                kept[name] = entry
            elif key != name:
                return MISFIT
        return kept
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds)
    return value if fits else MISFIT


def read_yaml(path: Path) -> DictConfig:
    """The config in a YAML file of a run folder.

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is not a config, or unfolds by aliases.
    """
    text = read_text(path)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UnreadableError(f"{path} has YAML aliases, as no file of a run has.")
        content = OmegaConf.create(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise UnreadableError(f"{path} is damaged: it is not a config.")
    return content

"""The YAML files of a run, read within bounds and, since a thousand runs share most of their settings, once a part."""

import re
import string
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from imago.files import UnreadableError, read_text

YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError)
HEADER = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null):)([A-Za-z_][\w/]*):", re.IGNORECASE)
"""Line that is nothing but a key, whose value follows."""
KEY_AT_LEFT = re.compile(r"^[^ \n]", re.MULTILINE)
WORD = frozenset(string.ascii_letters + string.digits + "_\"'")
"""First letters of keys."""
MOST_PARTS = 2**15
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # six times as fast


def read_yaml(path: Path, *keys: str) -> Any:
    """Content of a YAML file, or what stands there under `keys`, without aliases, which could stand for more than fits
    into memory; None if it is damaged. It is shared with later calls, and must not be changed."""
    try:
        text = read_text(path)
        if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
            return None
        part = _below(text, keys) if keys else text
        return _parsed(part) if part else _under(_parsed(text), keys)
    except (OSError, UnreadableError, *YAML_ERRORS):
        return None


def _parsed(text: str) -> Any:
    try:
        return _mapping(text)
    except _OtherFormError:
        return yaml.load(text, _LOADER)


def _under(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _below(text: str, keys: Sequence[str]) -> str:
    """Text of the mapping under nested keys of a mapping in block style; empty if it is not found at once."""
    start, depth = 0, 0
    text = f"\n{text}\n"
    for key in keys:
        header = f"\n{' ' * depth}{key}:\n"
        at = text.find(header, start)
        end = _less_indented(depth).search(text, start + 1)
        if at < 0 or (end is not None and end.start() < at):
            return ""
        start = at + len(header) - 1
        depth = len(text) - start - 1 - len(text[start + 1 :].lstrip(" "))
    end = _less_indented(depth).search(text, start + 1)
    return _dedented(text[start + 1 : None if end is None else end.start() + 1].split("\n")) or ""


@cache
def _less_indented(depth: int) -> re.Pattern[str]:
    return re.compile(rf"\n(?! {{{depth}}}|\n)(?=[^\n])")


class _OtherFormError(Exception):
    """The text is not a mapping in block style, as Hydra writes it."""


@lru_cache(MOST_PARTS)
def _mapping(text: str) -> dict[Any, Any]:
    """Parse a mapping in block style part by part: equal parts of other files are known already."""
    content: dict[Any, Any] = {}
    for part in _parts(text):
        content |= _part(part)
    return content


def _parts(text: str) -> Iterator[str]:
    """Text of each key of a mapping; raises _OtherFormError for anything else than keys at its left edge."""
    start = 0
    for edge in KEY_AT_LEFT.finditer(text):
        if edge.start():
            yield text[start : edge.start()]
        start = edge.start()
        if edge[0] not in WORD:
            raise _OtherFormError
    yield text[start:]


@lru_cache(MOST_PARTS)
def _part(text: str) -> dict[Any, Any]:
    header, *lines = text.split("\n")
    match = HEADER.fullmatch(header)
    if match is not None and len(lines) > 1 and (nested := _dedented(lines)) is not None:
        return {match[1]: _mapping(nested)}
    part = yaml.load(text, _LOADER)
    if not isinstance(part, dict) or len(part) != 1:
        raise _OtherFormError
    return part


def _dedented(lines: Sequence[str]) -> str | None:
    """The lines without their common indentation, if they are a mapping; else None."""
    depth = len(lines[0]) - len(lines[0].lstrip(" ")) if lines else 0
    if not depth or any(line.strip() and not line.startswith(" " * depth) for line in lines):
        return None
    dedented = [line[depth:] for line in lines]
    is_mapping = all(line[0] in WORD and ":" in line for line in dedented if line[:1] not in ("", " "))
    return "\n".join(dedented) if is_mapping and dedented[0] else None

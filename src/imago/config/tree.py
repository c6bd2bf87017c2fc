"""Iterators over the settings of a config."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of each setting in plain containers; a list is a value, an empty dictionary is None."""
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, None if value == {} else value


def nodes(cfg: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Key and content of every node with a `_target_`."""
    if isinstance(cfg, DictConfig):
        if path and cfg.get("_target_"):
            yield path, cfg
        keys: list[Any] = [key for key, value in cfg.items_ex(resolve=False) if _may_hold_nodes(value)]
    elif isinstance(cfg, ListConfig):
        keys = [*range(len(cfg))]
    else:
        return
    for key in keys:
        if not OmegaConf.is_missing(cfg, key):
            yield from nodes(cfg[key], f"{path}.{key}" if path else str(key))


def _may_hold_nodes(value: Any) -> bool:
    """Whether a value is a group, or may lead to one; most are neither, and need not be looked up."""
    return OmegaConf.is_config(value) or (isinstance(value, str) and "${" in value)


def all_keys(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Path of the container, and key, for every key in plain containers."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield key, str(name)
            yield from all_keys(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for entry in value:
            yield from all_keys(entry, key)


def all_leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf in plain containers, including entries of lists: `a.b[0]`."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from all_leaves(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from all_leaves(entry, f"{key}[{index}]")
    else:
        yield key, value


def all_texts(value: Any) -> Iterator[tuple[str, str]]:
    """Path and value of every string in plain containers."""
    yield from ((key, leaf) for key, leaf in all_leaves(value) if isinstance(leaf, str))

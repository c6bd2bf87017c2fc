"""JSON schemas of the signatures of classes and functions: `make schema` writes those of all shipped targets.

python -m imago.config.signatures [--check]
"""

import collections.abc
import inspect
import json
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from imago.config.root import CONFIG_DIR, Root
from imago.config.schema import Schema
from imago.definitions import Above, AtLeast, AtMost, Below
from imago.files import write_text

FOLDER = Path(CONFIG_DIR, "schema")
PLAIN = {
    int: "integer",
    float: "number",
    numbers.Number: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    Path: "string",
}
ARRAYS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)
OBJECTS = (dict, collections.abc.Mapping)
USUAL_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "auto-mixed")
"""Those that a message names first; Imago adds the last one."""
DEFAULTS = {"type": "array", "description": "Options that this file starts from"}


def arguments_schema(target: Callable[..., Any]) -> Schema:
    """JSON schema of the keyword arguments of `target`; a type that no config can violate accepts anything."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built-in functions such as torch.argmax
        return {"type": "object", "properties": {}, "patternProperties": {"^_": {}}, "additionalProperties": True}
    if getattr(target, "__init__", None) is nn.Module.__init__:  # it takes anything, and raises for everything
        parameters = types.MappingProxyType({})
    hints = _hints(target)
    named = [p for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    shared = _unpacked(hints.get(open_ended)) if open_ended is not None else {}
    types_of = {p.name: hints.get(p.name, Any) for p in named} | shared
    return {
        "type": "object",
        "properties": {name: _one(list(_types(hint))) for name, hint in types_of.items()},
        "patternProperties": {"^_": {}},
        "additionalProperties": open_ended is not None and not shared,
    }


def required_arguments(target: Callable[..., Any]) -> list[str]:
    """Names of the arguments that `target` cannot do without; empty if they are unknown."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _unpacked(hint: Any) -> dict[str, Any]:
    """The keyword arguments of `**options: Unpack[TypedDict]`; empty for any other annotation."""
    if typing.get_origin(hint) is not typing.Unpack:
        return {}
    return typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # names that only a type checker knows
        return {}


def _types(hint: Any) -> Iterator[Schema]:
    """Schemas of the alternatives of a type; `{}`, which accepts anything, if unknown."""
    origin = typing.get_origin(hint)
    if hint in (Any, object):  # Any is a class for `inspect`
        yield {}
    elif hint in PLAIN:
        yield {"type": PLAIN[hint]}
    elif origin is Literal:
        yield {"enum": list(typing.get_args(hint))}
    elif origin in (Union, types.UnionType):
        for choice in typing.get_args(hint):
            yield from _types(choice)
    elif origin is Annotated:
        yield from (choice | _range(hint) for choice in _types(typing.get_args(hint)[0]))  # type: ignore[operator]
    elif (origin or hint) in ARRAYS:
        items = [item for item in typing.get_args(hint) if item is not Ellipsis]
        yield {"type": "array", "items": _one([choice for item in items for choice in _types(item)])}
        if (origin or hint) is not list:
            yield {"type": "object"}  # a node that makes one
    elif (origin or hint) in OBJECTS or origin is collections.abc.Callable or _is_made(hint):
        yield {"type": "object"}
    else:
        yield {}


def _is_made(hint: Any) -> bool:
    """Whether a value of this class can only come from a node; unknown for other classes (numbers, enums)."""
    if not inspect.isclass(hint):
        return False
    return hint.__module__.startswith("imago.") or issubclass(hint, Tensor | nn.Module | Optimizer)


def _range(hint: Any) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for mark in typing.get_args(hint)[1:]:
        if isinstance(mark, AtLeast):
            bounds["minimum"] = mark.least
        if isinstance(mark, AtMost):
            bounds["maximum"] = mark.most
        if isinstance(mark, Above):
            bounds["exclusiveMinimum"] = mark.bound
        if isinstance(mark, Below):
            bounds["exclusiveMaximum"] = mark.bound
    return bounds


def _one(choices: list[Any]) -> Schema:
    unique = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
    if {} in unique or not unique:
        return {}
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def shipped_targets() -> list[str]:
    """List every `_target_` in the files of configs/."""
    targets: set[str] = set()
    for path in Path(CONFIG_DIR).rglob("*.yaml"):
        targets |= set(_targets(OmegaConf.load(path)))
    return sorted(targets)


def _targets(cfg: Any) -> Iterator[str]:
    values = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    if isinstance(values, dict):
        if isinstance(values.get("_target_"), str):
            yield values["_target_"]
        for value in values.values():
            yield from _targets(value)
    elif isinstance(values, list):
        for value in values:
            yield from _targets(value)


def all_schemas() -> dict[str, Any]:
    """File name -> content: `all.json` with a schema per target, and, for editors, a file per kind of YAML file."""
    targets = {name: arguments_schema(get_object(name)) for name in shipped_targets()}
    precision = targets["lightning.pytorch.Trainer"]["properties"]["precision"]
    for choice in precision["anyOf"]:  # a package of NVIDIA with layers of its own, which no network here has
        if "enum" in choice:
            choice["enum"] = [word for word in choice["enum"] if not str(word).startswith("transformer-engine")]
    precision["anyOf"].insert(0, {"enum": [*USUAL_PRECISIONS]})
    known = [
        {"if": {"properties": {"_target_": {"const": name}}, "required": ["_target_"]}, "then": _as_node(name)}
        for name in targets
    ]
    definitions = targets | {"node": {"type": "object", "allOf": known}}
    files: dict[str, Any] = {"all.json": {"$comment": "Written by `make schema`", "$defs": definitions}}
    for group in sorted(path.name for path in Path(CONFIG_DIR).iterdir() if any(path.rglob("*.yaml"))):
        own = _group_schema(group, targets)
        root = {"$ref": "root.json"}
        every, some = _global_files(group)
        files[f"{group}.json"] = root if every else {"anyOf": [own, root]} if some else own
    files["root.json"] = _root_schema(files)
    return files


def _as_node(target: str) -> Schema:
    return {"$ref": f"all.json#/$defs/{target}"}


def _global_files(group: str) -> tuple[bool, bool]:
    """Whether all, and whether some, files of a group have the package `_global_`."""
    are = ["@package _global_" in path.read_text() for path in Path(CONFIG_DIR, group).rglob("*.yaml")]
    return all(are), any(are)


def _group_schema(group: str, targets: dict[str, Schema]) -> Schema:
    """Schema of all arguments of a group's targets: in a file, `_target_` may come from its defaults."""
    properties: dict[str, Any] = {
        "defaults": DEFAULTS,
        "_target_": {"type": "string"},
        "_partial_": {"type": "boolean"},
    }
    named = False
    for path in sorted(Path(CONFIG_DIR, group).glob("*.yaml")):
        cfg = OmegaConf.load(path)
        if "@package _global_" in path.read_text():
            cfg = OmegaConf.select(cfg, group)
        if isinstance(cfg, DictConfig) and cfg.get("_target_"):
            named = True
            for name, schema in targets[cfg._target_]["properties"].items():
                properties.setdefault(
                    name, schema if schema != {"type": "object"} else {"$ref": "all.json#/$defs/node"}
                )
    if not named:  # a group of named nodes (callbacks, loggers) or of plain values (paths)
        return {"type": "object", "properties": {"defaults": DEFAULTS}}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _root_schema(files: dict[str, Any]) -> Schema:
    properties: dict[str, Any] = {"defaults": DEFAULTS, "hydra": {"type": "object"}}
    for name, hint in typing.get_type_hints(Root).items():
        group = f"{name}.json"
        reference = {"anyOf": [{"$ref": group}, {"type": ["null", "string"]}]}
        properties[name] = reference if group in files else _one(list(_types(hint)))
    return {"type": "object", "properties": properties, "additionalProperties": False}


def main() -> None:
    """Write the schema files; with `--check`, only report those that are not up to date."""
    texts = {name: json.dumps(content, indent=1, sort_keys=True) + "\n" for name, content in all_schemas().items()}
    if "--check" in sys.argv:
        stale = [name for name, text in texts.items() if (FOLDER / name).read_text() != text]
        sys.exit(f"Not up to date: {', '.join(stale)}. Type make schema" if stale else 0)
    for name, text in texts.items():
        write_text(FOLDER / name, text)


if __name__ == "__main__":
    main()

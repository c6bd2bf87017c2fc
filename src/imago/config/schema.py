"""Checks of a config against the signatures of its targets, before anything heavy is imported.

The signatures of all shipped targets are in configs/schema/all.json, which `make schema` writes.
"""

import difflib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.foreign_words import meaning
from imago.config.invocation import Invocation, override_key, override_value
from imago.config.root import CONFIG_DIR
from imago.config.setting_source import is_inherited, is_typed, is_users_own
from imago.config.targets import families_of
from imago.config.tree import nodes

log = logging.getLogger(__name__)

Schema = Mapping[str, Any]
WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a group of settings",
}
REPLACEABLE = (
    *("model.net", "model.optimizer", "model.scheduler"),
    *("data.train_transform.box", "data.eval_transform.box"),
)
"""Nodes whose `_target_` people replace without their options."""
AUGMENTED = "data.train_transform.box"
"""Node whose `_target_` options of data/augment replace, whichever box the data have."""


@dataclass(frozen=True)
class Problem:
    """Problem with `key`: `what` continues a sentence that begins with the key."""

    key: str
    what: str
    is_type: bool = False


@cache
def shipped() -> dict[str, Schema]:
    """Target -> JSON schema of its arguments, for all shipped targets."""
    return json.loads(Path(CONFIG_DIR, "schema", "all.json").read_text(encoding="utf-8"))["$defs"]


def problems(cfg: DictConfig, schemas: Mapping[str, Schema], typed: Collection[str] = ()) -> Iterator[Problem]:
    """Arguments in `cfg` that their targets do not take, of which some keys were typed; targets without a schema are
    skipped."""
    for path, node in nodes(cfg):
        schema = schemas.get(node._target_)
        if schema is None:
            continue
        unknown: dict[str, list[str]] = {}
        for name in map(str, node):
            key = f"{path}.{name}"
            if name.startswith("_") or OmegaConf.is_missing(node, name):
                continue
            if name in schema["properties"]:
                value, kind = _plain(node, name), schema["properties"][name]
                words = mismatch(value, kind)
                if words is not None:
                    yield Problem(key, _wrong_type(key, _shown(node, name), words, kind), is_type=True)
                elif is_word_for_null(value) and _takes_null(kind):
                    yield Problem(key, f"={value} is the text {value}. Type {key}=null", is_type=True)
            elif not schema["additionalProperties"]:
                unknown.setdefault(_instead(key, node, schema, key in typed), []).append(name)
        for instead, (first, *others) in unknown.items():
            names = f", {', '.join(others)} are not arguments" if others else " is not an argument"
            yield Problem(f"{path}.{first}", f"{names} of {node._target_}. {instead}")


def is_word_for_null(value: Any) -> bool:
    """Whether a text is what Python calls null."""
    return isinstance(value, str) and value.lower() == "none"


def _takes_null(schema: Schema) -> bool:
    """Whether null is valid, and the text `none` has no meaning of its own."""
    choices = schema.get("anyOf", [schema])
    return any(choice.get("type") == "null" for choice in choices) and not any(
        is_word_for_null(value) for choice in choices for value in choice.get("enum", [])
    )


def _wrong_type(key: str, value: str, words: str, schema: Schema) -> str:
    options = sorted(file.stem for file in Path(CONFIG_DIR, *key.split(".")).glob("*.yaml"))
    if options:  # a config group, such as model.optimizer
        option = value if value in options else "|".join(options)
        return f" holds several settings. Choose an option with {key.replace('.', '/')}={option}"
    hint = meaning(key, value)
    meant = [word for word in hint.words if override_key(word) == key] if hint is not None else []
    if is_word_for_null(value) and _takes_null(schema):
        meant = [f"{key}=null"]
    is_valid = meant and mismatch(yaml.safe_load(override_value(meant[0])), schema) is None
    return f" must be {words}, got {value}.{f' Type {meant[0]}' if is_valid else ''}"


def _instead(key: str, node: DictConfig, schema: Schema, is_typed: bool) -> str:
    """What to type instead of an argument that a target does not take."""
    path, _, name = key.rpartition(".")
    if close := difflib.get_close_matches(name, schema["properties"], n=1, cutoff=0.6):
        value = f"={_shown(node, name)}" if not OmegaConf.is_config(node[name]) else ""
        return f"Did you mean {'+' if is_typed and close[0] not in node else ''}{path}.{close[0]}{value}?"
    hint = meaning(key, _shown(node, name)) if node._target_ in shipped() else None
    if hint is not None:
        return str(hint)
    return closest(name, list(schema["properties"]), "--help-all")


def closest(name: str, known: Sequence[str], where: str) -> str:
    """The five of the `known` names that are most alike, and `where` all of them are listed."""
    chosen = sorted(known, key=lambda other: -_likeness(name, other))[:5]
    if not known:
        return "It takes no arguments."
    if len(known) <= len(chosen):
        return f"It takes {', '.join(known)}."
    return f"The closest are {', '.join(chosen)} ({where} lists all)."


def _likeness(name: str, other: str) -> float:
    """How alike two names are, or their last parts."""
    ends = name.rpartition(".")[2], other.rpartition(".")[2]
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((name, other), ends))


def drop_inherited(cfg: DictConfig, invocation: Invocation, schemas: Mapping[str, Schema]) -> None:
    """Remove the arguments that a new `_target_` does not take and that stand in files written for a former one.

    So `model.net._target_=my.module.MyNet` is enough, and so is the `_target_` in a file that begins with the defaults
    of another. A typed option stays, and fails if it is unknown.
    """
    for path, node in list(nodes(cfg)):
        schema = schemas.get(node._target_)
        if schema is None or schema["additionalProperties"]:
            continue
        for name in [name for name in map(str, node) if not name.startswith("_") and name not in schema["properties"]]:
            key, target = f"{path}.{name}", f"{path}._target_"
            is_kept = is_typed(target, invocation) and is_users_own(key, invocation)
            if not is_kept and is_inherited(key, target, invocation):
                _drop(node, name)
    names = [override_key(override) for override in invocation.overrides]
    for path in REPLACEABLE:
        node = OmegaConf.select(cfg, path, throw_on_missing=False)
        schema = schemas.get(node.get("_target_", "")) if isinstance(node, DictConfig) else None
        if schema is None or schema["additionalProperties"]:
            continue
        ours = {name for target in shipped() if _is_a(target, path) for name in shipped()[target]["properties"]}
        replaced = path in names or f"{path}._target_" in names
        is_chosen = replaced or node._target_ not in shipped()
        if not is_chosen and path != AUGMENTED:
            continue
        for option in sorted((ours & set(map(str, node))) - schema["properties"].keys()):
            key = f"{path}.{option}"
            if key not in names and (is_chosen or not is_users_own(key, invocation)):
                _drop(node, option)


def _drop(node: DictConfig, name: str) -> None:
    log.info("%s has no argument %s: that of the former target is dropped", node._target_, name)
    OmegaConf.set_struct(node, False)
    del node[name]


def _is_a(target: str, path: str) -> bool:
    is_scheduler = target.startswith(("torch.optim.lr_scheduler.", "imago.model.warmup_cosine"))
    return {
        "net": any(family.is_network for family in families_of(target)),
        "optimizer": target.startswith("torch.optim.") and not is_scheduler,
        "scheduler": is_scheduler,
        "box": target.startswith("imago.data.") and target.endswith("Box"),
    }[path.rpartition(".")[2]]


def mismatch(value: Any, schema: Schema) -> str | None:
    """Describe the valid values; None if `value` is valid."""
    choices = schema.get("anyOf", [schema])
    if any(_fits(value, choice) for choice in choices):
        return None
    named = {str(value): value for choice in choices for value in choice.get("enum", [])}  # 16 and "16" are one
    if named and {"type": "null"} in choices:
        named["null"] = None
    kinds = [choice for choice in choices if "enum" not in choice and not (named and choice == {"type": "null"})]
    words = dict.fromkeys(_words(choice) for choice in [*([{"enum": [*named.values()]}] if named else []), *kinds])
    if set(words) == {WORDS["object"], WORDS["null"]}:
        return "a group with a _target_ or null"
    if len(words) > 1:
        words.pop(WORDS["object"], None)  # a node instead of a number: valid, but no help
    return " or ".join(words)


def _fits(value: Any, schema: Schema) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind is None:
        return True
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {
        "integer": is_number and isinstance(value, int),
        "number": is_number,
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }[kind]
    if not right:
        return False
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", inf):
        return False
    if is_number and not schema.get("exclusiveMinimum", -inf) < value < schema.get("exclusiveMaximum", inf):
        return False
    items = schema.get("items", {})
    return kind != "array" or all(mismatch(item, items) is None for item in value)


def _words(schema: Schema) -> str:
    if "enum" in schema:
        values = ["null" if value is None else str(value).lower() for value in schema["enum"]]
        return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))
    words = WORDS.get(schema.get("type", ""), "anything")
    limits = [f"{schema['minimum']:g} or more"] if "minimum" in schema else []
    limits += [f"at most {schema['maximum']:g}"] if "maximum" in schema else []
    limits += [f"above {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    limits += [f"below {schema['exclusiveMaximum']:g}"] if "exclusiveMaximum" in schema else []
    return f"{words} ({', '.join(limits)})" if limits else words


def _plain(node: DictConfig, name: str) -> Any:
    value = node[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shown(node: DictConfig, name: str) -> str:
    value = _plain(node, name)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

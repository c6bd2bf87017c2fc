"""Checks of the nodes that make objects: what a file of one's own leaves out, or has too much of."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import Invocation, override_key, override_value
from imago.config.own_files import own_file
from imago.config.part_places import (
    CLASS_ARGUMENTS,
    LOSSES,
    METRICS,
    NET,
    how_to_take_classes,
    is_class,
    misplaced_part,
)
from imago.config.root import CONFIG_DIR
from imago.config.schema import shipped
from imago.config.setting_source import in_file, shown_path
from imago.config.tree import nodes

NAMED = (
    *("callbacks", "logger", "model.criterions.criterions"),
    *(f"data.{which}_transform.{stage}" for which in ("train", "eval") for stage in ("pixels", "batch")),
)
"""Groups whose entries each make an object."""
MAKERS = ("model.net", "model.optimizer", "model.scheduler", "data.source", "data.dataset", "callbacks.metrics.metrics")
"""Nodes that a run completes."""
NOT_OF_A_NODE = ("data.dataset.path",)
"""Settings whose absence has a message of its own."""


CLASSES = (*MAKERS, "model.criterions", "data.train_transform.box", "data.eval_transform.box")
"""Groups that make an object, and are not the name of its class."""


def class_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with a class that stands where its group should: `model.net=my_nets.MyNet`, without `._target_`."""
    groups = [(path, OmegaConf.select(cfg, path, throw_on_missing=False)) for path in (*NAMED, METRICS)]
    entries = [f"{path}.{name}" for path, group in groups if isinstance(group, DictConfig) for name in map(str, group)]
    for key in (*CLASSES, *(entry for entry in entries if not entry.rpartition(".")[2].startswith("_"))):
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(value, str) and (is_class(value) or key == NET):
            word = f"{'+' if key in entries else ''}{key}._target_={value if is_class(value) else 'my_nets.MyNet'}"
            if key == "model.criterions":
                word = f"{LOSSES}.ce=null +{LOSSES}.{_entry_name(value)}._target_={value}"
            other = "" if is_class(value) else f"model.net.name={value} for a network of torchvision, or "
            yield f"{key} must be a group of settings, got {value}{in_file(key, invocation)}. Type {other}{word}"


def node_problems(cfg: DictConfig, invocation: Invocation, needs_data: bool = True) -> Iterator[str]:
    """Problems with nodes that make nothing, make something else than their group needs, or lack a value."""
    for path in NAMED:
        group = OmegaConf.select(cfg, path, throw_on_missing=False)
        if isinstance(group, DictConfig):
            yield from _entry_problems(path, group, invocation)
    yield from _maker_problems(cfg, invocation)
    yield from _function_problems(cfg, invocation)
    yield from _missing_values(cfg, invocation, needs_data)


def _entry_problems(path: str, group: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with the entries of a group: one without a name, a misspelt one, or one whose option was not chosen."""
    if "_target_" in group:
        name = _entry_name(str(group._target_))
        yield (
            f"{path} holds entries with names, but _target_ stands at its top{in_file(f'{path}._target_', invocation)}."
            f" Put a name of your choice above it, and indent the rest:\n  {name}:\n    _target_: {group._target_}"
        )
        return
    for name, node in ((str(key), group[key]) for key in group if not OmegaConf.is_missing(group, key)):
        key = f"{path}.{name}"
        if not isinstance(node, DictConfig) or not len(node):
            continue
        if node.get("_target_") is None:
            options = [file.stem for file in Path(CONFIG_DIR, path).glob("*.yaml")] if "." not in path else []
            siblings = [str(sibling) for sibling in group if sibling != name]
            close = difflib.get_close_matches(name, [*siblings, *options], n=1)
            meant = f" Did you mean {path}.{close[0]}?" if close else ""
            if name in options:
                meant = f" {added_option(path, name, invocation)}"
            yield f"{key} has no _target_{in_file(key, invocation)}.{meant}"
        elif node.get("_partial_") is True and "." not in path:
            where = in_file(f"{key}._partial_", invocation)
            yield f"{key}: remove _partial_: true{where}. Nothing is added to the arguments of {node._target_}."


def added_option(group: str, option: str, invocation: Invocation) -> str:
    """How to choose an option in addition to those of its group that are chosen."""
    if (file := own_file(invocation.config_folders, group, invocation.choices.get(group, ""))) is not None:
        return f'Put "- {option}" into the defaults at the top of {shown_path(file)}.'
    if group == "logger":
        in_defaults = f', or write "override /logger: {option}" in the defaults of the file'
        return f"Type logger={option}{in_defaults if in_file(f'logger.{option}', invocation) else ''}."
    typed = next((override_value(word) for word in invocation.overrides if override_key(word) == group), None)
    chosen = re.findall(r"[\w/-]+", typed or invocation.choices.get(group, "default"))
    options = [*(name for name in chosen if name != "none"), option]
    word = f"'{group}=[{','.join(options)}]'"
    return f'Type {word}, or write "override /{group}: [{", ".join(options)}]" in the defaults of a file.'


def _entry_name(target: str) -> str:
    """Name for an entry in a file: `my_callbacks.HardestClass` -> `hardest_class`."""
    last = target.rpartition(".")[2]
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in last).strip("_") or "name"


def _function_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with arguments that have a function of Python as text."""
    for path, node in nodes(cfg):
        values: Any = OmegaConf.to_container(node)
        for name, value in values.items():
            if isinstance(value, str) and re.match(r"lambda\b[^:]*:", value):
                key = f"{path}.{name!s}"
                yield (
                    f"{key}={value} is text{in_file(key, invocation)}: a config holds no functions. Write it in a "
                    "Python file, and put here {_target_: hydra.utils.get_method, path: my_file.my_function}"
                )


def _missing_values(cfg: DictConfig, invocation: Invocation, needs_data: bool) -> Iterator[str]:
    """Problems with values that a file leaves open with `???`."""
    for path, node in nodes(cfg):
        if not needs_data and path.partition(".")[0] == "data":
            continue
        for key in (f"{path}.{name}" for name in map(str, node) if OmegaConf.is_missing(node, name)):
            if key not in NOT_OF_A_NODE:
                yield f"{key} has no value: it is ???{in_file(key, invocation)}. Type {key}=VALUE"


def _maker_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with nodes that are completed later but lack `_partial_`, and with a model without a network."""
    for key in MAKERS:
        node = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(node, DictConfig) and len(node) and node.get("_target_") is None:
            yield f"{key} has no _target_ (the class or function to call){in_file(key, invocation)}."
        elif isinstance(node, DictConfig) and node.get("_target_") is not None and node.get("_partial_") is not True:
            part = "_partial_" if "_partial_" in node else "_target_"
            where = in_file(f"{key}.{part}", invocation)
            names = [str(name) for name in node]
            of_classes = key == NET and {*CLASS_ARGUMENTS} & {*names} and node._target_ not in shipped()
            how = f" {how_to_take_classes(node._target_, names, names)}." if of_classes else ""
            yield f"{key} needs _partial_: true{where}, because its remaining arguments are added later.{how}"
    of_batches = OmegaConf.select(cfg, "data.transform", throw_on_missing=False)
    lacks_target = isinstance(of_batches, DictConfig) and of_batches.get("_target_") is None
    if lacks_target and (what := misplaced_part("data.transform", cfg, invocation.overrides)) is not None:
        yield f"data.transform has no _target_{in_file('data.transform', invocation)}. {what}"
    metrics = OmegaConf.select(cfg, METRICS, throw_on_missing=False)
    for name, node in metrics.items() if isinstance(metrics, DictConfig) else ():
        target = str(node.get("_target_")) if isinstance(node, DictConfig) else ""
        if target.startswith("torchmetrics.classification.Multiclass") and not {"_partial_", "num_classes"} & set(node):
            key = f"callbacks.metrics.metrics.metrics.{name!s}"
            where = in_file(f"{key}._target_", invocation)
            yield f"{key} needs _partial_: true, because num_classes is added later{where}."
    makes_model = cfg.model.get("_target_") == "imago.model.DictModule"
    if makes_model and cfg.model.get("net") is None and cfg.model.get("forward_fn") is None:
        yield f"model.net is missing{in_file('model.net', invocation)}. Choose a network, for example model=resnet18."

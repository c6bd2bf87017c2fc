"""Checks of the classes and functions that Imago does not ship, which can only be done once they are imported."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchmetrics import Metric

from imago.config.invocation import Invocation
from imago.config.own_code import LIBRARIES, load_target
from imago.config.part_places import A_METRIC, LOSSES, METRICS, how_to_take_classes
from imago.config.schema import Schema, drop_inherited, problems, shipped
from imago.config.setting_source import in_file, is_users_own
from imago.config.signatures import arguments_schema, required_arguments
from imago.config.tree import nodes
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.model.module import DictModule

BASES = {  # key, or beginning of a key -> class from which the classes there inherit, and its public name
    "data": (ImageDataModule, "imago.data.ImageDataModule"),
    "model": (DictModule, "imago.model.DictModule"),
    "model.net": (nn.Module, "torch.nn.Module"),
    "callbacks.": (Callback, "lightning.pytorch.Callback"),
    "logger.": (Logger, "lightning.pytorch.loggers.Logger"),
    f"{METRICS}.": (Metric, "torchmetrics.Metric"),
}
CALLED = (f"{LOSSES}.", *(f"data.{which}_transform." for which in ("train", "eval")))
"""Beginnings of the keys of objects that are called once they are made."""
STEP = re.compile(r"data\.((train|eval)_transform\.(pixels|batch)\.\w+|transform)")
COMPLETED = {"model": ("class_names",), "model.net": ("num_classes",)}
"""Arguments that a run adds to those of a node."""
BATCH = ("image", "label", "index", "epoch", "logits", "prediction")
GUESSES = {"input": "logits", "preds": "logits", "output": "logits", "target": "label", "labels": "label"}


def check_own_parts(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise one UserError for all nodes whose targets do not exist, or do not fit where they are used.

    Types are not checked in libraries, which take more than they annotate.
    """
    targets: dict[str, Any] = {}
    messages: list[str] = []
    for path, node in nodes(cfg):
        if node._target_ in targets or node._target_ in shipped():
            continue
        try:
            targets[node._target_] = load_target(node._target_)
        except UserError as error:
            where = in_file(f"{path}._target_", invocation)
            messages.append(f"{path}._target_={node._target_}{where}: {error}")
    _raise_all(messages)
    schemas = {target: arguments_schema(part) for target, part in targets.items()}
    drop_inherited(cfg, invocation, schemas)
    misplaced = {
        path: what
        for path, node in nodes(cfg)
        if (
            what := _misplaced(path, part := targets.get(node._target_))
            or _of_another_kind(path, node, part, invocation)
        )
    }
    for problem in problems(cfg, schemas, invocation.keys):
        path = problem.key.rpartition(".")[0]
        target = OmegaConf.select(cfg, path)._target_
        if path in misplaced:
            continue
        if not (problem.is_type and target.partition(".")[0] in LIBRARIES):
            messages.append(f"{problem.key}{problem.what}{in_file(problem.key, invocation)}")
    for path, node in nodes(cfg):
        if node._target_ in targets:
            part = targets[node._target_]
            what = misplaced.get(path) or _lacking(path, node, schemas[node._target_], part)
            if what is not None:
                messages.append(f"{path}: {node._target_} {what}{in_file(f'{path}._target_', invocation)}")
    messages += _partial_problems(cfg, invocation)
    messages += _step_problems(cfg, invocation)
    messages += _call_problems(cfg, "model.criterions", "criterions", "forward", ("input", "target"), invocation)
    messages += _call_problems(cfg, "callbacks.metrics.metrics", "metrics", "update", ("preds", "target"), invocation)
    _raise_all(messages)


def _misplaced(path: str, part: Any) -> str | None:
    """What is wrong with a class that does not inherit from what its place in the config asks for."""
    if not inspect.isclass(part):
        return None
    name = path.rpartition(".")[2]
    if issubclass(part, Metric) and path.startswith(("callbacks.", LOSSES)) and not path.startswith(f"{METRICS}."):
        word = f"+{METRICS}.{name}._target_={part.__module__}.{part.__qualname__}"
        return f"is a metric, and does not go there. {A_METRIC}. Type {word}"
    for key, (base, base_name) in BASES.items():
        is_there = path == key or (key[-1] == "." and path.startswith(key) and "." not in path.removeprefix(key))
        if is_there and not issubclass(part, base):
            more = {
                "model": ". A network goes below net: (model.net._target_)",
                "data": ", which no data module of another project does (docs/extend/dataset.md)",
            }
            return f"must inherit from {base_name}{more.get(key, '')}"
    return None


def _of_another_kind(path: str, node: DictConfig, part: Any, invocation: Invocation) -> str | None:
    """Message for data of one's own whose file starts from that of another kind, and has its options too."""
    if path != "data" or not inspect.isclass(part):
        return None
    known = {name for parent in part.__mro__ for name in arguments_schema(parent)["properties"]}
    others = [str(name) for name in node if not str(name).startswith("_") and str(name) not in known]
    inherited = [name for name in others if not is_users_own(f"data.{name}", invocation)]
    if not inherited:
        return None
    return (
        f"does not take {', '.join(inherited)}, which belong to another kind of data. Its file begins with "
        "defaults: [default], which has what all kinds share"
    )


def _partial_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with classes that would be made by the call that is meant for their objects."""
    for path, node in nodes(cfg):
        is_partial = path.startswith(CALLED) and node.get("_partial_") is True
        if is_partial and inspect.isclass(load_target(node._target_)):
            yield (
                f"{path}: remove _partial_: true{in_file(f'{path}._partial_', invocation)}. Nothing is added to the "
                f"arguments of {node._target_}: its objects are called, not the class."
            )


def _step_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with transforms of one's own that cannot be called with an image, or a batch, alone."""
    for path, node in nodes(cfg):
        if not STEP.fullmatch(path) or node._target_ in shipped():
            continue
        part, called_with = load_target(node._target_), "one image" if ".pixels." in path else "the batch"
        where = in_file(f"{path}._target_", invocation)
        if inspect.isclass(part) and not any("__call__" in vars(parent) for parent in part.__mro__):
            yield f"{path}{where}: {node._target_} has no __call__, which gets {called_with} and returns it changed."
            continue
        if not inspect.isclass(part) and node.get("_partial_") is not True:  # what it returns is called
            continue
        call = getattr(part, "forward", part.__call__) if inspect.isclass(part) else part
        parameters = _parameters(call, is_method=inspect.isclass(part))
        if parameters is None:
            continue
        missing = [name for name in _required(parameters) if inspect.isclass(part) or name not in node]
        if len(missing) > 1 or not parameters:
            owner = f"{node._target_}.{call.__name__}" if inspect.isclass(part) else node._target_
            taken = ", ".join(parameters) or "nothing"
            yield f"{path}{where}: {owner} takes {taken}, but is called with {called_with}."


def _lacking(path: str, node: DictConfig, schema: Schema, part: Any) -> str | None:
    """What a node lacks of the arguments that its target requires, or the target of those that a run adds."""
    added = COMPLETED.get(path, ())
    if path == "model.net" and not schema["additionalProperties"] and "num_classes" not in schema["properties"]:
        how = how_to_take_classes(node._target_, schema["properties"], map(str, node))
        return f"does not take num_classes, the number of classes of the data. {how}"
    if path.startswith(f"{METRICS}.") and node.get("_partial_") is True and "num_classes" not in schema["properties"]:
        return "does not take num_classes. Remove _partial_: true" if not schema["additionalProperties"] else None
    if "_args_" in node or (node.get("_partial_") is True and not added):
        return None
    required = [name for name in required_arguments(part) if name not in node and name not in added]
    if not required:
        return None
    if path.startswith(CALLED) and not inspect.isclass(part):
        return f"is a function, and needs _partial_: true: {', '.join(required)} are added when it is called"
    if path.startswith(f"{METRICS}.") and "num_classes" in required:
        return "needs _partial_: true, because num_classes is added later"
    if path == "data" and {"train_transform", "eval_transform"} & {*required}:
        return f"needs {' and '.join(required)}. Begin its file with defaults: [default], which has the transforms"
    return f"needs {' and '.join(required)}. Type +{path}.{required[0]}=VALUE, or add it to your file"


def _call_problems(
    cfg: DictConfig, path: str, entries: str, method: str, default: tuple[str, ...], invocation: Invocation
) -> Iterator[str]:
    """Problems with losses and metrics that do not take the arguments with which they will be called."""
    group = OmegaConf.select(cfg, path, throw_on_missing=False)
    if not isinstance(group, DictConfig) or not isinstance(group.get(entries), DictConfig):
        return
    for name, node in group[entries].items():
        if not isinstance(node, DictConfig) or not node.get("_target_"):
            continue
        mapping = (group.get("mapping") or {}).get(name)
        arguments = [str(argument) for argument in mapping.values()] if mapping is not None else list(default)
        part = load_target(node._target_)
        if not inspect.isclass(part) and node.get("_partial_") is not True:  # what it returns is called
            continue
        if inspect.isclass(part) and node.get("_partial_") is True and entries == "criterions":
            continue  # said already
        call = getattr(part, method, part.__call__) if inspect.isclass(part) else part
        owner = f"{node._target_}.{call.__name__}" if inspect.isclass(part) else node._target_
        parameters = _parameters(call, is_method=inspect.isclass(part))
        if parameters is None or _fits(parameters, arguments, set(map(str, node))):
            continue
        key = f"{path}.mapping.{name}" if mapping is not None else f"{path}.{entries}.{name}"
        entry = ", ".join(f"{_guess(argument)}: {argument}" for argument in _required(parameters) or parameters)
        yield (
            f"{key}{in_file(key, invocation)}: {owner} takes {', '.join(parameters) or 'nothing'}, but is called with "
            f"{', '.join(arguments)}. Map keys of the batch ({', '.join(BATCH)}) to its arguments, below {path}:\n"
            f"  mapping:\n    {name}: {{{entry}}}"
        )


def _parameters(call: Callable[..., Any], is_method: bool) -> Mapping[str, inspect.Parameter] | None:
    """Parameters by name; None if they are unknown or open-ended."""
    try:
        parameters = list(inspect.signature(call).parameters.values())[int(is_method) :]
    except (TypeError, ValueError):
        return None
    if any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters):
        return None
    return {parameter.name: parameter for parameter in parameters}


def _required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.default is parameter.empty]


def _fits(parameters: Mapping[str, inspect.Parameter], arguments: list[str], set_before: set[str]) -> bool:
    return set(arguments) <= parameters.keys() and set(_required(parameters)) <= {*arguments, *set_before}


def _guess(argument: str) -> str:
    """Key of the batch that an argument of that name probably means."""
    return argument if argument in BATCH else GUESSES.get(argument, "KEY")


def _raise_all(messages: list[str]) -> None:
    if messages:
        raise UserError("\n".join(dict.fromkeys(messages)))

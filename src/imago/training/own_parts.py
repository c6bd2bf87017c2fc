"""Checks of the classes and functions that Imago does not ship, which can only be done once they are imported."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchmetrics import Metric

from imago.config.invocation import Invocation
from imago.config.schema import Schema, drop_inherited, problems, shipped
from imago.config.setting_source import in_file
from imago.config.signatures import arguments_schema, required_arguments
from imago.config.tree import nodes
from imago.data.module import ImageDataModule
from imago.errors import UserError, message_of

LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "datasets")
METRICS = "callbacks.metrics.metrics.metrics."
BASES = {  # key, or beginning of a key -> class from which the classes there inherit
    "data": ImageDataModule,
    "model.net": nn.Module,
    "callbacks.": Callback,
    "logger.": Logger,
    METRICS: Metric,
}
COMPLETED = {"model": ("class_names",), "model.net": ("num_classes",)}
"""Arguments that a run adds to those of a node."""
BATCH = ("image", "label", "index", "epoch", "logits", "prediction")
GUESSES = {"input": "logits", "preds": "logits", "output": "logits", "target": "label", "labels": "label"}
MOST_NAMES = 8


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
    drop_inherited(cfg, invocation.overrides, schemas)
    for problem in problems(cfg, schemas):
        target = OmegaConf.select(cfg, problem.key.rpartition(".")[0])._target_
        if not (problem.is_type and target.partition(".")[0] in LIBRARIES):
            messages.append(f"{problem.key}{problem.what}{in_file(problem.key, invocation)}")
    for path, node in nodes(cfg):
        if node._target_ in targets:
            what = _misplaced(path, targets[node._target_]) or _lacking(
                path, node, schemas[node._target_], targets[node._target_]
            )
            if what is not None:
                messages.append(f"{path}: {node._target_} {what}{in_file(f'{path}._target_', invocation)}")
    messages += _call_problems(cfg, "model.criterions", "criterions", "forward", ("input", "target"), invocation)
    messages += _call_problems(cfg, "callbacks.metrics.metrics", "metrics", "update", ("preds", "target"), invocation)
    _raise_all(messages)


def load_target(target: str) -> Any:
    """Return the class or function that a `_target_` names.

    Raises:
        UserError: There is no such module, or no such name in it, or the module cannot be imported.
    """
    *parts, name = target.split(".")
    if not parts or not name:
        raise UserError(f"a _target_ names its module too, for example my_module.{name or 'MyClass'}.")
    part: Any = _imported(parts)
    for name in target.removeprefix(f"{part.__name__}.").split("."):
        if not hasattr(part, name):
            raise UserError(f"{_name_of(part)} has no {name}.{_instead(name, part)}")
        part = getattr(part, name)
    return part


def _imported(parts: list[str]) -> ModuleType:
    """Import the innermost module of `a.b.C`: the rest are classes."""
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"{name} cannot be imported. {message_of(error)}") from error
        except Exception as error:  # whatever the module does
            raise UserError(f"{name} cannot be imported. {message_of(error)}") from error
    known = [module.name for module in pkgutil.iter_modules([str(Path.cwd())])] + [*LIBRARIES, "imago"]
    close = difflib.get_close_matches(parts[0], known, n=1)
    meant = f" Did you mean {close[0]}?" if close else " Type the command in the folder of your module."
    raise UserError(f"there is no module {parts[0]} in {Path.cwd()}, and none is installed.{meant}")


def _instead(name: str, part: Any) -> str:
    modules = [module.name for module in pkgutil.iter_modules(getattr(part, "__path__", []))]
    known = [other for other in dir(part) if not other.startswith("_")] + modules
    if close := difflib.get_close_matches(name, known, n=3):
        return f" Did you mean {' or '.join(f'{_name_of(part)}.{other}' for other in close)}?"
    own = [other for other in known if getattr(getattr(part, other, None), "__module__", None) == part.__name__]
    return f" It has {', '.join(own[:MOST_NAMES])}." if own else ""


def _name_of(part: Any) -> str:
    return part.__name__ if isinstance(part, ModuleType) else f"{part.__module__}.{part.__qualname__}"


def _misplaced(path: str, part: Any) -> str | None:
    """What is wrong with a class that does not inherit from what its place in the config asks for."""
    inner = {key: base for key, base in BASES.items() if path == key or (key[-1] == "." and path.startswith(key))}
    for key, base in inner.items():
        is_entry = path.removeprefix(key).count(".") == 0
        if is_entry and inspect.isclass(part) and not issubclass(part, base):
            return f"must inherit from {base.__module__.removesuffix('.module')}.{base.__name__}"
    return None


def _lacking(path: str, node: DictConfig, schema: Schema, part: Any) -> str | None:
    """What a node lacks of the arguments that its target requires, or the target of those that a run adds."""
    added = COMPLETED.get(path, ())
    if path == "model.net" and not schema["additionalProperties"] and "num_classes" not in schema["properties"]:
        return "does not take num_classes, the number of classes of the data. Add this argument to it"
    if path.startswith(METRICS) and node.get("_partial_") is True and "num_classes" not in schema["properties"]:
        return "does not take num_classes. Remove _partial_: true" if not schema["additionalProperties"] else None
    if "_args_" in node or (node.get("_partial_") is True and not added):
        return None
    required = [name for name in required_arguments(part) if name not in node and name not in added]
    if not required:
        return None
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

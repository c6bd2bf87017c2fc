"""Checks of the classes and functions that Imago does not ship, which can only be done once they are imported."""

import dataclasses
import difflib
import inspect
import re
from typing import Any

import torchmetrics.classification
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from imago.config.invocation import Invocation
from imago.config.load_target import LIBRARIES, load_target
from imago.config.part_places import A_METRIC, LOSSES, METRICS, how_to_take_classes
from imago.config.schema import Schema, drop_inherited, problems, shipped
from imago.config.setting_source import in_file, is_users_own
from imago.config.signatures import arguments_schema, required_arguments
from imago.config.tree import nodes
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.model.module import DictModule
from imago.training.own_calls import CALLED, call_problems

BASES = {  # key, or beginning of a key -> class from which the classes there inherit, and its public name
    "data": (ImageDataModule, "imago.data.ImageDataModule"),
    "model": (DictModule, "imago.model.DictModule"),
    "model.net": (nn.Module, "torch.nn.Module"),
    "callbacks.": (Callback, "lightning.pytorch.Callback"),
    "logger.": (Logger, "lightning.pytorch.loggers.Logger"),
    f"{METRICS}.": (Metric, "torchmetrics.Metric"),
}
COMPLETED = {
    "model": ("class_names",),
    "model.net": ("num_classes",),
    "model.optimizer": ("matrices",),
    "model.scheduler": ("total_steps",),
}
"""Arguments that a run adds to those of a node."""
FIRST = ("model.optimizer", "model.scheduler")
"""Nodes to whose arguments a run adds the first, whatever its name."""


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
    _drop_val_ratio(cfg, invocation, targets)
    misplaced = {
        path: what
        for path, node in nodes(cfg)
        if (
            what := _misplaced(path, part := targets.get(node._target_))
            or _of_another_kind(path, node, part, invocation)
            or _not_of_classes(path, node, part, cfg)
            or _without_base(part)
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
        if node._target_ in targets or path in FIRST:
            part, schema = load_target(node._target_), schemas.get(node._target_) or shipped()[node._target_]
            what = misplaced.get(path) or _lacking(path, node, schema, part)
            if what is not None:
                messages.append(f"{path}: {node._target_} {what}{in_file(f'{path}._target_', invocation)}")
    if not misplaced:
        messages += call_problems(cfg, invocation)
    _raise_all(messages)


def _drop_val_ratio(cfg: DictConfig, invocation: Invocation, targets: dict[str, Any]) -> None:
    """Remove the `data.val_ratio` that all files of data begin with from data of one's own that draw no val split."""
    part, is_own = targets.get(cfg.data._target_), is_users_own("data.val_ratio", invocation)
    if "val_ratio" in cfg.data and not is_own and inspect.isclass(part) and "val_ratio" not in _known_to(part):
        OmegaConf.set_struct(cfg.data, False)
        del cfg.data.val_ratio


def _known_to(part: type) -> set[str]:
    """Arguments of the constructors of a class and of those from which it inherits."""
    return {name for parent in part.__mro__ for name in arguments_schema(parent)["properties"]}


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
    known = _known_to(part)
    others = [str(name) for name in node if not str(name).startswith("_") and str(name) not in known]
    inherited = [name for name in others if not is_users_own(f"data.{name}", invocation)]
    if not inherited:
        return None
    return (
        f"does not take {', '.join(inherited)}, which belong to another kind of data. Its file begins with "
        "defaults: [default], which has what all kinds share"
    )


def _not_of_classes(path: str, node: DictConfig, part: Any, cfg: DictConfig) -> str | None:
    """Message for a metric of torchmetrics that is meant for two classes, or chooses its kind by `task`, and gets the
    logits of several classes."""
    mapping, name = OmegaConf.select(cfg, f"{METRICS.rpartition('.')[0]}.mapping") or {}, path.rpartition(".")[2]
    if not path.startswith(f"{METRICS}.") or name in mapping or not inspect.isclass(part):
        return None
    chosen = f"Multiclass{re.sub('^(Binary|Multilabel)', '', part.__name__)}"
    knows_classes = node.get("task") == "multiclass" and {"_partial_", "num_classes"} & {*map(str, node)}
    is_meant = part.__name__.startswith("Multiclass") or knows_classes
    if is_meant or not part.__module__.startswith("torchmetrics.") or not hasattr(torchmetrics.classification, chosen):
        return None
    word = f"+{path}._target_=torchmetrics.classification.{chosen} +{path}._partial_=true"
    return f"does not fit the logits, which have a column per class. Type {word}"


def _without_base(part: Any) -> str | None:
    """Message for a class whose constructor does not run that of the class from which it inherits."""
    if not inspect.isclass(part) or not issubclass(part, nn.Module | Optimizer | ImageDataModule):
        return None
    owner = next(parent for parent in part.__mro__ if "__init__" in vars(parent))
    code = getattr(inspect.unwrap(vars(owner)["__init__"]), "__code__", None)
    is_ours = owner.__module__.partition(".")[0] not in (*LIBRARIES, "imago")
    if code is None or not is_ours or dataclasses.is_dataclass(owner) or "__init__" in code.co_names:
        return None
    call = "super().__init__(sets, **loading)" if issubclass(part, ImageDataModule) else "super().__init__()"
    return f"needs {call} in its __init__"


def _lacking(path: str, node: DictConfig, schema: Schema, part: Any) -> str | None:
    """What a node lacks of the arguments that its target requires, or the target of those that a run adds."""
    is_partial, is_metric = node.get("_partial_") is True, path.startswith(f"{METRICS}.")
    added = (*COMPLETED.get(path, ()), *(required_arguments(part)[:1] if path in FIRST else ()))
    if path == "model.net" and not schema["additionalProperties"] and "num_classes" not in schema["properties"]:
        how = how_to_take_classes(node._target_, schema["properties"], map(str, node))
        return f"does not take num_classes, the number of classes of the data. {how}"
    if is_metric and not inspect.isclass(part) and {*required_arguments(part)} - {"num_classes"}:
        return "is a function. A metric is a class that inherits from torchmetrics.Metric (docs/extend/metric.md)"
    if is_metric and is_partial and "num_classes" not in schema["properties"]:
        return "does not take num_classes. Remove _partial_: true" if not schema["additionalProperties"] else None
    added = (*added, "num_classes") if is_metric and is_partial else added
    if "_args_" in node or (is_partial and not added):
        return None
    unknown = [
        str(name) for name in node if str(name)[0] != "_" and name not in schema["properties"]
    ]  # a misspelt one was said already
    required = [
        name
        for name in required_arguments(part)
        if name not in node and name not in added and not difflib.get_close_matches(name, unknown)
    ]
    if not required:
        return None
    if path.startswith(CALLED) and not inspect.isclass(part):
        return f"is a function, and needs _partial_: true: {', '.join(required)} are added when it is called"
    if is_metric and "num_classes" in required:
        return "needs _partial_: true, because num_classes is added later"
    if path == "data" and {"train_transform", "eval_transform"} & {*required}:
        return f"needs {' and '.join(required)}. Begin its file with defaults: [default], which has the transforms"
    return f"needs {' and '.join(required)}. Type +{path}.{required[0]}=VALUE, or add it to your file"


def _raise_all(messages: list[str]) -> None:
    if messages:
        raise UserError("\n".join(dict.fromkeys(messages)))

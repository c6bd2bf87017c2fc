"""Checks of the calls that a run makes: whether the classes and functions that Imago does not ship can take them."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from imago.config.invocation import Invocation
from imago.config.load_target import load_target
from imago.config.part_places import LOSSES
from imago.config.schema import shipped
from imago.config.setting_source import in_file
from imago.config.tree import nodes

CALLED = (f"{LOSSES}.", *(f"data.{which}_transform." for which in ("train", "eval")))
"""Beginnings of the keys of objects that are called once they are made."""
CALLS = (  # path of a part -> arguments that a run calls it with: their number, and what they are; a hint
    (r"data\.(train|eval)_transform\.pixels\.\w+", 1, "one image", ""),
    (r"data\.((train|eval)_transform\.batch\.\w+|transform)", 1, "the batch", ""),
    (r"data\.(train|eval)_transform\.box", 2, "the height and the width of an image", ""),
    (r"model\.net", 1, "the images", " model.forward_fn can pass other inputs (docs/wiring.md)."),
)
OF_ONE_SHAPE = (
    *(nn.BCELoss.forward, nn.BCEWithLogitsLoss.forward, nn.MSELoss.forward, nn.L1Loss.forward, nn.KLDivLoss.forward),
    *(nn.SmoothL1Loss.forward, nn.HuberLoss.forward, nn.SoftMarginLoss.forward, nn.PoissonNLLLoss.forward),
    *(nn.MultiLabelSoftMarginLoss.forward, nn.MultiLabelMarginLoss.forward),
    *(
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
    ),
    *(F.kl_div, F.soft_margin_loss, F.multilabel_soft_margin_loss, F.multilabel_margin_loss, F.poisson_nll_loss),
)
"""Losses, as functions, whose target has the shape of their input; labels have not."""
BATCH = ("image", "label", "index", "epoch", "logits", "prediction")
GUESSES = {"logits": ("input", "pred", "out", "score", "logit", "hat"), "label": ("target", "label", "true", "truth")}
"""Key of the batch -> parts of the names that arguments for it have."""


def call_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with parts of one's own that cannot be called as a run calls them."""
    yield from _partial_problems(cfg, invocation)
    for path, node in nodes(cfg):
        if node._target_ in shipped():
            continue
        part = load_target(node._target_)
        what = _step_problem(path, node, part) if path != "model.net" or not cfg.model.get("forward_fn") else None
        messages = [what] if what is not None else [*_hook_problems(path, part)]
        yield from (f"{path}{in_file(f'{path}._target_', invocation)}: {message}" for message in messages)
    yield from _mapped_problems(cfg, "model.criterions", "criterions", ("input", "target"), invocation)
    yield from _mapped_problems(cfg, "callbacks.metrics.metrics", "metrics", ("preds", "target"), invocation)


def _partial_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with classes that would be made by the call that is meant for their objects."""
    for path, node in nodes(cfg):
        is_partial = path.startswith(CALLED) and node.get("_partial_") is True
        if is_partial and inspect.isclass(load_target(node._target_)):
            yield (
                f"{path}: remove _partial_: true{in_file(f'{path}._partial_', invocation)}. Nothing is added to the "
                f"arguments of {node._target_}: its objects are called, not the class."
            )


def _step_problem(path: str, node: DictConfig, part: Any) -> str | None:
    """Problem with a network, a transform or an optimizer that cannot be called with the arguments of CALLS alone."""
    if path == "model.optimizer":
        return _closure_problem(node._target_, part)
    count, called_with, hint = next((row[1:] for row in CALLS if re.fullmatch(row[0], path)), (0, "", ""))
    is_made = inspect.isclass(part)
    if not count or (not is_made and (path == "model.net" or node.get("_partial_") is not True)):
        return None  # what it returns is called
    call = _call_of(part)
    if call is None:
        return f"{node._target_} has no {_call_name(part)}, which gets {called_with}."
    parameters = _parameters(call, is_method=is_made)
    if parameters is None:
        return None
    missing = [name for name in _required(parameters) if is_made or name not in node]
    if len(missing) <= count <= len(parameters):
        return None
    taken = ", ".join(parameters) or "nothing"
    return f"{_owner(node, part, call)} takes {taken}, but is called with {called_with}.{hint}"


def _closure_problem(target: str, part: Any) -> str | None:
    """Problem with an optimizer to which Lightning cannot pass the function that computes the gradients."""
    if not inspect.isclass(part) or not issubclass(part, Optimizer):
        return None
    try:
        inspect.signature(part.step).bind(None, closure=None)
    except TypeError:
        return (
            f"{target}.step must be step(self, closure=None), and call closure() first: this function computes the "
            "gradients, and returns the loss."
        )
    return None


def _hook_problems(path: str, part: Any) -> Iterator[str]:
    """Problems with the methods of a callback that Lightning calls with further arguments, or would never call."""
    if not path.startswith("callbacks.") or not inspect.isclass(part) or not issubclass(part, Callback):
        return
    hooks = dict(inspect.getmembers(Callback, inspect.isfunction))
    for name, method in inspect.getmembers(part, inspect.isfunction):
        owner = f"{part.__module__}.{part.__qualname__}.{name}"
        if method.__module__.startswith("lightning.") or isinstance(inspect.getattr_static(part, name), staticmethod):
            continue
        if name in hooks:
            passed = _required(inspect.signature(hooks[name]).parameters)
            named = {argument: None for argument in passed if argument == "stage"}  # Lightning passes it by its name
            try:
                inspect.signature(method).bind(*passed[: len(passed) - len(named)], **named)
            except TypeError:
                wanted = ", ".join(passed)
                yield f"{owner} is called with {', '.join(passed[1:])}. Write def {name}({wanted}):"
        elif (
            name.startswith("on_")
            and not _is_called(part, name)
            and (close := difflib.get_close_matches(name, hooks, n=2, cutoff=0.8))
        ):
            yield f"{owner} would never be called: Lightning has no such hook. Did you mean {' or '.join(close)}?"


def _is_called(part: type, name: str) -> bool:
    """Whether a method of a class calls another one by its name."""
    methods = (method for _, method in inspect.getmembers(part, inspect.isfunction))
    return any(name in method.__code__.co_names for method in methods if method.__name__ != name)


def _mapped_problems(
    cfg: DictConfig, path: str, entries: str, default: tuple[str, ...], invocation: Invocation
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
        part, is_loss = load_target(node._target_), entries == "criterions"
        is_made = inspect.isclass(part)
        if not is_made and (node.get("_partial_") is not True or not is_loss):  # what it returns is called
            continue
        if is_made and node.get("_partial_") is True and is_loss:
            continue  # said already
        call, key = _call_of(part) if is_loss else part.update, f"{path}.{entries}.{name}"
        if call is None or ("label" in (mapping or ("label",)) and call in OF_ONE_SHAPE):
            what = f"has no {_call_name(part)}, which gets {', '.join(arguments)}." if call is None else _one_shape(key)
            yield f"{key}{in_file(f'{key}._target_', invocation)}: {node._target_} {what}"
            continue
        parameters = _parameters(call, is_method=is_made)
        if parameters is None or _fits(parameters, arguments, set(map(str, node))):
            continue
        key = f"{path}.mapping.{name}" if mapping is not None else key
        entry = ", ".join(f"{key}: {argument}" for argument, key in _guessed(_required(parameters) or [*parameters]))
        yield (
            f"{key}{in_file(key, invocation)}: {_owner(node, part, call)} takes {', '.join(parameters) or 'nothing'}, "
            f"but is called with {', '.join(arguments)}. Map keys of the batch ({', '.join(BATCH)}) to its arguments, "
            f"below {path}:\n  mapping:\n    {name}: {{{entry}}}"
        )


def _one_shape(key: str) -> str:
    return (
        "takes a target of the shape of the logits, (images, classes), and label has one class index per image. Type "
        f"{key}._target_=torch.nn.CrossEntropyLoss, or write a loss of one-hot labels (docs/extend/loss.md)."
    )


def _call_of(part: Any) -> Callable[..., Any] | None:
    """Function that runs when the object of a class, or a function, is called; None for a class without one."""
    if not inspect.isclass(part):
        return part
    name = _call_name(part)
    call = next((vars(parent)[name] for parent in part.__mro__ if name in vars(parent)), None)
    return None if call is vars(nn.Module)["forward"] else call


def _call_name(part: Any) -> str:
    return "forward" if issubclass(part, nn.Module) else "__call__"


def _owner(node: DictConfig, part: Any, call: Callable[..., Any]) -> str:
    return f"{node._target_}.{call.__name__}" if inspect.isclass(part) else str(node._target_)


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


def _guessed(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Each argument, and the key of the batch that it probably means: by its name, or else by its place."""
    for argument, by_place in zip(arguments, [*GUESSES, *["KEY"] * len(arguments)], strict=False):
        by_name = next((key for key, parts in GUESSES.items() if any(part in argument for part in parts)), by_place)
        yield argument, argument if argument in BATCH else by_name

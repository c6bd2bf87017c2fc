"""What a config that comes out of a checkpoint may make: a checkpoint can come from a stranger."""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.schema import nodes, shipped

DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
SAFE_FILES = ("imagefolder", "parquet", "arrow")
"""Kinds of local files that `datasets` reads without running code; some of its others unpickle."""
WRITES_TO = ("dirpath", "default_root_dir", "save_dir")
MEMORY_SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100")
ARGUMENTS: dict[str, Mapping[str, Sequence[Any] | None]] = {
    "datasets.load_dataset": {
        "path": SAFE_FILES,
        **dict.fromkeys(("name", "data_dir", "data_files", "cache_dir", "revision")),
    },
    "imago.data.hymenoptera.hymenoptera": {"root": None},
}
"""Target -> its arguments that a stranger may give -> the values (None: any)."""


def check_targets(cfg: DictConfig, groups: Sequence[str], trusted: Sequence[str], typed: Sequence[str] = ()) -> None:
    """Raises ValueError for a `_target_` in one of the `groups` of `cfg` that is not on the allow-list.

    Both the name and the object that it leads to have to be: a name may lead through an allowed package to something
    that the package only imports. All names are looked at before anything is imported. `trusted` are beginnings of
    names to accept besides, `typed` the overrides of the command line, whose values are trusted.
    """
    found = [(path, node) for group in groups for path, node in nodes(OmegaConf.select(cfg, group), group)]
    output_dir = Path(OmegaConf.select(cfg, "paths.output_dir", default=os.devnull))
    found = [
        (path, node)
        for path, node in found
        if f"{path}._target_={node._target_}" not in [word.lstrip("+") for word in typed]
        and not any(str(node._target_).startswith(prefix) for prefix in trusted if prefix)
    ]
    for path, node in found:
        if not _is_named(node._target_):
            raise ValueError(refusal(path, node._target_))
    for path, node in found:
        if not _leads_to_it(node._target_):
            raise ValueError(refusal(path, node._target_))
        for name in [str(key) for key in node if not str(key).startswith("_")]:
            if not _may_be_given(node._target_, name, node[name], output_dir):
                raise ValueError(refusal(path, node._target_, f" with {name}={node[name]}"))


def _may_be_given(target: str, name: str, value: Any, output_dir: Path) -> bool:
    if name in WRITES_TO and value is not None:
        return Path(os.path.abspath(value)).is_relative_to(output_dir)
    if target not in ARGUMENTS:
        return True
    return name in ARGUMENTS[target] and (ARGUMENTS[target][name] or [value]).count(value) > 0


def refusal(path: str, target: Any, arguments: str = "") -> str:
    """The message for a target that a checkpoint may not name."""
    package = str(target).partition(".")[0]
    return (
        f"The config in the checkpoint makes {target}{arguments} ({path}), as none may. It was not run.\n"
        f"If you know who wrote it, type 'trusted_targets=[{package}.]'"
    )


def _is_named(target: Any) -> bool:
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        return False
    return target in shipped() or any(target.startswith(prefix) for prefix in FAMILIES)


def _leads_to_it(target: str) -> bool:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):  # Hydra would also walk through attributes
        return False
    if target in shipped():
        return True
    prefix = next(prefix for prefix in FAMILIES if target.startswith(prefix))
    return FAMILIES[prefix](found)


def _class_of(base: str, package: str) -> Callable[[Any], bool]:
    """Whether something is a subclass of `base` that stands in `package`."""

    def test(found: Any) -> bool:
        module, _, name = base.rpartition(".")
        return (
            inspect.isclass(found)
            and issubclass(found, getattr(importlib.import_module(module), name))
            and (f"{found.__module__}.".startswith(package))
        )

    return test


def _is_torchvision_model(found: Any) -> bool:
    from torchvision.models._api import BUILTIN_MODELS

    return any(found is build for build in BUILTIN_MODELS.values())


def _is_torchvision_transform(found: Any) -> bool:
    return inspect.isclass(found) and found.__module__.startswith("torchvision.transforms.")


def _is_memory_set(found: Any) -> bool:
    from torchvision import datasets

    return any(found is getattr(datasets, name) for name in MEMORY_SETS)


FAMILIES: dict[str, Callable[[Any], bool]] = {
    "torch.nn.": _class_of("torch.nn.Module", "torch.nn."),
    "torch.optim.lr_scheduler.": _class_of("torch.optim.lr_scheduler.LRScheduler", "torch.optim."),
    "torch.optim.": _class_of("torch.optim.Optimizer", "torch.optim."),
    "torchvision.models.": _is_torchvision_model,
    "torchvision.transforms.": _is_torchvision_transform,
    "torchvision.datasets.": _is_memory_set,
    "torchmetrics.": _class_of("torchmetrics.Metric", "torchmetrics.classification."),
    "lightning.pytorch.callbacks.": _class_of("lightning.pytorch.Callback", "lightning.pytorch.callbacks."),
    "imago.backbones.": _class_of("torch.nn.Module", "imago.backbones."),
    "imago.transforms.": _class_of("torch.nn.Module", "imago.transforms."),
}
"""Beginning of a name -> what may stand there besides the targets of the shipped configs."""

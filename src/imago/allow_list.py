"""What a config that comes out of a checkpoint may make: a checkpoint can come from a stranger."""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.schema import nodes, shipped

DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
PLACES = {  # beginning of a name -> the only keys where it may stand
    "datasets.": ("data.dataset",),
    "torchvision.datasets.": ("data.dataset",),
    "imago.data.digits.": ("data.source",),
    "imago.data.hymenoptera.": ("data.source",),
    "imago.data.image_folder.": ("data",),
    "imago.data.hugging_face.": ("data",),
    "imago.data.torchvision_set.": ("data",),
    "imago.backbones.torchvision_net": ("model.net",),
    "torchvision.models.": ("model.net",),
    "imago.module.": ("model",),
    "imago.dp.": ("strategy",),
    "imago.strategy.": ("strategy",),
    "lightning.pytorch.Trainer": ("trainer",),
    "lightning.pytorch.loggers.": (),  # checkpoints carry none
    "imago.loggers.": (),
}
ELSEWHERE = re.compile(r"\w:/|::")
DOWNLOADS = ("pretrained", "pretrained_backbone", "weights_backbone")
ARGUMENTS = {  # name -> the only arguments that may be given
    "datasets.load_dataset": ("path", "name", "data_dir", "data_files", "cache_dir", "revision"),
    "imago.data.hymenoptera.hymenoptera": ("root",),
    "imago.data.digits.digits": ("root",),
}
SAFE_FILES = ("imagefolder", "parquet", "arrow")
"""Kinds of local files that `datasets` reads without running code; some of its others unpickle."""
MEMORY_SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100")
CALLBACKS = (
    *("EarlyStopping", "ModelSummary", "RichModelSummary", "LearningRateMonitor", "DeviceStatsMonitor", "Timer"),
    *("TQDMProgressBar", "RichProgressBar", "GradientAccumulationScheduler", "StochasticWeightAveraging"),
)
"""Of Lightning: those that write no files."""
TRANSFORMS = ("data.eval_transform", "data.transform")
"""What a network needs of the data group."""
FOLDERS = {  # argument -> the setting below whose folder it has to be
    "dirpath": "paths.output_dir",
    "default_root_dir": "paths.output_dir",
    "cache_dir": "paths.cache_dir",
    "root": "paths.data_dir",
}


def check_targets(cfg: DictConfig, groups: Sequence[str], trusted: Sequence[str], typed: Sequence[str] = ()) -> None:
    """Raises ValueError for a `_target_` in one of the `groups` of `cfg` that is not on the allow-list.

    Both the name and the object that it leads to have to be: a name may lead through an allowed package to something
    that the package only imports. All names are looked at before anything is imported. `trusted` are beginnings of
    names to accept besides, `typed` the overrides of the command line, whose values are trusted.
    """
    words = [word.lstrip("+") for word in typed]
    found = [(path, node) for group in groups for path, node in nodes(OmegaConf.select(cfg, group), group)]
    found = [
        (path, node)
        for path, node in found
        if f"{path}._target_={node._target_}" not in words
        and not any(str(node._target_).startswith(prefix) for prefix in trusted if prefix)
    ]
    for group in groups:
        _check_resolved(group, OmegaConf.select(cfg, group), words)
    for path, node in found:
        if not _is_named(node._target_) or not _is_in_place(node._target_, path):
            raise ValueError(refusal(path, node._target_))
    for path, node in found:
        if not _leads_to_it(node._target_):
            raise ValueError(refusal(path, node._target_))
        for name in [str(key) for key in node if not str(key).startswith("_")]:
            is_typed = any(word.startswith(f"{path}.{name}=") for word in words)
            if not is_typed and not _may_be_given(cfg, node._target_, name, node[name]):
                raise ValueError(refusal(path, node._target_, f" with {name}={node[name]}"))


def _check_resolved(group: str, node: Any, typed: Sequence[str]) -> None:
    """Raises ValueError for texts that would be resolved once more, and for data that are not files of this machine."""
    if not OmegaConf.is_config(node):
        return
    texts = [OmegaConf.to_container(node, resolve=True)]
    while texts:
        each = texts.pop()
        if isinstance(each, dict | list):
            texts.extend(each.values() if isinstance(each, dict) else each)
        elif not isinstance(each, str) or any(word.endswith(f"={each}") for word in typed):
            continue
        elif "${" in each or (group == "data" and ELSEWHERE.search(each)):
            raise ValueError(f"The config in the checkpoint has {each!r} ({group}), as none may. It was not run.")


def refusal(path: str, target: Any, arguments: str = "") -> str:
    """The message for a target that a checkpoint may not name."""
    message = f"The config in the checkpoint makes {target}{arguments} ({path}), as none may. It was not run."
    package, _, _ = str(target).rpartition(".")
    if not package or package.partition(".")[0] in {name.partition(".")[0] for name in shipped()} | {"os", "builtins"}:
        return message  # nobody should trust a whole library
    return (
        f"{message}\nIf you know who wrote it, type 'trusted_targets=[{package}.]'. If you did, on another machine: "
        "docs/security.md says how your key comes here"
    )


def _is_named(target: Any) -> bool:
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        return False
    return target in shipped() or any(target.startswith(prefix) for prefix in FAMILIES)


def _is_in_place(target: str, path: str) -> bool:
    return all(path in places for prefix, places in PLACES.items() if target.startswith(prefix))


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


def _may_be_given(cfg: DictConfig, target: str, name: str, value: Any) -> bool:
    """Whether an argument can do no harm: names of files and folders are those that writing goes to."""
    if target in ARGUMENTS and name not in ARGUMENTS[target]:
        return False
    if target == "datasets.load_dataset" and name == "path":
        return value in SAFE_FILES
    if target.startswith("torchvision.models.") and name in DOWNLOADS:
        return False
    if name == "filename":
        return value is None or (isinstance(value, str) and Path(value).name == value and ".." not in value)
    if target == "imago.data.torchvision_set.TorchVisionDataModule" and name == "data_dir":
        return _is_below(cfg, value, "paths.data_dir")
    return name not in FOLDERS or value is None or _is_below(cfg, value, FOLDERS[name])


def _is_below(cfg: DictConfig, value: Any, setting: str) -> bool:
    folder = OmegaConf.select(cfg, setting)
    return folder is not None and Path(os.path.abspath(str(value))).is_relative_to(os.path.abspath(folder))


def _class_of(base: str, package: str) -> Callable[[Any], bool]:
    """Whether something is a subclass of `base` that stands in `package`."""

    def test(found: Any) -> bool:
        module, _, name = base.rpartition(".")
        return (
            inspect.isclass(found)
            and issubclass(found, getattr(importlib.import_module(module), name))
            and f"{found.__module__}.".startswith(package)
        )

    return test


def _is_torchvision_model(found: Any) -> bool:
    from torchvision.models._api import BUILTIN_MODELS

    is_classifier = getattr(found, "__module__", "").count(".") == 2  # segmentation and others stand deeper
    return is_classifier and any(found is build for build in BUILTIN_MODELS.values())


def _is_torchvision_transform(found: Any) -> bool:
    return inspect.isclass(found) and found.__module__.startswith("torchvision.transforms.")


def _is_memory_set(found: Any) -> bool:
    from torchvision import datasets

    return any(found is getattr(datasets, name) for name in MEMORY_SETS)


def _is_callback(found: Any) -> bool:
    from lightning.pytorch import callbacks

    return any(found is getattr(callbacks, name) for name in CALLBACKS)


FAMILIES: dict[str, Callable[[Any], bool]] = {
    "torch.nn.": _class_of("torch.nn.Module", "torch.nn."),
    "torch.optim.lr_scheduler.": _class_of("torch.optim.lr_scheduler.LRScheduler", "torch.optim."),
    "torch.optim.": _class_of("torch.optim.Optimizer", "torch.optim."),
    "torchvision.models.": _is_torchvision_model,
    "torchvision.transforms.": _is_torchvision_transform,
    "torchvision.datasets.": _is_memory_set,
    "torchmetrics.": _class_of("torchmetrics.Metric", "torchmetrics.classification."),
    "lightning.pytorch.callbacks.": _is_callback,
    "imago.backbones.": _class_of("torch.nn.Module", "imago.backbones."),
    "imago.transforms.": _class_of("torch.nn.Module", "imago.transforms."),
}
"""Beginning of a name -> what may stand there besides the targets of the shipped configs."""

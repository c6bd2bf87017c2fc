"""Facts about the targets that configs name: one row per family.

A new family of networks, data sets or loggers is a row of `TARGETS`: where it may stand, which arguments it takes from
a checkpoint, which package it needs, which of its arguments download weights.
"""

import difflib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from imago.errors import UserError

SAFE_FILES = ("imagefolder", "parquet", "arrow")
"""Kinds of local files that `datasets` reads without running code; some of its others unpickle."""
MEMORY_SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100")
"""Of torchvision: those that keep their images in memory."""
CALLBACKS = (
    *("EarlyStopping", "ModelSummary", "RichModelSummary", "LearningRateMonitor", "DeviceStatsMonitor", "Timer"),
    *("TQDMProgressBar", "RichProgressBar", "GradientAccumulationScheduler", "StochasticWeightAveraging"),
)
"""Of Lightning: those that write no files."""


def _class_of(base: str, package: str) -> Callable[[Any], bool]:
    """Whether something is a subclass of `base` that stands in `package`."""

    def test(target: Any) -> bool:
        module, _, name = base.rpartition(".")
        return (
            inspect.isclass(target)
            and issubclass(target, getattr(importlib.import_module(module), name))
            and f"{target.__module__}.".startswith(package)
        )

    return test


def _is_torchvision_model(target: Any) -> bool:
    from torchvision.models._api import BUILTIN_MODELS

    is_classifier = getattr(target, "__module__", "").count(".") == 2  # segmentation and others stand deeper
    return is_classifier and any(target is build for build in BUILTIN_MODELS.values())


def _is_torchvision_transform(target: Any) -> bool:
    return inspect.isclass(target) and target.__module__.startswith("torchvision.transforms.")


def _is_memory_set(target: Any) -> bool:
    from torchvision import datasets

    return any(target is getattr(datasets, name) for name in MEMORY_SETS)


def _is_callback(target: Any) -> bool:
    from lightning.pytorch import callbacks

    return any(target is getattr(callbacks, name) for name in CALLBACKS)


@dataclass(frozen=True)
class Family:
    """What is true of all targets whose name begins with `prefix`.

    Args:
        prefix: The beginning of a name, or a whole one.
        keys: The only settings where a checkpoint's config may have it; None allows any.
        accepts: Which objects a checkpoint's config may make besides the targets of the shipped configs.
        arguments: The only arguments that a checkpoint's config may give; None allows any.
        downloads: Arguments that fetch pretrained weights: left out where those of a checkpoint follow.
        extra: The package that it needs, and the extra of Imago that brings it.
        channels_last: Its networks take images in channels-last memory format.
    """

    prefix: str
    keys: tuple[str, ...] | None = None
    accepts: Callable[[Any], bool] | None = None
    arguments: tuple[str, ...] | None = None
    downloads: tuple[str, ...] = ()
    extra: tuple[str, str] | None = None
    channels_last: bool = False


TARGETS = (
    Family("imago.data.ImageFolderDataModule", keys=("data",)),
    Family("imago.data.HuggingFaceDataModule", keys=("data",), extra=("datasets", "hf")),
    Family("imago.data.TorchVisionDataModule", keys=("data",)),
    Family("imago.data.write_digits", keys=("data.source",), arguments=("root",)),
    Family("imago.data.download_hymenoptera", keys=("data.source",), arguments=("root",)),
    Family(
        "datasets.",
        keys=("data.dataset",),
        arguments=("path", "name", "data_dir", "data_files", "cache_dir", "revision"),
        extra=("datasets", "hf"),
    ),
    Family("torchvision.datasets.", keys=("data.dataset",), accepts=_is_memory_set),
    Family("torchvision.transforms.", accepts=_is_torchvision_transform),
    Family("imago.model.DictModule", keys=("model",)),
    Family("imago.model.torchvision_net", keys=("model.net",), downloads=("weights",), channels_last=True),
    Family("imago.model.", channels_last=True),
    Family(
        "torchvision.models.",
        keys=("model.net",),
        accepts=_is_torchvision_model,
        downloads=("weights", "weights_backbone", "pretrained", "pretrained_backbone"),
        channels_last=True,
    ),
    Family("torch.nn.", accepts=_class_of("torch.nn.Module", "torch.nn.")),
    Family("torch.optim.lr_scheduler.", accepts=_class_of("torch.optim.lr_scheduler.LRScheduler", "torch.optim.")),
    Family("torch.optim.", accepts=_class_of("torch.optim.Optimizer", "torch.optim.")),
    Family("torchmetrics.", accepts=_class_of("torchmetrics.Metric", "torchmetrics.classification.")),
    Family("imago.wiring.", accepts=_class_of("torch.nn.Module", "imago.wiring.")),
    Family("imago.model.Strategy", keys=("strategy",)),
    Family("imago.dp.", keys=("strategy",)),
    Family("lightning.pytorch.Trainer", keys=("trainer",)),
    Family("lightning.pytorch.callbacks.", accepts=_is_callback),
    Family("lightning.pytorch.loggers.WandbLogger", extra=("wandb", "wandb")),
    Family("lightning.pytorch.loggers.MLFlowLogger", extra=("mlflow", "mlflow")),
    Family("lightning.pytorch.loggers.", keys=()),  # checkpoints carry none
    Family("imago.training.", keys=()),
)


def families_of(target: str) -> Iterator[Family]:
    """All rows of a target."""
    return (family for family in TARGETS if target.startswith(family.prefix))


def is_channels_last(target: str) -> bool:
    """Whether the networks that `target` makes are known to take channels-last images."""
    return any(family.channels_last for family in families_of(target))


@cache
def torchvision_names() -> list[str]:
    """As `torchvision.models.list_models(module=torchvision.models)` gives them, read from its source."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    names: list[str] = []
    for path in Path(folder, "models").glob("*.py"):
        registered = re.findall(
            r"^@register_model\((.*?)\)\n(?:@.*\n|\w.*\n|\s+.*\n|\))*?def (\w+)", path.read_text(), re.M
        )
        names += [given.strip("\"'") or function for given, function in registered]
    return sorted(names)


def check_name(name: str) -> None:
    """Raises ValueError, with the closest names, unless torchvision has the classification model `name`."""
    known = torchvision_names()
    if name not in known:
        close = sorted(difflib.get_close_matches(name, known, n=8, cutoff=0.7))
        offered = f"the closest are {', '.join(close)}" if close else f"there are {', '.join(known)}"
        raise UserError(f"model.net.name={name} is no classification model of torchvision; {offered}.")

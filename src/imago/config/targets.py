"""Facts about the targets that configs name: one row per family.

A new family of networks, data sets or loggers is a row of `TARGETS`: in which settings it is allowed, which arguments
it takes from a checkpoint, which package it needs, and which of its arguments download weights.
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

from imago.config.root import CONFIG_DIR
from imago.definitions import INTERPOLATIONS
from imago.errors import UserError

SAFE_FILES = ("imagefolder", "parquet", "arrow")
"""Kinds of local files that `datasets` reads without running code; some of its further kinds unpickle."""
MEMORY_SETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "STL10", "CIFAR10", "CIFAR100")
"""Data sets of torchvision that keep their images in memory."""
CALLBACKS = (
    *("EarlyStopping", "ModelSummary", "RichModelSummary", "LearningRateMonitor", "DeviceStatsMonitor", "Timer"),
    *("TQDMProgressBar", "RichProgressBar", "GradientAccumulationScheduler", "StochasticWeightAveraging"),
)
"""Callbacks of Lightning that write no files."""


def _class_of(base: str, package: str) -> Callable[[Any], bool]:
    """Return a test for subclasses of `base` that are defined in `package`."""

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

    is_classifier = getattr(target, "__module__", "").count(".") == 2  # segmentation etc. are in subpackages
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
class Preprocessing:
    """Images as the weights of a network expect them.

    Args:
        mean: Means of red, green and blue, in [0, 1].
        std: Standard deviations of red, green and blue, in [0, 1].
        share: Side of the square crop in evaluation, as a fraction of the image's shorter side.
        interpolation: How images are resized, one of `INTERPOLATIONS`.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    share: float = 0.875
    interpolation: str = INTERPOLATIONS[0]


@dataclass(frozen=True)
class Family:
    """Facts about all targets whose name begins with `prefix`.

    Args:
        prefix: Beginning of a name, or a full name.
        keys: The only settings in which a checkpoint's config may have it; None allows any.
        accepts: Test for objects that a checkpoint's config may make besides the targets of the shipped configs.
        arguments: The only arguments that a checkpoint's config may set; None allows any.
        downloads: Arguments that download pretrained weights; removed if those of a checkpoint are loaded later.
        extra: Package that it needs, and the extra of Imago that installs it.
        channels_last: Whether its networks take images in channels-last memory format.
        is_network: It makes networks: options of another network are dropped where `_target_` is replaced.
        preprocessing: Preprocessing that its pretrained weights expect.
    """

    prefix: str
    keys: tuple[str, ...] | None = None
    accepts: Callable[[Any], bool] | None = None
    arguments: tuple[str, ...] | None = None
    downloads: tuple[str, ...] = ()
    extra: tuple[str, str] | None = None
    channels_last: bool = False
    is_network: bool = False
    preprocessing: Preprocessing | None = None


TARGETS = (
    Family("imago.data.ImageFolderDataModule", keys=("data",)),
    Family("imago.data.ShardDataModule", keys=("data",)),
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
    Family("imago.data.torchvision_dataset", keys=("data.dataset",), arguments=("name",)),
    Family("torchvision.datasets.", keys=("data.dataset",), accepts=_is_memory_set),
    Family("torchvision.transforms.", accepts=_is_torchvision_transform),
    Family("imago.model.DictModule", keys=("model",)),
    Family(
        "imago.model.torchvision_net", keys=("model.net",), downloads=("weights",), channels_last=True, is_network=True
    ),
    Family(
        "imago.model.efficientnet_lite0",
        keys=("model.net",),
        downloads=("weights",),
        is_network=True,
        preprocessing=Preprocessing((0.498, 0.498, 0.498), (0.502, 0.502, 0.502), interpolation="bicubic"),
    ),
    Family(
        "imago.model.timm_net",
        keys=("model.net",),
        downloads=("weights",),
        extra=("timm", "timm"),
        channels_last=True,
        is_network=True,
    ),
    Family("timm.models.", keys=(), channels_last=True),  # what timm_net makes; no config names one
    Family("imago.model.SimpleCNN", is_network=True),
    Family("imago.model.SimpleDenseNet", is_network=True),
    Family("imago.model.TinyNet", is_network=True),
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
    """Return the rows of `TARGETS` that match a target."""
    return (family for family in TARGETS if target.startswith(family.prefix))


def is_channels_last(target: str) -> bool:
    """Whether the networks that `target` makes are known to take channels-last images."""
    return any(family.channels_last for family in families_of(target))


def preprocessing_of(target: str) -> Preprocessing:
    """Preprocessing of the images for the networks that `target` makes: by default that of most ImageNet weights."""
    return next((family.preprocessing for family in families_of(target) if family.preprocessing), Preprocessing())


@cache
def torchvision_names() -> list[str]:
    """Names that `torchvision.models.list_models(module=torchvision.models)` returns, read from its source."""
    return _registered("torchvision")


@cache
def timm_names() -> list[str]:
    """Names that `timm.list_models()` returns, read from its source; none where timm is not installed."""
    return _registered("timm")


def _registered(package: str) -> list[str]:
    """Names of the functions in the package's folder `models` that are decorated with `register_model`: to import the
    package would take seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    (folder,) = spec.submodule_search_locations
    names: list[str] = []
    for path in Path(folder, "models").glob("*.py"):
        registered = re.findall(
            r"^@register_model(?:\((.*?)\))?\s*\n(?:@.*\n|\w.*\n|\s+.*\n|\))*?def (\w+)", path.read_text("utf-8"), re.M
        )
        names += [alias.strip("\"'") or function for alias, function in registered]
    return sorted(names)


def check_name(name: str) -> None:
    """Raise UserError, with the closest names, unless torchvision has the classification model `name`."""
    known = torchvision_names()
    if name not in known:
        if Path(CONFIG_DIR, "model", f"{name}.yaml").is_file():
            raise UserError(f"model.net.name={name} is not a network of torchvision, but of Imago. Type model={name}")
        also = " timm has a network of this name: type model=timm." if name.partition(".")[0] in timm_names() else ""
        raise UserError(
            f"model.net.name={name} is not a classification model of torchvision.{also} The closest are "
            f"{_closest(name, known)} (ml-train --networks lists all)."
        )


def check_timm_name(name: str) -> None:
    """Raise UserError, with the closest names, if timm is installed and does not have the network `name`. It may end
    with the tag of its weights: `resnet50.a1_in1k`."""
    known, architecture = timm_names(), name.partition(".")[0]
    if known and architecture not in known:
        raise UserError(
            f"model.net.name={name} is not a network of timm. The closest are {_closest(architecture, known)} "
            "(ml-train model=timm --networks lists all)."
        )


def _closest(name: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name.lower().replace("-", "_"), known, n=5, cutoff=0))


NETWORKS: dict[Any, Callable[[str], None]] = {
    "imago.model.torchvision_net": check_name,
    "imago.model.timm_net": check_timm_name,
}
"""Function that makes networks by name -> check of a name, which imports neither library."""

"""Names and types that all packages share: version, splits, signals, batches, ranges of settings, lazy exports."""

import difflib
import importlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

__version__ = "0.2.0"
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals by which job schedulers, and terminals that are closed, stop a run; Ctrl-C is handled separately."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit statuses, as in shells
EXPORT_SUFFIX = ".safetensors"
"""Suffix of the file of `ml-export`."""
CALIBRATION = "calibration"
"""The split that neither trains a network nor chooses its checkpoint."""
SPLITS = ("train", "val", CALIBRATION, "test")
HELD_OUT = SPLITS[1:]
"""Splits that no network is trained on."""
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "calibration": ("calibration",),
    "test": ("test", "testing"),
}
ALL_DIGITS = Context(prec=400)  # of any float
Interpolation = Literal["auto", "bilinear", "bicubic"]
"""`auto`, that of the weights, is replaced when a config is composed."""
INTERPOLATIONS: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")
"""Ways to resize images; the first is the default."""
Batch = dict[str, Any]
PARTNER_LABEL, SHARE = "partner_label", "share"
"""Keys of a batch of mixed images: the label of the other image, and the share of the own one, 0 to 1."""
STEP_WEIGHT = "step_weight"
"""Key of a train batch that is divided unevenly among the processes: the weight of a process's mean loss in the step, 0
for images that stand in for a part that the process does not have. Without the key it is 1."""
REPEAT = "repeat"
"""Key of a train batch of `data.sampler`: how often each image was drawn before in the epoch, int64 (n,)."""
SampleKey = tuple[int, int] | tuple[int, int, int]  # epoch, index, and the number of earlier draws if there can be any


def is_export(path: str | Path) -> bool:
    """Whether a path is that of an export, by its suffix."""
    return Path(path).suffix == EXPORT_SUFFIX


@dataclass(frozen=True)
class AtLeast:
    """Smallest valid value."""

    least: float


@dataclass(frozen=True)
class AtMost:
    """Greatest valid value."""

    most: float


@dataclass(frozen=True)
class Above:
    """Greatest number below all valid values."""

    bound: float


@dataclass(frozen=True)
class Below:
    """Smallest number above all valid values."""

    bound: float


Positive = Annotated[int, AtLeast(1)]
ZeroOrMore = Annotated[int, AtLeast(0)]
ValRatio = Annotated[float, AtLeast(0.0), AtMost(0.5)]
TestRatio = Annotated[float, AtLeast(0.0), AtMost(0.5)] | None
CalibrationRatio = Annotated[float, AtLeast(0.0), AtMost(0.5)]
Fold = Annotated[int, AtLeast(0)] | None
Folds = Annotated[int, AtLeast(2)] | None
ZeroOrMoreFloat = Annotated[float, AtLeast(0.0)]
PositiveFloat = Annotated[float, Above(0.0)]
Probability = Annotated[float, Above(0.0), Below(1.0)]


CHECKED = "checked"
"""Status of a run of `preflight=only`, which has trained nothing."""
PRUNED = "pruned"
"""Status of a trial of a search that was ended early."""
TIME_OVER = "trainer.max_time was reached"
"""Reason, too, with the number of epochs after it."""
TIME_BUDGET_USED = "the time budget is used"
"""Reason, too, with the number of epochs after it."""
BUDGET_SPENT = "privacy budget spent"
"""Reason in `status.json` of a run that its privacy budget has ended."""


def best_mode(metric: str) -> str:
    """Mode of a metric: `min` for losses, `max` for everything else."""
    return "min" if "loss" in metric else "max"


def rounded_up(bound: float | Decimal, digits: int = 4) -> str:
    """Format an upper bound, such as an epsilon, with `digits` decimals: rounded up, so that it still holds."""
    return str(Decimal(bound).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING, ALL_DIGITS))


def lazy_exports(
    package: str, places: Mapping[str, Sequence[str]], instead: Mapping[str, str] | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` (PEP 562) for a package whose names are imported on first use.

    `places` maps the modules of the package to the names that they export, and `instead` names that people guess to
    what there is. `import imago` alone stays light.
    """
    instead = instead or {}
    module_of = {name: module for module, names in places.items() for name in names}
    known = sorted({*module_of, *(module for module in places if not places[module])})

    def find(name: str) -> Any:
        if name in places:
            return importlib.import_module(f"{package}.{name}")
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else f" It has {', '.join(known)}."
        hint = f" Call {instead[name]}." if name in instead else hint
        raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint}")

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *known})

    return sorted(module_of), find, list_names

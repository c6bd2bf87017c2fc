"""Images that the weights of a new training have seen, and whether a private training may start from them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from imago.checkpoint.exported import metadata_of
from imago.checkpoint.read import read_checkpoint
from imago.data.folder_images import FolderImages
from imago.data.module import ImageDataModule
from imago.data.shard_images import ShardImages
from imago.definitions import is_export
from imago.dp.published import REPORT, privacy_of
from imago.errors import UserError
from imago.files import MISFIT, fitting
from imago.model.weight_files import WEIGHT_FILES, names_a_file

log = logging.getLogger(__name__)

PROMISE = "strategy.public_init=true"
MAY_PROMISE = (
    f"If you know that they have seen none of the train images, type {PROMISE}, a promise that reports/privacy.md "
    "repeats."
)
PROMISED = (
    f"you promise ({PROMISE}) that these weights have seen none of the train images. The guarantee depends on it, and "
    "nothing has checked it"
)
NOT_ALL = "not all images that these weights have seen are recorded, because"


@dataclass(frozen=True)
class Origin:
    """Weights that a training starts from.

    Args:
        name: The setting that names them, `model.init_from=FILE`.
        is_foreign: Whether Imago does not know who trained them: they are treated as public.
        seen: Digests of the images that they were trained on without privacy, int64 (images,); None if not recorded.
        root: Folder of these images.
        spent: Spent by `strategy=dp`, such as `epsilon 3.0000, delta 1e-05`; empty without privacy, or without a bound.
        unrecorded: Why images that earlier weights were trained on may be missing in `seen`; empty if none are.
    """

    name: str
    is_foreign: bool = False
    seen: Tensor | None = None
    root: str = ""
    spent: str = ""
    unrecorded: str = ""


def origins_of(model: DictConfig) -> list[Origin]:
    """Read what is known of the weights in files that a `model` node names."""
    weights = (model.get("net") or {}).get("weights")
    origins = [_origin(f"model.net.weights={weights}", str(weights))] if weights and names_a_file(str(weights)) else []
    source = model.get("init_from")
    return origins + ([_origin(f"model.init_from={source}", str(source))] if source is not None else [])


def _origin(name: str, source: str) -> Origin:
    texts = metadata_of(source)
    if is_export(source) and "imago" in texts:
        unrecorded = "training began with weights whose images are not recorded" if "unrecorded" in texts else ""
        return Origin(name, spent=_bound(_privacy_in(texts)), unrecorded=unrecorded)
    if Path(source).suffix in WEIGHT_FILES or name.startswith("model.net"):
        return Origin(name, is_foreign=True)
    entry = read_checkpoint(source, mmap=True, key="model.init_from")["imago"]
    spent = _bound(privacy_of(Path(source), entry))
    root, unrecorded = str(entry["data"].get("root", "")), str(entry.get("unrecorded") or "")
    return Origin(name, seen=entry.get("train_images"), root=root, spent=spent, unrecorded=unrecorded)


def _privacy_in(texts: dict[str, str]) -> dict[str, Any] | None:
    try:
        spent = fitting(json.loads(texts.get("privacy", "null")), REPORT)
    except (ValueError, RecursionError):
        return None
    return None if spent is MISFIT else spent


def _bound(spent: dict[str, Any] | None) -> str:
    """Epsilon and delta in words; empty if there is no bound: without noise, weights tell as much as any."""
    has_bound = spent is not None and isinstance(spent["epsilon"], int | float)
    return f"epsilon {spent['epsilon']:.4f}, delta {spent['delta']:g}" if spent is not None and has_bound else ""


def check_private_start(
    origins: Sequence[Origin], resumed: str | Path | None, data: ImageDataModule, is_promised: bool
) -> list[str]:
    """Refuse a private training from weights that may have seen its train images without privacy; return what the
    guarantee assumes of the others, and log it as warnings.

    Args:
        origins: The weights of a new training.
        resumed: The checkpoint of one that is resumed.
        data: The data of the training.
        is_promised: Whether `strategy.public_init` promises that they have seen none of the images.

    Raises:
        UserError: They have seen some, or may have and nothing is promised.
    """
    assumed = _assumed_of(resumed, data, is_promised) if resumed is not None else []
    for origin in origins:
        if shared := _shared(origin, data):
            of_all = len(data.split("train"))
            leave_out = ", or leave these images out (data.exclude=FILE)" if shared < of_all else ""
            raise UserError(
                f"strategy=dp and {origin.name}: these weights were trained without privacy on {shared} of the "
                f"{of_all} train images, for which there would be no guarantee. Start from weights of other "
                f"images{leave_out}. {PROMISE} does not help, because it would be wrong."
            )
        doubt = _doubt(origin, data)
        if doubt and not is_promised:
            compared = ", or type model.init_from=RUN for the run that trained them, whose images are compared"
            raise UserError(
                f"strategy=dp and {origin.name}: {doubt}. For images of this run that they have seen there would be "
                "no guarantee. Leave it out to start from public weights"
                f"{compared if is_export(origin.name) else ''}. {MAY_PROMISE}"
            )
        assumed.append(_assumption(origin, doubt, is_promised))
        (log.info if origin.seen is not None and not doubt else log.warning)("%s", assumed[-1])
    return assumed


def _assumption(origin: Origin, doubt: str, is_promised: bool) -> str:
    """Assumption of the guarantee about weights from which a private training may start."""
    if is_promised and (doubt or origin.is_foreign):
        return f"{origin.name}: {PROMISED}{f': {doubt}' if doubt else ''}"
    if origin.is_foreign:
        return (
            f"{origin.name}: these weights are treated as public. For train images that they have seen, nothing holds"
        )
    if origin.spent:
        return (
            f"{origin.name} was trained with strategy=dp ({origin.spent}). If it has seen images of this run, both "
            "epsilons and both deltas add up for these: those of this run cover its own steps only"
        )
    return (
        f"{origin.name}: these weights were trained without privacy, on other images: no train image has the content "
        "of one of theirs. Scaled or converted copies are not recognised"
    )


def _assumed_of(resumed: str | Path, data: ImageDataModule, is_promised: bool) -> list[str]:
    """Assumptions of the guarantee about the first weights of a checkpoint that is continued on other data than its
    own: what its run has checked, or assumes, is about its own images."""
    entry = read_checkpoint(resumed, mmap=True)["imago"]
    unrecorded = str(entry.get("unrecorded") or "")
    if not unrecorded or entry["data"]["fingerprint"] == data.facts["fingerprint"]:
        return []
    name, doubt = f"the checkpoint {resumed}", f"{NOT_ALL} {unrecorded}, and these data are not those of its run"
    if not is_promised:
        raise UserError(f"strategy=dp and {name}: {doubt}. {MAY_PROMISE}")
    log.warning("%s: %s: %s", name, PROMISED, doubt)
    return [f"{name}: {PROMISED}: {doubt}"]


def _shared(origin: Origin, data: ImageDataModule) -> int:
    """Count the train images that the weights are known to have seen without privacy."""
    if origin.seen is None:
        return 0
    seen = set(origin.seen.tolist())
    return sum(digest in seen for digest in data.train_digests.tolist())


def _doubt(origin: Origin, data: ImageDataModule) -> str:
    """Reason why the weights may have seen train images without privacy; empty if there is none."""
    if origin.is_foreign:
        return ""
    if origin.unrecorded:
        return f"{NOT_ALL} {origin.unrecorded}"
    if origin.spent:
        return ""
    if origin.seen is None or not len(origin.seen):
        return "these weights were trained without privacy, and their train images are not recorded"
    train = data.split("train")
    if len(data.train_digests) < len(train):
        return "these weights were trained without privacy, and some train images cannot be compared with theirs"
    if (
        isinstance(train, FolderImages | ShardImages)
        and origin.root
        and Path(origin.root).resolve() == Path(data.sets.root).resolve()
    ):
        return f"these weights were trained without privacy on other images of the same folder, {origin.root}"
    return ""


def unrecorded_by(origins: Sequence[Origin], is_private: bool) -> str:
    """Reason why the checkpoints of a training that starts from these weights lack images that they have seen; empty
    if they record all, or if the weights are public. Those of one that is private record none."""
    for origin in origins:
        if origin.is_foreign:
            continue
        if origin.unrecorded:
            return origin.unrecorded
        if is_private or origin.spent or origin.seen is None or not len(origin.seen):
            return f"training began with {origin.name}"
    return ""

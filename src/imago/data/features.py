"""The features of a split, the inputs of the network's head in evaluation view, and the folder that keeps them."""

import hashlib
import logging
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from imago.data.cache import FOLDER, SHARE
from imago.data.module import ImageDataModule
from imago.data.transfer import to_network
from imago.distributed import all_gather_objects
from imago.errors import UserError
from imago.files import atomic_folder
from imago.model.module import DictModule
from imago.resources import free_memory

log = logging.getLogger(__name__)

FEATURES, DIGEST = "features.npy", "sha256"
FORMAT = 1  # raise it when the same images have other features
COPIES = 4  # of the features in float64, that fitting a head needs
SECONDS_BETWEEN_LINES = 10.0


class NoFeaturesError(UserError):
    """The head does not answer from flat features, or these do not fit into memory."""


@dataclass(frozen=True)
class FeatureCache:
    """Place of features on the disk, in the folder of the pixel caches, which `ml-doctor clean` empties.

    Args:
        folder: Parent folder of the caches.
        seen: Description of everything between a file and the network.
        budget: Bytes that the features may take; None allows a quarter of the free space.
    """

    folder: Path
    seen: str
    budget: int | None = None

    def place(self, model: DictModule, head: Collection[str], data: ImageDataModule, split: str) -> Path:
        """Folder of the features: a function of the weights, the images, their view, and what computes them."""
        device = f"{model.device.type} {torch.get_float32_matmul_precision()} {model.channels_last}"
        images = data.split(split).stamp(times=True)
        parts = (FORMAT, torch.__version__, device, data.sets.root, split, images, self.seen, _digest(model.net, head))
        name = hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / FOLDER / name

    def read(self, place: Path, images: int) -> Tensor | None:
        """Features, float32 (images, d); None if they are missing or damaged."""
        try:
            content = (place / FEATURES).read_bytes()
            if hashlib.sha256(content).hexdigest() != (place / DIGEST).read_text():
                raise ValueError("the checksum differs")
            features = torch.from_numpy(np.load(place / FEATURES, allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("The features in %s are damaged, and are computed again: %s", place, error)
            return None
        return features if features.ndim == 2 and len(features) == images else None

    def limit(self) -> int:
        """Bytes that the features may take."""
        return self.budget if self.budget is not None else shutil.disk_usage(self.folder).free // SHARE

    def bytes_beside(self, files: Path, images: int, width: int) -> int:
        """Bytes that features take of the disk of the folder `files`; 0 if they are not kept there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            size, is_same_disk = 4 * images * width, self.folder.stat().st_dev == files.stat().st_dev
            return size if is_same_disk and size <= self.limit() else 0
        except OSError:  # `write` says it
            return 0

    def write(self, place: Path, features: Tensor) -> None:
        """Keep features, float32 (n, d). Without enough space they are not kept, which is logged."""
        size = features.numel() * features.element_size()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if size > (budget := self.limit()):
                log.info(
                    "The features (%.1f MB) are not kept on the disk: the limit is %.1f MB", size / 1e6, budget / 1e6
                )
                return
            place.parent.chmod(0o700)  # as the pixels: features of private images are private
            with FileLock(place.with_name(f"{place.name}.lock")):
                shutil.rmtree(place, ignore_errors=True)
                with atomic_folder(place) as temporary:
                    np.save(temporary / FEATURES, features.numpy())
                    digest = hashlib.sha256((temporary / FEATURES).read_bytes()).hexdigest()
                    (temporary / DIGEST).write_text(digest)
        except OSError as error:
            log.warning("The features are not kept on the disk: %s", error)


def features_of(
    model: DictModule,
    head: Collection[str],
    layer: nn.Linear,
    data: ImageDataModule,
    trainer: Any,
    cache: FeatureCache | None,
) -> Tensor:
    """Inputs of `layer`, the head, for all train images in evaluation view and mode: float32 (n, d), in their order.

    All processes call this together and get the same. `head` holds the names of the head's tensors.

    Raises:
        NoFeaturesError: The logits are not those of `layer` on flat features, or memory is short.
    """
    images = data.split("train")
    place = cache.place(model, head, data, "train") if cache is not None else None
    own = cache.read(place, len(images)) if cache is not None and place is not None and trainer.is_global_zero else None
    known = all_gather_objects(own)[0]
    if known is not None:
        log.info("The features of the train images are read from %s", place)
        return known
    numbers, rows, problem = _computed(model, layer, data, trainer)
    parts = all_gather_objects((numbers, rows, problem))
    if problems := [problem for _, _, problem in parts if problem is not None]:
        raise NoFeaturesError(problems[0])
    order = torch.tensor(images.indices([number for numbers, _, _ in parts for number in numbers])).argsort()
    features = torch.cat([part for _, part, _ in parts])[order]
    if cache is not None and place is not None and trainer.is_global_zero:
        cache.write(place, features)
    return features


def _computed(
    model: DictModule, layer: nn.Linear, data: ImageDataModule, trainer: Any
) -> tuple[list[int], Tensor, str | None]:
    """Numbers and features, float32, of the images of this process, and why there are none."""
    loader = data.eval_dataloader("train", cached=False)
    order = torch.channels_last if model.channels_last else torch.contiguous_format
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(
        lambda _, arguments, named: inputs.append(next(iter((*arguments, *named.values()))).detach()), with_kwargs=True
    )
    numbers: list[int] = []
    rows = [torch.zeros(0, layer.in_features)]
    total, said, is_training = len(data.split("train")), time.monotonic(), model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                batch = data.transfer_batch_to_device(batch, model.device, 0)
                batch = to_network(batch, data.eval_transform.batch, trainer)
                image = batch["image"]
                inputs.clear()
                # `forward`, since a compiled network calls no hooks of its layers
                logits = model.net.forward(image.contiguous(memory_format=order) if image.ndim == 4 else image)
                if len(rows) == 1 and (problem := _problem(inputs, logits, layer, total)) is not None:
                    return [], rows[0], problem
                rows.append(inputs[0].float().cpu())
                numbers += batch["index"].tolist()
                if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    log.info("Head first: features of %d of %d train images", len(numbers), total)
    finally:
        hook.remove()
        loader.close()
        model.train(is_training)
    return numbers, torch.cat(rows), None


def _problem(inputs: list[Tensor], logits: Tensor, layer: nn.Linear, images: int) -> str | None:
    """Why a head cannot be fitted to such features, or None."""
    is_flat = len(inputs) == 1 and inputs[0].ndim == 2
    if not is_flat or not torch.equal(nn.functional.linear(inputs[0], layer.weight, layer.bias), logits):
        return "its logits are not those of one Linear layer on flat features"
    needed, free = 8 * COPIES * images * layer.in_features, free_memory()
    if needed > free:
        return f"the features need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
    return None


def _digest(net: nn.Module, head: Collection[str]) -> str:
    """Digest of all tensors of a network but those of its head."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        if name not in head:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""`data.batch_size=auto`: the largest power of two that fits, tried on a copy of the network."""

import copy
import logging
from functools import partial

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor

from imago.callbacks.memory import SIGNS
from imago.config.saved import save_config
from imago.data.module import ImageDataModule
from imago.definitions import Batch
from imago.errors import UserError
from imago.model.contract import check_loss
from imago.model.module import DictModule
from imago.resources import free_memory
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

LEAST_STEPS = 10
"""Steps of an epoch: larger batches would leave fewer."""
SMALLEST = 8
"""Images of the first trial, and of the smallest batch that is chosen, where there are so many."""
PART_OF_CPU, PART_OF_GPU = 0.5, 0.9
"""Parts of the free memory that a step may need: others use that of a CPU, too, and loaders keep batches there."""


def choose_batch_size(
    cfg: DictConfig, run: RunFolder, data: ImageDataModule, model: DictModule, trainer: Trainer
) -> None:
    """Replace `data.batch_size=auto` by the size that fits, in the data, in `cfg` and in the settings of the run.

    Weights, gradients and random generators stay as they are.

    Raises:
        UserError: Not even the smallest batch fits.
    """
    if cfg.data.get("batch_size") != "auto":
        return
    device = trainer.strategy.root_device
    images = len(data.split("train"))
    most = 1 << (max(min(SMALLEST, images), images // LEAST_STEPS).bit_length() - 1)
    with isolate_rng():
        trial = copy.deepcopy(model).to(device)
        batch = data.some_images("train", min(SMALLEST, most), device)
        of_device = _largest_on_gpu if device.type == "cuda" else _largest_by_measure
        size, tried = of_device(trial, trainer, batch, most)
    log.info("data.batch_size=auto: %s. %s", size, tried)
    if size == most:
        log.info("More than %d would leave fewer than %d steps an epoch (%d train images)", size, LEAST_STEPS, images)
    data.batch_size = cfg.data.batch_size = size
    if run.rank == 0:
        run.write_when_accepted(partial(save_config, copy.deepcopy(cfg), run.path, run.invocation))


def _largest_by_measure(model: DictModule, trainer: Trainer, batch: Batch, most: int) -> tuple[int, str]:
    """The largest batch by what the network keeps of an image, measured on a small batch."""
    sizes: dict[int, int] = {}

    def saved(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        _step(model, trainer, batch)
    own = _bytes_of_weights(model)
    count = len(batch["label"])
    per_image, fixed = max(1, sum(sizes.values()) - own) / count, 4 * own  # gradients, and two values of AdamW
    free = free_memory()
    size = most
    while size > 1 and fixed + size * per_image > PART_OF_CPU * free:
        size //= 2
    if fixed + size * per_image > free:
        raise UserError(
            f"data.batch_size=auto: a step on one image needs {_gb(fixed + per_image)}, {_gb(free)} are free."
        )
    return size, (
        f"Tried {count} images: {_gb(per_image)} each, so that {size} need {_gb(fixed + size * per_image)} of the "
        f"{_gb(free)} that are free"
    )


def _largest_on_gpu(model: DictModule, trainer: Trainer, batch: Batch, most: int) -> tuple[int, str]:
    """The largest batch by trial steps of growing size, until one does not fit."""
    device = trainer.strategy.root_device
    free = torch.cuda.mem_get_info(device)[0]
    before = torch.cuda.memory_allocated(device)
    optimizer = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    tried, size, largest = [], min(SMALLEST, most), 0
    while size <= most:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _step(model, trainer, _repeated(batch, size))
            needed = torch.cuda.max_memory_allocated(device) - before + optimizer
        except RuntimeError as error:
            if not any(sign in str(error) for sign in SIGNS):
                raise
            tried.append(f"{size} out of memory")
            break
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        tried.append(f"{size} {_gb(needed)}")
        if needed > PART_OF_GPU * free:
            break
        largest, size = size, 2 * size
    if not largest:
        raise UserError(f"data.batch_size=auto: {tried[-1]}. Type data.batch_size=1, or a smaller data.image_size=")
    return largest, f"Tried {', '.join(tried)}; {_gb(free)} are free"


def _step(model: DictModule, trainer: Trainer, batch: Batch) -> None:
    """Forward and backward pass, without a change of the weights."""
    with trainer.precision_plugin.train_step_context():
        loss = model.criterions(model(batch))["total"]
    check_loss(loss)
    loss.backward()


def _repeated(batch: Batch, size: int) -> Batch:
    count = len(batch["label"])
    times = -(-size // count)

    def grown(value: Tensor) -> Tensor:
        is_per_image = value.ndim > 0 and len(value) == count
        return value.repeat(times, *[1] * (value.ndim - 1))[:size] if is_per_image else value

    return {key: grown(value) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _bytes_of_weights(model: DictModule) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

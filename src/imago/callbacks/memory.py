"""Batches that do not fit into the memory of the device: what to type."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from imago.errors import OutOfMemoryError, UserError
from imago.model.module import DictModule

SIGNS = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""Parts of the messages of CUDA, MPS, the CPU's allocator, cuBLAS and cuDNN."""
ALLOCATOR = re.compile(r"\s*(Of the allocated memory|If reserved but unallocated|See documentation).*", re.DOTALL)
"""End of CUDA's message, about settings of its allocator."""


@contextmanager
def memory_errors_explained(
    trainer: Trainer, model: DictModule, batch_size: int, tried: int | None = None
) -> Iterator[None]:
    """Replace an error about memory by one that names the batch size, and the settings to change.

    Args:
        trainer: The Trainer that runs in this block.
        model: Its model.
        batch_size: Value of `data.batch_size`.
        tried: Images of a batch in this block, if not `batch_size`.

    Raises:
        OutOfMemoryError: A batch does not fit into memory.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, UserError) or not (isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)):
            raise
        device = "GPU" if trainer.strategy.root_device.type in ("cuda", "mps") else "CPU"
        said = ALLOCATOR.sub("", text).strip().partition("\n")[0]
        advice = memory_advice(trainer, model, batch_size, (tried or batch_size) // 2)
        what = f"The {device} is out of memory with data.batch_size={batch_size}"
        raise OutOfMemoryError(f"{what}{f' ({said})' if said else ''}. {advice}") from error


def memory_advice(trainer: Trainer, model: DictModule, batch_size: int, smaller: int) -> str:
    """Return what to type so that a step needs the memory of a batch of `smaller` images, or less."""
    smaller = max(smaller // trainer.world_size, 1) * trainer.world_size
    is_training = trainer.state.fn == TrainerFn.FITTING
    options = []
    if is_training and hasattr(model.strategy, "physical_batch_size"):
        smaller = min(smaller, model.strategy.microbatch_size(batch_size) // 2)
        options += [f"strategy.physical_batch_size={smaller}, which changes no result"] if smaller else []
    elif smaller < batch_size:
        batches = trainer.accumulate_grad_batches * -(-batch_size // smaller)
        kept = f" trainer.accumulate_grad_batches={batches}" if is_training else ""
        options.append(f"data.batch_size={smaller}{kept}")
    if str(trainer.precision) == "32-true":
        options.append("trainer=amp" if trainer.world_size == 1 else "trainer.precision=auto-mixed")
    if is_training:
        options.append("a smaller data.image_size=")
    return f"Type {', or '.join(options) or 'trainer=cpu'}."

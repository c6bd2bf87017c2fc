"""Transfer of batches to the device."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from imago.definitions import Batch


class CopyingDataModule(LightningDataModule):
    """Data module that copies batches to a GPU on a separate stream, during the previous step."""

    _copies: torch.cuda.Stream | None = None

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copies = self._copies or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(self._copies)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(steps)  # its memory is reused only after the step
        return batch


def to_network(batch: Batch, stage: Callable[[Batch], Batch], trainer: Trainer | None) -> Batch:
    """Apply the batch stage and the precision of the run: Lightning converts before its hook for this, when the pixels
    are still integers."""
    batch = stage(batch)
    return trainer.precision_plugin.convert_input(batch) if trainer is not None else batch

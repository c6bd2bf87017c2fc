"""Margins of the labels of train images, added up while a network learns: those of wrong labels are low.

Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020: a wrong label is
learned late, against what images of its class have taught, so that its margin is low over the epochs. Here margins are
bounded: a sure answer of the last epochs, which may be learned by heart, does not outweigh the first ones, and they add
up as whole numbers.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from imago.definitions import PARTNER_LABEL, REPEAT, STEP_WEIGHT
from imago.files import log_write_errors
from imago.lightning_internals import data_of, option_of
from imago.report.label_errors import MARGINS, write_margins

log = logging.getLogger(__name__)

BOUND = 5.0
"""Greatest margin, either way: a class that is 148 times as probable."""
UNIT = 2**13
"""Margin of 1 as a whole number: sums of these depend neither on their order nor on the number of processes."""
MOST_EPOCHS = 2**14
"""Epochs that count. The sum of an image that is drawn three times in each is below the greatest int32."""


class LabelMargins(Callback):
    """Average the margin of each train image's label over the epochs, and write it at the end of the training, for the
    list of possibly mislabelled images in the report.

    The sums and counts, 8 bytes an image, stay on the device. They are exact for any number of processes, and when a
    run is resumed. Images that are mixed (MixUp, CutMix) have no label of their own, and are not counted. With
    `strategy=dp`, nothing is counted, because margins tell of single images.

    Args:
        dirpath: Folder of `label_margins.npz`.
    """

    def __init__(self, dirpath: str) -> None:
        self.file = Path(dirpath) / MARGINS
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0, dtype=torch.int32)
        self._restored: tuple[Tensor, Tensor] | None = None
        self._has_said = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._sums = None
        if not pl_module.strategy.shows_train_images:
            log.info("Label margins are off: with strategy=dp they would tell of single train images")
            return
        images = data_of(trainer).split("train")
        self._sums = torch.zeros(images.total or len(images), dtype=torch.int32, device=pl_module.device)
        self._counts = torch.zeros_like(self._sums)
        if self._restored is not None and trainer.is_global_zero and len(self._restored[0]) == len(self._sums):
            self._sums.copy_(self._restored[0])
            self._counts.copy_(self._restored[1])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_missing = "label" not in outputs or batch.get(STEP_WEIGHT) == 0  # left out, or images that stand in
        if self._sums is None or is_missing or trainer.current_epoch >= MOST_EPOCHS:
            return
        if PARTNER_LABEL in outputs:
            if not self._has_said:
                log.info("Label margins do not count images that are mixed (MixUp, CutMix)")
            self._has_said = True
            return
        margins, index = margins_of(outputs["logits"], outputs["label"]), outputs["index"]
        counts = torch.ones_like(index, dtype=torch.int32)
        if REPEAT in outputs:
            counts = (outputs[REPEAT] == 0).int()  # once in an epoch, so that sums stay in range
        self._sums.index_add_(0, index, (UNIT * margins).round_().int() * counts)
        self._counts.index_add_(0, index, counts)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._sums is None or option_of(trainer, "fast_dev_run"):
            return
        sums, counts = self._totals()
        if not trainer.is_global_zero or not counts.any():
            return
        images = data_of(trainer).split("train")
        numbers = slice(None) if images.numbers is None else images.numbers
        means = (sums.double() / UNIT / counts).numpy()[numbers]  # NaN of an image that was never drawn
        with log_write_errors(MARGINS):
            write_margins(self.file, means, images.labels)

    def state_dict(self) -> dict[str, Any]:
        """Sums of all processes, which call this together."""
        if self._sums is None:
            return {}
        sums, counts = self._totals()
        return {"sums": sums, "counts": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._restored = state_dict["sums"], state_dict["counts"]

    def _totals(self) -> tuple[Tensor, Tensor]:
        assert self._sums is not None
        totals = torch.stack([self._sums, self._counts])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        sums, counts = totals.cpu()
        return sums.clone(), counts.clone()


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of each image's label less the greatest other one, float32 (n,), from -5 to 5; 0 where logits (n, classes)
    are not finite."""
    logits = logits.detach().float()
    of_label = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return (of_label - others).nan_to_num_(0.0).clamp_(-BOUND, BOUND)

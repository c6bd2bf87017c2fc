"""The head first: fit it to the features of the pretrained network, and train the whole network from there.

Kumar et al. (2022), "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (LP-FT).
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from imago.callbacks.best_checkpoint import RunCheckpoint
from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.last_checkpoint import ResumeCheckpoint
from imago.checkpoint.write import alias
from imago.data.features import FeatureCache, NoFeaturesError, features_of
from imago.data.module import ImageDataModule
from imago.distributed import all_gather_objects
from imago.errors import UserError
from imago.lightning_internals import callbacks_of, data_of, restart_averages, train_no_epoch, validate_now
from imago.model.linear_head import LinearHead, fit_linear_head
from imago.model.module import DictModule
from imago.model.surgery import head_layer
from imago.report.label_errors import write_held_out
from imago.report.page import refresh_report
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

HEAD, FINETUNED = "head.ckpt", "finetuned.ckpt"
PAIRED = {"val/acc": 1, "val/loss": -1}
"""Monitors that are means over images, for which the noise of a difference is known -> sign of an improvement."""


@dataclass(frozen=True)
class HeadPlan:
    """How the head of a new run is fitted.

    Args:
        names: Names of the tensors of the head.
        cache: Place of the features on the disk; None keeps them in memory only.
        is_required: Whether a head that cannot be fitted is an error.
    """

    names: Collection[str]
    cache: FeatureCache | None
    is_required: bool


class HeadFirst(Callback):
    """Before the first epoch, replace the head by the exact one (`fit_linear_head`), validate it as epoch 0, and let it
    compete for best.ckpt. At the end, best.ckpt is the head alone unless training gained more than the noise of val.

    Args:
        run: The run folder.
        epochs: Its history.
        plan: What to fit; None for a run that is resumed, which has the head in its checkpoint if it came first.
        only: Train nothing else.
    """

    def __init__(self, run: RunFolder, epochs: EpochLog, plan: HeadPlan | None, only: bool) -> None:
        self.run = run
        self.epochs = epochs
        self.plan = plan
        self.only = only
        self.facts: dict[str, Any] = {}
        """What is known of the head, for `status.json`, summary and report; empty without one."""
        self._head: Tensor | None = None
        self._tuned: Tensor | None = None
        self._tuned_best: float | None = None
        self._batches: list[tuple[list[int], list[float]]] = []
        self.is_within_noise = False
        """Whether fine-tuning gained something that may be chance."""
        self._is_alone = False  # the head is being validated

    def disk_needed(self, model: DictModule, images: int, folder: Path) -> tuple[int, int]:
        """Number of checkpoints that stay beside those of every run, and bytes of features on the disk of `folder`."""
        cache, layer = (None, None) if self.plan is None else (self.plan.cache, head_layer(model.net, self.plan.names))
        features = (
            cache.bytes_beside(folder, images, layer.in_features) if cache is not None and layer is not None else 0
        )
        return 0 if self.only else 1, features  # of best.ckpt, head.ckpt and finetuned.ckpt, two have one content

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.facts:
            self._take_up(trainer)
        elif self.plan is not None:
            try:
                self._begin(trainer, pl_module, self.plan)
            except NoFeaturesError as error:
                if self.plan.is_required:
                    raise UserError(f"model.probe: {error}. Type model.probe=false") from error
                log.info("No head first: %s", error)
        if self.only:
            train_no_epoch(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._batches = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._compares(trainer) or not len(outputs["label"]):
            return
        if self.epochs.monitor == "val/acc":
            values = (outputs["prediction"] == outputs["label"]).float()
        else:
            values = pl_module.criterions.per_image(outputs)["total"].float()
        self._batches.append((outputs["index"].tolist(), values.tolist()))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not self._compares(trainer):
            return
        pairs = [pair for process in all_gather_objects(self._batches) for pair in process]
        rows = sorted((i, value) for index, values in pairs for i, value in zip(index, values, strict=True))
        values, monitored = (
            torch.tensor([value for _, value in rows]),
            trainer.callback_metrics.get(self.epochs.monitor),
        )
        if self._is_alone:
            self._head = values
        elif monitored is not None and self._is_better(float(monitored)):
            self._tuned, self._tuned_best = values, float(monitored)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not self.facts or self._head is None or self._tuned is None:
            return
        kept = self.run.path / "checkpoints" / HEAD
        best = next((each.best_file for each in callbacks_of(trainer, RunCheckpoint)), None)
        if best is None or len(self._head) != len(self._tuned) or not all_gather_objects(kept.is_file())[0]:
            return
        gain, noise = paired_gain(self._head, self._tuned, PAIRED[self.epochs.monitor])
        if gain <= noise:
            self.is_within_noise = gain > 0
            if gain > 0 and trainer.is_global_zero:
                alias(best, best.with_name(FINETUNED))
                alias(kept, best)
            self.epochs.best, self.epochs.best_epoch = self.facts["value"], 0
            self.run.update(best_epoch=0)
        kept_epoch = "" if gain > noise else f" (epoch 0, {self.epochs.monitor} {self.facts['value']:.4f})"
        self.facts["fine-tuning"] = describe_gain(gain, noise, self.epochs.monitor) + kept_epoch
        if trainer.is_global_zero:
            log.info("%s", self.facts["fine-tuning"])
        self._publish(trainer)

    def state_dict(self) -> dict[str, Any]:
        if not self.facts:
            return {}
        kept = {"head": self._head, "tuned": self._tuned, "tuned_best": self._tuned_best}
        return {"facts": dict(self.facts), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.facts = dict(state_dict["facts"])
        self._head, self._tuned = state_dict["head"], state_dict["tuned"]
        self._tuned_best = state_dict["tuned_best"]

    def _begin(self, trainer: Trainer, model: DictModule, plan: HeadPlan) -> None:
        """Fit the head, validate it, and save it as the first candidate for best.ckpt, and to resume from."""
        began = time.monotonic()
        data = cast(ImageDataModule, data_of(trainer))
        layer = head_layer(model.net, plan.names)
        if layer is None:
            raise NoFeaturesError("the head is not one Linear layer")
        features = features_of(model, plan.names, layer, data, trainer, plan.cache)
        head = self._fitted(trainer, model, data, features)
        with torch.no_grad():
            layer.weight.copy_(head.weight)
            layer.bias.copy_(head.bias)
        restart_averages(trainer, model)
        self._is_alone = True
        validate_now(trainer)
        self._is_alone = False
        model.validated_epoch = None  # the validation was not that of the first epoch
        values = {n: float(value) for n, value in trainer.callback_metrics.items() if n.startswith("val/")}
        self.facts = {**self._facts(data, values), "C": head.inverse_penalty, "folds": head.folds}
        self._log(trainer, head, data, time.monotonic() - began)
        self.epochs.add_head(trainer, values, time.monotonic() - began, is_shown=not self.only)
        self._save(trainer, model)
        self._publish(trainer)

    def _fitted(self, trainer: Trainer, model: DictModule, data: ImageDataModule, features: Tensor) -> LinearHead:
        """The head, fitted by the first process."""
        head = None
        if trainer.is_global_zero:
            labels = torch.tensor(list(data.split("train").labels))
            weights = model.criterions.class_weights
            head = fit_linear_head(
                features.double(), labels, len(model.class_names), weights.cpu() if weights is not None else None
            )
            write_held_out(self.run.path, head.held_out.numpy(), labels.numpy())
        return cast(LinearHead, all_gather_objects(head)[0])

    def _facts(self, data: ImageDataModule, values: dict[str, float]) -> dict[str, Any]:
        """Value of the monitored metric, and the accuracy beside the majority-class baseline."""
        labels = torch.tensor(list(data.split("val").labels))
        baseline = max(float((labels == label).double().mean()) for label in data.majority)
        return {
            "monitor": self.epochs.monitor,
            "value": values.get(self.epochs.monitor),
            "acc": values.get("val/acc"),
            "baseline_acc": baseline,
            "images": len(labels),
        }

    def _log(self, trainer: Trainer, head: LinearHead, data: ImageDataModule, seconds: float) -> None:
        if not trainer.is_global_zero:
            return
        acc, monitor = self.facts["acc"], self.epochs.monitor
        shown = f"accuracy {acc:.4f} on val" if acc is not None else f"{monitor} {self.facts['value']}"
        log.info(
            "Head alone: %s (majority-class baseline %.4f), fitted to features of %d images in %.1f s, C=%.3g by %s",
            shown,
            self.facts["baseline_acc"],
            len(data.split("train")),
            seconds,
            head.inverse_penalty,
            _describe_folds(head.folds, data),
        )

    def _save(self, trainer: Trainer, model: DictModule) -> None:
        for checkpoint in callbacks_of(trainer, RunCheckpoint):
            if not checkpoint.save_candidate(trainer):
                log.info("The head alone is no candidate for best.ckpt: it has no %s", checkpoint.monitor)
            elif trainer.is_global_zero and checkpoint.best_model_path:
                alias(Path(checkpoint.best_model_path), Path(str(checkpoint.dirpath), HEAD))
        for resume in callbacks_of(trainer, ResumeCheckpoint):
            resume.save(trainer, model)

    def _take_up(self, trainer: Trainer) -> None:
        """Continue the run of a head that was fitted before."""
        self.facts.pop("fine-tuning", None)
        checkpoints = self.run.path / "checkpoints"
        if trainer.is_global_zero:
            for best in (each.best_file for each in callbacks_of(trainer, RunCheckpoint)):
                if best is not None and (checkpoints / FINETUNED).is_file():  # the head had won when the run ended
                    alias(checkpoints / FINETUNED, best)
                    (checkpoints / FINETUNED).unlink()
        if trainer.global_step == 0:  # what was logged at this step is logged again
            row = {name: value for name, value in self.epochs.history[0].items() if name.startswith("val/")}
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **row}, step=0)
        self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        monitor = self.epochs.monitor
        shown = {monitor: self.facts["value"], "majority-class baseline": self.facts["baseline_acc"]}
        shown |= {"accuracy on val": self.facts["acc"]} if monitor != "val/acc" else {}
        shown |= {"C": self.facts["C"], "folds": self.facts["folds"], "fine-tuning": self.facts.get("fine-tuning")}
        self.run.sections["Head alone"] = shown
        self.run.update(head=dict(self.facts))
        refresh_report(self.run.path)

    def _compares(self, trainer: Trainer) -> bool:
        """Whether the values of single val images are needed."""
        is_wanted = self._is_alone or self._head is not None
        return is_wanted and not trainer.sanity_checking and self.epochs.monitor in PAIRED

    def _is_better(self, value: float) -> bool:
        return self._tuned_best is None or PAIRED[self.epochs.monitor] * (value - self._tuned_best) > 0


def paired_gain(head: Tensor, tuned: Tensor, sign: int = 1) -> tuple[float, float]:
    """Mean gain over n images, and its standard error if there were none in truth.

    With `d_i = sign (tuned_i - head_i)`, the gain is `mean(d)` and the standard error `sqrt(sum(d_i^2)) / n`. Of right
    and wrong answers (1 and 0), the latter is `sqrt(b + c) / n`, where b and c count the images that only one of the
    two has right: the denominator of McNemar's test (1947, Psychometrika 12). That the simpler one of two models within
    one standard error is kept is the rule of Breiman et al. (1984, Classification and Regression Trees, 3.4.3).

    Args:
        head: Values of the n images for the head alone, (n,).
        tuned: Values of the same images for the fine-tuned network, (n,).
        sign: -1 if smaller values are better.
    """
    gains = sign * (tuned.double() - head.double())
    return float(gains.mean()), float(gains.square().sum().sqrt()) / len(gains)


def describe_gain(gain: float, noise: float, monitor: str) -> str:
    """Sentence about what fine-tuning gained on val."""
    if monitor == "val/acc":
        moved, size = f"{100 * gain:.1f} points on val", f"{100 * noise:.1f}"
    else:
        moved, size = f"{gain:.4f} of {monitor}", f"{noise:.4f}"
    if gain > noise:
        return f"Fine-tuning gained {moved}, more than its noise of {size}"
    what = (
        f"Fine-tuning gained {moved}, within its noise of {size}" if gain > 0 else "Fine-tuning gained nothing on val"
    )
    return f"{what}: best.ckpt is the head alone"


def _describe_folds(folds: int, data: ImageDataModule) -> str:
    counts = torch.tensor(list(data.split("train").labels)).bincount()
    single = int((counts == 1).sum())
    if not folds:
        return "default, because no class has two images"
    why = f", as the rarest class has {folds} images" if folds < 5 else ""
    why += f" ({single} with one image, which is never held out)" if single else ""
    return f"{folds}-fold cross-validation{why}"

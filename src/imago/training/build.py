"""Makes the objects of a run from the composed config."""

import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from imago.callbacks.best_checkpoint import RunCheckpoint
from imago.callbacks.carried_state import CarriedState
from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.preflight import Preflight
from imago.callbacks.pruning import Pruning
from imago.callbacks.resume_state import check_epochs
from imago.callbacks.run_status import RunStatus
from imago.callbacks.timing import Timing
from imago.checkpoint.fits import NET_CODE, check_weights, code_digests
from imago.checkpoint.read import read_checkpoint
from imago.checkpoint.signing import is_signed, why_unsigned
from imago.config.allow_list import check_targets
from imago.config.carried import (
    GROUPS,
    checkpoint_config,
    leave_out_training,
    read_checkpoint_config,
    without_pretrained,
)
from imago.config.own_code import OWN_CODE
from imago.config.refused_callbacks import lightning_name, refused_callback
from imago.config.saved import as_new_run
from imago.config.setting_source import is_users_own
from imago.config.tree import nodes
from imago.data.module import ImageDataModule
from imago.data.samplers import Placement
from imago.errors import BUILDING, CREATING_DATA, UserError, message_of, noted
from imago.evaluation.bounds import MetaMemory, check_cost
from imago.evaluation.collect import Collector
from imago.evaluation.from_config import check_modules, make_model, seen_images
from imago.evaluation.loading import check_own_code
from imago.evaluation.outputs import write_facts
from imago.evaluation.rows import bytes_of_predictions
from imago.lightning_internals import drop_own_log_handlers
from imago.masking import masked_config
from imago.model.module import DictModule
from imago.model.strategy import Strategy
from imago.run.folder import RunFolder
from imago.training.batch_size import choose_batch_size
from imago.training.build_data import make_data, recorded_draws, warn_of_few_val_images, warn_of_test_on_val
from imago.training.class_frequencies import choose_by_frequency
from imago.training.head_first import head_first
from imago.training.loggers import CSVLogger, continue_records, log_settings, remember_records, tolerate_full_disks
from imago.training.origins import check_private_start, origins_of, unrecorded_by
from imago.training.own_parts import check_own_parts
from imago.training.start_weights import check_start_weights, find_initial_weights, start_weights
from imago.training.time_budget import time_budget
from imago.training.trainer import build_trainer, divide_cores, instantiate_all
from imago.training.uncovered import uncovered

log = logging.getLogger(__name__)

RESERVED = ("last", "previous", "on_exception", "head", "finetuned")  # names of checkpoints that a run writes


@noted(BUILDING)
def build(
    cfg: DictConfig, run: RunFolder, trained: Mapping[str, Any] | None = None
) -> tuple[ImageDataModule, DictModule, Trainer]:
    """Make the objects of a run from its config, in phases: seed, data, model, loggers, callbacks, trainer.

    `trained` is the entry `imago` of a checkpoint to score. In `cfg`, `latest` and `auto` become their values.
    """
    _seed(cfg)
    check_own_parts(cfg, run.invocation)
    is_training = cfg.train and trained is None
    start = _start_of(cfg, run)
    data = _build_data(cfg, run, trained)
    model = _build_model(cfg, run, data)
    strategy = instantiate(cfg.strategy)
    if is_training and strategy.shows_train_images and run.rank == 0:
        data.log_shared_images()
    data.bind(Placement(run.rank, run.processes), strategy, fixed_order=bool(cfg.trainer.get("overfit_batches")))
    divide_cores(run)
    loggers = _build_loggers(cfg, run, start)
    callbacks = instantiate_all(cfg.callbacks)
    if is_training:
        check_start_weights(cfg, run, model)
        before = run.resume_from or cfg.ckpt_path
        origins = origins_of(cfg.model) if before is None else []
        if not strategy.shows_train_images:
            with noted(CREATING_DATA):
                strategy.check_images(len(data.split("train")), data.batch_size)
                strategy.assumed = check_private_start(origins, before, data, bool(cfg.strategy.get("public_init")))
            strategy.uncovered = uncovered(cfg, run, data, model)
        check_callbacks(callbacks)
        unrecorded = unrecorded_by(origins, is_private=not strategy.shows_train_images)
        carried = {"unrecorded": unrecorded, **_carried(cfg, data, model.net)}
        callbacks = [*_preflight(cfg, run), *callbacks, *_own_callbacks(cfg, run, model, strategy, carried)]
    trainer = build_trainer(cfg, run, [*callbacks, Collector()], loggers)
    if is_training:
        choose_batch_size(cfg, run, data, model, trainer)
    _begin_records(cfg, run, trainer, start)
    if is_training:
        warn_of_test_on_val(cfg, data, trainer)
        if before is None:
            warn_of_few_val_images(cfg, data, trainer)
    _describe_data(cfg, run, data, start)
    return data, model, trainer


def _seed(cfg: DictConfig) -> None:
    drop_own_log_handlers()
    seed_everything(cfg.seed, verbose=False)
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    precision = cfg.matmul_precision if on_gpu else "highest"  # on a CPU, it could mean less than the 10 bits of TF32
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cfg.matmul_precision != "highest"  # for convolutions


def _build_data(cfg: DictConfig, run: RunFolder, trained: Mapping[str, Any] | None) -> ImageDataModule:
    recorded = recorded_draws(cfg, run) if trained is None else None  # a checkpoint that is scored was read already
    data = make_data(cfg.data, trained, run.invocation.overrides, recorded)
    draws_val = data.sets.drawn_val is not None
    if cfg.train and trained is None and not draws_val and is_users_own("data.val_ratio", run.invocation):
        raise UserError("data.val_ratio: the data have a val split, so none is drawn from train. Remove it.")
    return data


def _build_model(cfg: DictConfig, run: RunFolder, data: ImageDataModule) -> DictModule:
    if run.resume_from is not None or cfg.ckpt_path is not None:
        without_pretrained(cfg.model)  # the checkpoint's are loaded later
    find_initial_weights(cfg, run)
    choose_by_frequency(cfg, data)
    if "range" in cfg.data:
        cfg.data.range = data.range  # the value of `auto`, for later images too
    return make_model(cfg.model, data.class_names)


@dataclass(frozen=True)
class Start:
    """Start of a resumed run: its records have what came before."""

    step: int
    repeats_validation: bool = False


def _start_of(cfg: DictConfig, run: RunFolder) -> Start | None:
    """Start of a resumed run; None for a new one. Raises UserError if it has more epochs than are asked for."""
    if run.resume_from is not None:
        checkpoint = read_checkpoint(run.resume_from, mmap=True)
        check_epochs(cfg.trainer.max_epochs, checkpoint)
        return Start(int(checkpoint["global_step"]), bool(checkpoint["imago"]["progress"]["validating"]))
    return Start(0) if run.former else None  # what was logged by a process that left no checkpoint is logged again


def _build_loggers(cfg: DictConfig, run: RunFolder, start: Start | None) -> list[Logger]:
    if start is not None:
        continue_records(cfg.logger, run.former, start.step)
    loggers: list[Logger] = instantiate_all(cfg.logger)
    tolerate_full_disks(loggers)
    return loggers


def _carried(cfg: DictConfig, data: ImageDataModule, net: nn.Module) -> dict[str, Any]:
    """Description of the run in its checkpoints, in plain types."""
    own_code = OWN_CODE.loaded(node._target_ for _, node in nodes(cfg))
    code = {"own_code": own_code, NET_CODE: code_digests(net)}
    return {"config": checkpoint_config(cfg), **code, **seen_images(cfg.data, data.eval_transform)}


def _own_callbacks(
    cfg: DictConfig, run: RunFolder, model: DictModule, strategy: Strategy, carried: Mapping[str, Any]
) -> list[Callback]:
    """Callbacks of every training, besides those of its config, which come first: they log what these record."""
    epochs, timing, weights = EpochLog(run, cfg.monitor, cfg.mode), Timing(run), start_weights(cfg, run, model)
    status = RunStatus(run, epochs, timing, weights)
    # no bound method: callbacks that average weights copy the model, and would copy the run with it
    model.bind(cfg.seed, strategy, run.path, lambda: status.publish_strategy(strategy.report()))
    first = head_first(cfg, run, model, weights, epochs)
    trial = run.trial
    pruning = [Pruning(cfg.monitor, trial.report)] if trial is not None and trial.prunes else []
    budget = time_budget(cfg, run, model)
    return [CarriedState(run, epochs, carried), timing, epochs, status, *filter(None, [first, budget]), *pruning]


def _preflight(cfg: DictConfig, run: RunFolder) -> list[Callback]:
    folder, only = run.path / "checkpoints", cfg.preflight == "only"
    return [Preflight(folder, only, partial(read_back, cfg), bytes_of_predictions)] if cfg.preflight else []


def _begin_records(cfg: DictConfig, run: RunFolder, trainer: Trainer, start: Start | None) -> None:
    """Make the loggers forget what is logged again, and log the settings."""
    if run.rank != 0:
        return
    settings = masked_config(OmegaConf.to_container(cfg, resolve=True))
    for logger in trainer.loggers:
        if start is not None and isinstance(logger, CSVLogger):
            run.write_when_accepted(partial(logger.forget_from, start.step, start.repeats_validation))
        if not (isinstance(logger, MLFlowLogger) and "mlflow" in run.former.get("loggers", {})):  # it has them already
            run.write_when_accepted(partial(log_settings, logger, settings, run))
    run.write_when_accepted(partial(remember_records, trainer.loggers, run))


def _describe_data(cfg: DictConfig, run: RunFolder, data: ImageDataModule, start: Start | None) -> None:
    """Record the facts of the data for summary and report."""
    if run.rank == 0:
        invocation = as_new_run(cfg, run.invocation)
        command = invocation.command if invocation is not run.invocation else None
        run.write_when_accepted(partial(write_facts, run.path, data, start is not None, cfg.report.pictures, command))
    names = textwrap.shorten(", ".join(data.class_names), 200, placeholder=" …")
    run.sections["Data"] = {"folder": data.sets.root, "classes": f"{len(data.class_names)}: {names}", **data.sizes}
    run.sections["Data"] |= {f"note {number}": note for number, note in enumerate(data.notes, 1)}


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise UserError for callbacks that inherit from an unusable one of Lightning's, or keep unusable checkpoints."""
    for callback in callbacks:
        for parent in type(callback).__mro__:
            name = lightning_name(f"{parent.__module__}.{parent.__qualname__}")
            if name is not None and (why := refused_callback(name, parent is type(callback))) is not None:
                raise UserError(f"{type(callback).__name__} is a {name}: {why}")
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    own = [callback for callback in checkpoints if isinstance(callback, RunCheckpoint)]
    for callback in checkpoints:
        is_scored = callback in own or not own
        kind = type(callback).__name__
        if is_scored and callback.save_weights_only:
            raise UserError(
                f"{kind}: the checkpoint that is scored must be complete. Remove save_weights_only, or keep "
                "callbacks.model_checkpoint as well"
            )
        name, folder = str(callback.filename), Path(str(callback.dirpath))
        if name in RESERVED or (callback not in own and own and name == "best" and folder == Path(str(own[0].dirpath))):
            raise UserError(f"{kind}.filename={name} is reserved for the run. Type another filename or dirpath")
        if is_scored and callback.save_top_k not in (0, 1) and "{" not in name and callback not in own:
            what = f"{kind}.save_top_k={callback.save_top_k} with a fixed filename keeps the last, not the best"
            raise UserError(f"{what}. Type a filename with {{epoch}}, or keep callbacks.model_checkpoint")


def read_back(cfg: DictConfig, file: Path) -> None:
    """Read a checkpoint of this run as `ml-eval` would.

    Raises:
        UserError: It cannot be read, or makes another network.
    """
    checkpoint = read_checkpoint(file)
    own = is_signed(checkpoint)
    try:
        content = read_checkpoint_config(checkpoint["imago"]["config"], file, own)
        paths = OmegaConf.to_container(cfg.paths, resolve=True)
        carries = OmegaConf.create(content | {"paths": paths, "ckpt_path": None})
        leave_out_training(carries, [group for group in GROUPS if group in content])
        if not own:
            check_targets(carries, [*GROUPS, "params"], [])
        without_pretrained(carries.model)
        check_weights(checkpoint, _make_model_again(carries.model, checkpoint["imago"]["class_names"]), file)
    except Exception as error:  # a network may raise anything for other arguments
        unsigned = (
            "" if own else f" It is not signed, and is read like that of a stranger: {why_unsigned() or 'other types'}"
        )
        message = f"{message_of(error)}{unsigned}"
        raise UserError(f"ml-eval could not read the checkpoints of this run: {message}") from error


def _make_model_again(node: DictConfig, class_names: Sequence[str]) -> DictModule:
    """Make the model without memory, or with memory if the network reads values while it is made. What it logs was
    logged when it was made first."""
    model_log = logging.getLogger("imago.model")
    level = model_log.level
    model_log.setLevel(logging.ERROR)
    try:
        with MetaMemory(2**62):
            return make_model(node, class_names)
    except Exception:
        log.debug("The network cannot be created on the meta device", exc_info=True)
        return make_model(node, class_names)
    finally:
        model_log.setLevel(level)


def build_to_score(cfg: DictConfig, run: RunFolder) -> tuple[ImageDataModule, DictModule, Trainer]:
    """Make the objects that score the weights of `ckpt_path`; no pretrained weights are loaded before these."""
    without_pretrained(cfg.model)
    checkpoint = read_checkpoint(cfg.ckpt_path, mmap=True)
    check_modules(cfg, checkpoint["imago"], cfg.ckpt_path, check_own_code(checkpoint))
    if run.invocation.own_checkpoint != str(cfg.ckpt_path):
        check_cost(cfg, checkpoint, cfg.ckpt_path)
    return build(cfg, run, checkpoint["imago"])


def build_predictor(cfg: DictConfig, run: RunFolder) -> Trainer:
    """Make a Trainer for prediction; of the configured callbacks, it has only the progress bar."""
    _seed(cfg)
    divide_cores(run)
    bars = [callback for callback in instantiate_all(cfg.callbacks) if isinstance(callback, ProgressBar)]
    return build_trainer(cfg, run, [*bars, Collector()], instantiate_all(cfg.logger))

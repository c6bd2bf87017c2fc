"""From the composed config to the objects of a run."""

import inspect
import logging
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from imago.allow_list import check_targets
from imago.backbones import WEIGHT_FILES
from imago.bounds import MetaMemory, check_cost
from imago.callbacks.checkpoint import RunCheckpoint, WholeFileCheckpointIO
from imago.callbacks.run_record import RunRecord
from imago.carried_config import (
    GROUPS,
    carried,
    composed_as_own,
    leave_out_training,
    read_carried,
    without_pretrained,
)
from imago.checkpoints import check_draw, check_weights, find_checkpoint, read_checkpoint
from imago.classifier import built_model, check_own_code, seen_images
from imago.combinations import lightning_name, refused_callback
from imago.config import save_config, typed_overrides
from imago.data.images import class_counts, shortened
from imago.data.module import ImageDataModule
from imago.loggers import CSVLogger, continue_records, remember_records, tolerate_full_disks
from imago.masking import masked_config
from imago.messages import message_of
from imago.module import DictModule
from imago.origins import is_ones_own
from imago.own_code import OWN_CODE
from imago.preflight import Preflight
from imago.profiling import PartsProfiler
from imago.reports import bytes_of_predictions, write_facts
from imago.run_folder import RunFolder
from imago.schema import drop_inherited, nodes, problems, shipped
from imago.signatures import arguments_schema
from imago.signing import is_signed, why_unsigned

log = logging.getLogger(__name__)
logging.getLogger("lightning").handlers.clear()  # it adds one of its own when it is imported; ours say it once

PROFILERS = {"simple": PartsProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
OWN_WORDS = ("precision", "profiler", "plugins", "benchmark")  # options of the Trainer that we complete
DDP = ("ddp", "ddp_find_unused_parameters_true")
RESERVED = ("last", "previous", "on_exception")  # names of checkpoints that callbacks.resume writes
LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "datasets")


def build(
    cfg: DictConfig, run: RunFolder, trained: Mapping[str, Any] | None = None
) -> tuple[ImageDataModule, DictModule, Trainer]:
    """Seeds, then makes data, model and trainer; the class names go from the data to the model.

    `trained` is what a checkpoint that is scored says of its run (its entry `imago`).
    """
    seed_everything(cfg.seed, verbose=False)
    _choose_matmul(cfg)
    data = made_data(cfg.data, trained, typed_overrides())
    check_own_targets(cfg, typed_overrides())
    if run.goes_on_from is not None or cfg.ckpt_path is not None:
        without_pretrained(cfg.model)  # the checkpoint's follow
    if cfg.train and trained is None and data.sets.drawn_val is None and is_ones_own("data.val_ratio"):
        raise ValueError("data.val_ratio: the data have a val split, so none is drawn from train. Leave it out.")
    _find_initial_weights(cfg, run)
    _choose_class_weights(cfg, data)
    if "range" in cfg.data:
        cfg.data.range = data.range  # what `auto` has come to, for other images too
    model = built_model(cfg.model, data.class_names)
    model.seed = cfg.seed
    strategy = instantiate(cfg.strategy)
    if cfg.train and trained is None and strategy.shows_train_images and run.rank == 0:
        data.say_what_is_shared()
    data.strategy = model.strategy = strategy
    data.rank, data.processes = run.rank, run.processes
    _share_cores(run)
    step = 0 if run.former else None  # what was logged by a process that left no checkpoint is logged again
    repeats_validation = False
    if run.goes_on_from is not None:
        checkpoint = read_checkpoint(run.goes_on_from, mmap=True)
        step, repeats_validation = int(checkpoint["global_step"]), bool(checkpoint["imago"]["progress"]["validating"])
    if step is not None:
        continue_records(cfg.logger, run.former, step)
    own_code = OWN_CODE.loaded(node._target_ for _, node in nodes(cfg))
    carries = {"config": carried(cfg), "own_code": own_code, **seen_images(cfg.data, data.eval_transform)}
    record = RunRecord(run, cfg.monitor, cfg.mode, carries)
    before: list[Callback] = []
    if cfg.train and cfg.preflight:
        before = [Preflight(run.path / "checkpoints", cfg.preflight == "only", partial(read_back, cfg), bytes_of_predictions)]
    callbacks = built(cfg.callbacks)
    if cfg.train and trained is None:
        check_callbacks(callbacks)
    trainer = build_trainer(cfg, run, [*before, *callbacks, record])
    tolerate_full_disks(trainer.loggers)
    if run.rank == 0:
        for logger in trainer.loggers:
            if step is not None and isinstance(logger, CSVLogger):
                logger.forget_from(step, repeats_validation)
        remember_records(trainer.loggers, run)
    for logger in trainer.loggers:
        known = isinstance(logger, MLFlowLogger) and "mlflow" in run.former.get("loggers", {})
        if not known:  # MLflow refuses parameters that have changed
            logger.log_hyperparams(masked_config(OmegaConf.to_container(cfg, resolve=True)))
    names = textwrap.shorten(", ".join(data.class_names), 200, placeholder=" …")
    if run.rank == 0:
        write_facts(run.path, data, goes_on=step is not None, pictures=cfg.report.pictures)
    run.sections["Data"] = {"folder": data.sets.root, "classes": f"{len(data.class_names)}: {names}", **data.sizes}
    run.sections["Data"] |= {f"note {number}": note for number, note in enumerate(data.notes, 1)}
    return data, model, trainer


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises ValueError for callbacks that inherit from one of Lightning's which cannot be used."""
    for callback in callbacks:
        for parent in type(callback).__mro__:
            name = lightning_name(f"{parent.__module__}.{parent.__qualname__}")
            if name is not None and (why := refused_callback(name, parent is type(callback))) is not None:
                raise ValueError(f"{type(callback).__name__} is a {name}: {why}")
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    own = [callback for callback in checkpoints if isinstance(callback, RunCheckpoint)]
    for callback in checkpoints:
        is_scored = callback in own or not own
        kind = type(callback).__name__
        if is_scored and callback.save_weights_only:
            raise ValueError(
                f"{kind}: the checkpoint that is scored has to be a whole one. Leave save_weights_only out, or keep "
                "callbacks.model_checkpoint beside it"
            )
        name, folder = str(callback.filename), Path(str(callback.dirpath))
        if name in RESERVED or (callback not in own and own and name == "best" and folder == Path(str(own[0].dirpath))):
            raise ValueError(f"{kind}.filename={name}: that file is the run's own. Give another filename, or dirpath")
        if is_scored and callback.save_top_k not in (0, 1) and "{" not in name and callback not in own:
            what = f"{kind}.save_top_k={callback.save_top_k} with one filename keeps the last, not the best"
            raise ValueError(f"{what}. Give a filename with {{epoch}}, or keep callbacks.model_checkpoint")


def _find_initial_weights(cfg: DictConfig, run: RunFolder) -> None:
    """Writes the file that `model.init_from` stands for into the config: `latest` is another one tomorrow."""
    given = cfg.model.get("init_from")
    if given is None or Path(str(given)).suffix in WEIGHT_FILES:
        return
    cfg.model.init_from = str(find_checkpoint(str(given), Path(cfg.paths.log_dir), "model.init_from"))
    if run.rank == 0:
        log.info("model.init_from=%s: %s", given, cfg.model.init_from)
        save_config(cfg, run.path)


def _choose_class_weights(cfg: DictConfig, data: ImageDataModule) -> None:
    """Replaces `model.class_weights=auto` by numbers: inverse frequencies, 1 in the mean over the train images."""
    if cfg.model.get("class_weights") != "auto":
        return
    counts = class_counts(data.sets.splits["train"], data.class_names)
    weights = {name: round(sum(counts.values()) / (len(counts) * count), 6) for name, count in counts.items()}
    log.info("model.class_weights=auto: %s", shortened((f"{name} {weight:g}" for name, weight in weights.items()), 20))
    plain = all(re.fullmatch(r"[\w .-]+", name) and not name.startswith("_") for name in weights)
    cfg.model.class_weights = weights if plain else list(weights.values())


def made_data(node: DictConfig, trained: Mapping[str, Any] | None = None, typed: Sequence[str] = ()) -> ImageDataModule:
    """The images of a `data` node; those to score the checkpoint that says `trained` of its run, without those that it
    was trained on. Where other data are `typed`, they may be any labelled images."""
    make = instantiate(node, _partial_=True, _convert_="all")
    if trained is None:
        return make()
    is_typed = any(word.lstrip("+").startswith(("data.data_dir=", "data.dataset")) for word in typed)
    takes_it = is_typed and "trained" in inspect.signature(make.func).parameters
    data: ImageDataModule = make(trained=trained) if takes_it else make()
    check_draw(trained, data, "")
    data.leave_out_trained(trained)
    return data


def read_back(cfg: DictConfig, file: Path) -> None:
    """Reads a checkpoint of this run as `ml-eval` would.

    Raises:
        ValueError: It could not be read, or makes another network.
    """
    checkpoint = read_checkpoint(file)
    own = is_signed(checkpoint)
    try:
        content = read_carried(checkpoint["imago"]["config"], file, own)
        paths = OmegaConf.to_container(cfg.paths, resolve=True)
        carries = OmegaConf.create(content | {"paths": paths, "ckpt_path": None})
        leave_out_training(carries, [group for group in GROUPS if group in content])
        if not own:
            check_targets(carries, [*GROUPS, "params"], [])
        without_pretrained(carries.model)
        check_weights(checkpoint, _made_again(carries.model, checkpoint["imago"]["class_names"]), file)
    except Exception as error:  # whatever a network does with other arguments than it had
        unsigned = (
            "" if own else f" It is not signed, so it is read like a stranger's: {why_unsigned() or 'other types'}"
        )
        said = f"{message_of(error)}{unsigned}"
        raise ValueError(f"ml-eval could not read the checkpoints of this run: {said}") from error


def _made_again(node: DictConfig, class_names: Sequence[str]) -> DictModule:
    """The model without memory; with it, where the network looks at values while it is made."""
    try:
        with MetaMemory(2**62):
            return built_model(node, class_names)
    except Exception:
        log.debug("The network cannot be made without memory", exc_info=True)
        return built_model(node, class_names)


def build_to_score(cfg: DictConfig, run: RunFolder) -> tuple[ImageDataModule, DictModule, Trainer]:
    """Builds what scoring the weights of `ckpt_path` needs. These follow, so that no pretrained ones are loaded."""
    without_pretrained(cfg.model)
    checkpoint = read_checkpoint(cfg.ckpt_path, mmap=True)
    check_own_code(checkpoint)
    if not composed_as_own(cfg.ckpt_path):
        check_cost(cfg, checkpoint, cfg.ckpt_path)
    return build(cfg, run, checkpoint["imago"])


def build_predictor(cfg: DictConfig, run: RunFolder) -> Trainer:
    """A Trainer that predicts: of the callbacks, it has the bar."""
    seed_everything(cfg.seed, verbose=False)
    _choose_matmul(cfg)
    _share_cores(run)
    bars = [callback for callback in built(cfg.callbacks) if isinstance(callback, ProgressBar)]
    return build_trainer(cfg, run, [*bars, RunRecord(run, cfg.monitor, cfg.mode, {})])


def _choose_matmul(cfg: DictConfig) -> None:
    """On a GPU: a CPU could take even less than the 10 bits of TF32."""
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    torch.set_float32_matmul_precision(cfg.matmul_precision if on_gpu else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.matmul_precision != "highest"  # of convolutions


def _share_cores(run: RunFolder) -> None:
    """Of several processes each has a device, but the cores are shared."""
    if run.processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // run.processes))


def build_trainer(cfg: DictConfig, run: RunFolder, callbacks: Sequence[Callback]) -> Trainer:
    """The Trainer with `callbacks` and the config's loggers; Lightning adds none of its own."""
    loggers: list[Logger] = built(cfg.logger)
    own: dict[str, Any] = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "plugins": [WholeFileCheckpointIO(), *instantiate(cfg.trainer.get("plugins") or [])],
    }
    if cfg.trainer.get("precision") == "auto-mixed":
        own["precision"] = mixed_precision(cfg.trainer.accelerator)
    if cfg.trainer.get("benchmark") is None:
        own["benchmark"] = not cfg.trainer.get("deterministic")
    if cfg.trainer.get("profiler") is None:
        own["profiler"] = NoProfiler()
    elif cfg.trainer.profiler in PROFILERS:
        own["profiler"] = PROFILERS[cfg.trainer.profiler](dirpath=run.path / "profile", filename=cfg.trainer.profiler)
    missing = {option: value for option, value in own.items() if option not in cfg.trainer or option in OWN_WORDS}
    if run.processes > 1:
        missing["strategy"] = _ddp(find_unused_parameters=cfg.trainer.strategy == DDP[1])
        missing["plugins"].append(OwnProcesses(run.rank, run.processes, run.port))
    elif cfg.trainer.strategy in DDP:
        missing["strategy"] = "auto"  # of one process: nothing to exchange
    trainer = instantiate(cfg.trainer, callbacks=list(callbacks), logger=loggers or False, **missing, _convert_="all")
    # its handler of SIGTERM talks to the other processes in the middle of whatever they are exchanging
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def mixed_precision(accelerator: str) -> str:
    """bf16 where the device has it; else, on a GPU, fp16, whose loss Lightning scales, and on a CPU 32 bits."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator in ("auto", "mps", "gpu") and torch.backends.mps.is_available():
        return "bf16-mixed"
    if _cpu_has_bf16():
        return "bf16-mixed"
    log.warning(
        "trainer=amp: this CPU computes bf16 by detours, which takes longer than 32 bits: 32 bits are used. "
        "Type trainer.precision=bf16-mixed to have it all the same"
    )
    return "32-true"


def _cpu_has_bf16() -> bool:
    """By the flags of Intel and AMD (AMX, AVX512-bf16) and of ARM."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})


def _ddp(find_unused_parameters: bool) -> DDPStrategy:
    """DDP that leaves buffers alone while it runs: processes validate on different numbers of batches.

    DictModule makes them equal before each validation.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
    kwargs: Any = {option: False}
    return DDPStrategy(find_unused_parameters=find_unused_parameters, **kwargs)


class NoProfiler(PassThroughProfiler):
    """Lightning asks it some 80 times per step for a context that does nothing, and makes a new one each time."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class OwnProcesses(LightningEnvironment):
    """Tells Lightning that the other processes of the run have been started (processes.py), and where they meet."""

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    def __init__(self, rank: int, processes: int, port: int) -> None:
        super().__init__()
        self.rank = rank
        self.main_port = port
        self.set_global_rank(rank)  # before the loggers ask who writes
        self.set_world_size(processes)

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


def built(nodes: DictConfig | None) -> list[Any]:
    """Objects of a config group; a null entry switches its object off."""
    return [entry for entry in instantiate(nodes or {}, _convert_="all").values() if entry is not None]


def check_own_targets(cfg: DictConfig, typed: list[str]) -> None:
    """Keys and types of the nodes whose targets Imago does not ship, which `check` could not know.

    Raises:
        ValueError: A key is unknown, or a value of another type than the annotation of code that is not a library's:
            those of libraries are often narrower than what they take.
    """
    own = {node._target_ for _, node in nodes(cfg)} - shipped().keys()
    schemas = {target: arguments_schema(get_object(target)) for target in own}
    drop_inherited(cfg, typed, schemas)
    for problem in problems(cfg, schemas):
        target = OmegaConf.select(cfg, problem.key.rpartition(".")[0])._target_
        if not (problem.is_type and target.partition(".")[0] in LIBRARIES):
            raise ValueError(f"{problem.key}{problem.what}")

"""The Trainer of a run: devices, precision, profiler, processes."""

import inspect
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel

from imago.callbacks.profiler import PartsProfiler
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.config.launcher import Launch, processes_here
from imago.config.strategies import DDP, FSDP
from imago.distributed import divide_threads
from imago.lightning_internals import leave_signals_alone
from imago.run.folder import RunFolder
from imago.training.fsdp import FSDPStrategy

log = logging.getLogger(__name__)

PROFILERS = {"simple": PartsProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
OWN_WORDS = ("devices", "precision", "profiler", "plugins", "benchmark")
"""Options of the Trainer that are completed here."""
SHORT = {"16": "16-mixed", "16-mixed": "16-mixed", "bf16": "bf16-mixed"}
"""Precision as people type it -> as Lightning wants it, which warns otherwise."""


def build_trainer(
    cfg: DictConfig, run: RunFolder, callbacks: Sequence[Callback], loggers: Sequence[Logger] = ()
) -> Trainer:
    """Make the Trainer with these callbacks and loggers; Lightning adds none of its own."""
    own: dict[str, Any] = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "plugins": [WholeFileCheckpointIO(), *instantiate(cfg.trainer.get("plugins") or [])],
    }
    if cfg.trainer.get("precision") == "auto-mixed":
        own["precision"] = mixed_precision(cfg.trainer.accelerator)
    elif str(cfg.trainer.get("precision")) in SHORT:
        own["precision"] = full_precision(str(cfg.trainer.precision), cfg.trainer.accelerator)
    if str(cfg.trainer.get("devices")) == "-1":
        own["devices"] = "auto"  # all, too, and valid on the CPU
    if cfg.trainer.get("benchmark") is None:
        own["benchmark"] = not cfg.trainer.get("deterministic")
    if cfg.trainer.get("profiler") is None:
        own["profiler"] = NoProfiler()
    elif cfg.trainer.profiler in PROFILERS:
        own["profiler"] = PROFILERS[cfg.trainer.profiler](dirpath=run.path / "profile", filename=cfg.trainer.profiler)
    missing = {option: value for option, value in own.items() if option not in cfg.trainer or option in OWN_WORDS}
    if run.processes > 1:
        missing["strategy"] = FSDPStrategy() if cfg.trainer.strategy == FSDP else _ddp(cfg.trainer.strategy == DDP[1])
        missing["plugins"].append(OwnProcesses(run.rank, run.processes, run.port, run.launch))
        if run.launch is not None and isinstance(cfg.trainer.get("devices"), int):
            here = 1 if run.launch.has_own_device else run.launch.local_processes  # nodes may have different numbers
            missing |= {"devices": here}
    elif cfg.trainer.strategy in (*DDP, FSDP):
        missing["strategy"] = "auto"  # a single process has nothing to exchange
    parts: dict[str, Any] = {"callbacks": list(callbacks), "logger": list(loggers) or False}
    trainer = instantiate(cfg.trainer, **parts, **missing, _convert_="all")
    leave_signals_alone(trainer)
    return trainer


def full_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of a precision; bf16 in place of fp16 on a CPU, which Lightning would choose, too."""
    full = SHORT[precision]
    if full != "16-mixed" or _has_cuda(accelerator) or _has_mps(accelerator):
        return full
    slow = "" if _cpu_has_bf16() else ", which this CPU emulates: trainer.precision=32-true is faster"
    log.warning("trainer.precision=%s needs a GPU: using bf16-mixed%s", precision, slow)
    return "bf16-mixed"


def _has_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _has_mps(accelerator: str) -> bool:
    return accelerator in ("auto", "mps", "gpu") and torch.backends.mps.is_available()


def mixed_precision(accelerator: str) -> str:
    """Choose bf16 if the device has it; otherwise fp16 with loss scaling on a GPU, and 32 bits on a CPU."""
    if _has_cuda(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if _has_mps(accelerator) or _cpu_has_bf16():
        return "bf16-mixed"
    log.warning(
        "trainer=amp: this CPU has no native bf16, and emulation is slower than 32 bits: using 32 bits. "
        "To use bf16 anyway, type trainer.precision=bf16-mixed"
    )
    return "32-true"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bf16, by the flags of Intel and AMD (AMX, AVX512-bf16) and of ARM."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})


def _ddp(find_unused_parameters: bool) -> DDPStrategy:
    """DDP that does not synchronize buffers: processes validate on different numbers of batches.

    DictModule synchronizes them before each validation. Gradients are views into DDP's buckets, which saves
    their memory, and the copy back in each step.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
    kwargs: Any = {option: False, "gradient_as_bucket_view": True}
    return DDPStrategy(find_unused_parameters=find_unused_parameters, **kwargs)


def divide_cores(run: RunFolder) -> None:
    """Divide the threads among the processes of this node; OMP_NUM_THREADS is the number for each process of a launch,
    where torchrun sets it to 1 if it was not typed."""
    if run.launch is None or "OMP_NUM_THREADS" not in os.environ:
        divide_threads(processes_here(run.processes))


class NoProfiler(PassThroughProfiler):
    """Profiler with a single empty context; Lightning asks for some 80 per step, and makes a new one each time."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class OwnProcesses(LightningEnvironment):
    """Tell Lightning that the run's further processes have been started (cli/processes.py, or a launcher), and where
    they meet."""

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    def __init__(self, rank: int, processes: int, port: int, launch: Launch | None = None) -> None:
        super().__init__()
        self.rank = rank
        self.launch = launch
        self.main_port = port
        if launch is not None:
            self.main_address = launch.address
            # the process group of each run meets at a port of its own, where no agent serves a store
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        super().set_global_rank(rank)  # before the loggers ask who writes
        super().set_world_size(processes)

    def set_global_rank(self, rank: int) -> None:
        """Keep the rank: Lightning computes it as if each node had the same number of processes."""

    def set_world_size(self, size: int) -> None:
        """Keep the number of processes."""

    def teardown(self) -> None:
        """Keep what a launcher has set: Lightning would remove WORLD_SIZE."""

    def local_rank(self) -> int:
        return self.rank if self.launch is None else self.launch.device

    def node_rank(self) -> int:
        return 0 if self.launch is None else self.launch.node


def instantiate_all(nodes: DictConfig | None) -> list[Any]:
    """Instantiate the objects of a config group; a null entry switches its object off."""
    return [entry for entry in instantiate(nodes or {}, _convert_="all").values() if entry is not None]

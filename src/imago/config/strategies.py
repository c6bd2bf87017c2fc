"""The names of Lightning's strategies: those that a run takes, and what to type in place of the others."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

FSDP = "fsdp"
DDP = ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
STRATEGIES = ("auto", *DDP, FSDP)
SHARDED = (
    "its checkpoints are folders with the shards of each process, which resume= and eval.py cannot read. To divide a "
    "network among GPUs type trainer.strategy=fsdp, whose checkpoints are whole files"
)
REFUSED = (
    (r"ddp_(spawn|fork|notebook)(\w*)", r"it only starts the processes in another way. Type trainer.strategy=ddp\2"),
    (r"deepspeed\w*|DeepSpeedStrategy", SHARDED),
    (r"model_parallel|ModelParallelStrategy", SHARDED),
    (r"fsdp_cpu_offload|FSDPStrategy", "Imago has an FSDP of its own, without CPU offload. Type trainer.strategy=fsdp"),
    (r"(single_)?(xla|tpu)\w*|(Single\w*)?XLA\w*", "TPUs are not supported. Type trainer=gpu, or trainer=cpu"),
    (r"single_device|SingleDeviceStrategy", "Type trainer.devices=1 trainer.strategy=auto"),
    (r"dp", "ddp replaces it. Type trainer.strategy=ddp; for private training type strategy=dp"),
    (r"DDPStrategy", "a name is enough. Type trainer.strategy=ddp"),
)
"""Name, or class, of a strategy -> why it is refused, and what to type."""


def strategy_problems(cfg: DictConfig) -> Iterator[str]:
    """The reason why `trainer.strategy` is refused, if it is."""
    strategy: Any = cfg.trainer.get("strategy", "auto")
    if strategy in STRATEGIES:
        return
    name = str(strategy.get("_target_")) if isinstance(strategy, DictConfig) else str(strategy)
    for pattern, why in REFUSED:
        if (match := re.fullmatch(pattern, name.rpartition(".")[2])) is not None:
            yield f"trainer.strategy={name}: {match.expand(why)}."
            return
    yield f"trainer.strategy must be {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}, got {name}."

"""Profile of the training time: its parts, with plain names."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.profilers import SimpleProfiler

PARTS = {
    "train_dataloader_next": "waiting for images",
    "batch_to_device": "to the device",
    "on_after_batch_transfer": "flip, normalise",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "optimizer_zero_grad": "optimizer",
    "configure_gradient_clipping": "optimizer",
    "lr_scheduler_step": "optimizer",
    "save_checkpoint": "checkpoints",
}
"""Last part of a Lightning action's name -> part of the profile; other actions count for the enclosing one."""
CALLBACKS, LOOP, VALIDATION = "metrics and callbacks", "logging and the loop itself", "validation"
NOT_STEPS = (VALIDATION, "checkpoints")


class PartsProfiler(SimpleProfiler):
    """`trainer.profiler=simple`: Lightning's table of actions as a file, and the fractions of a few parts.

    The time between two actions belongs to the current one, so that the parts add up. The GPU is synchronized before
    each action: a step takes longer than without a profiler, but what it waits for is known.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.spent: dict[str, float] = {}
        self._under_way: list[str] = []
        self._validates = False
        self._since = 0.0

    def start(self, action_name: str) -> None:
        self._turn()
        if action_name.endswith(".on_validation_start"):
            self._validates = True
        self._under_way.append(self._part(action_name))
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        super().stop(action_name)
        self._turn()
        if self._under_way:
            self._under_way.pop()
        if action_name.endswith("Module.on_validation_end") or action_name.endswith("Strategy.on_validation_end"):
            self._validates = False

    def _part(self, action_name: str) -> str:
        last = action_name.rpartition(".")[2]
        if action_name == "run_training_epoch":
            return LOOP
        if last in PARTS and self._under_way:
            return PARTS[last]
        if action_name.startswith("[Callback]") and self._under_way:
            return CALLBACKS
        return self._under_way[-1] if self._under_way else ""

    def _turn(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._under_way and self._under_way[-1]:  # otherwise before or after training
            part = VALIDATION if self._validates and self._under_way[-1] != "checkpoints" else self._under_way[-1]
            self.spent[part] = self.spent.get(part, 0.0) + now - self._since
        self._since = now


def format_profile(spent: Mapping[str, float], images: int) -> dict[str, str]:
    """Part -> fraction and seconds, largest first; then images per second, with and without waiting for images."""
    total = sum(spent.values())
    lines = {
        part: f"{seconds / total:6.1%}  {seconds:.2f} s"
        for part, seconds in sorted(spent.items(), key=lambda item: -item[1])
    }
    steps = sum(seconds for part, seconds in spent.items() if part not in NOT_STEPS)
    waiting = spent.get(PARTS["train_dataloader_next"], 0.0)
    if images and steps > waiting:
        lines["images per second while training"] = f"{images / steps:.0f}"
        lines["images per second, free loader"] = f"{images / (steps - waiting):.0f}"
    return lines

"""Learning-rate schedules that torch does not have in one piece."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, floor: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine to `floor`; stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peaks.
        total_steps: Optimizer steps of the whole run.
        warmup: Share of them spent on the warm-up.
        floor: Share of the peak that is left at the end.
    """
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - rising))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)

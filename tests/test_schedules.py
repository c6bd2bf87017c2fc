"""Schedules, and settings of optimizers and schedules that are typed anew while they last."""

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from imago.model.optimizers import apply_new_settings, optimizer_settings, warmup_cosine


def half(steps: int) -> float:
    return 0.5**steps


def sequence(optimizer, gamma=0.9):
    first = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.ExponentialLR(optimizer, gamma)], [3])


def made(scheduler, lr: float):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=lr)
    return optimizer, scheduler(optimizer)


def rates(optimizer, scheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


WARMUP = partial(warmup_cosine, total_steps=50)
LAMBDA = partial(lr_scheduler.LambdaLR, lr_lambda=half)
COSINE, STEP = lr_scheduler.CosineAnnealingLR, lr_scheduler.StepLR
ONE_CYCLE = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=50)
LINEAR = partial(lr_scheduler.LinearLR, total_iters=30)
CHANGES = {  # scheduler and learning rate, before and after
    "learning rate of a warm-up": (WARMUP, 0.1, WARMUP, 0.3),
    "more steps": (WARMUP, 0.1, partial(warmup_cosine, total_steps=90), 0.1),
    "warm-up": (partial(WARMUP, warmup=0.5), 0.1, partial(WARMUP, warmup=0.02), 0.1),
    "lambda": (LAMBDA, 0.1, LAMBDA, 0.4),
    "step": (partial(STEP, step_size=4), 0.1, partial(STEP, step_size=30), 0.1),
    "cosine": (partial(COSINE, T_max=20), 0.1, partial(COSINE, T_max=60), 0.1),
    "one cycle": (ONE_CYCLE, 0.1, partial(ONE_CYCLE, max_lr=0.3, total_steps=80), 0.1),
    "linear": (partial(LINEAR, start_factor=0.1), 0.1, partial(LINEAR, start_factor=0.5), 0.1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:To get the last learning rate")
def test_what_is_typed_anew_holds_as_if_it_had_been_typed_at_first(change):
    before, lr_before, after, lr_after = CHANGES[change]
    old, new, whole = made(before, lr_before), made(after, lr_after), made(after, lr_after)
    then, now = optimizer_settings(*old), optimizer_settings(*new)
    rates(*old, 20)
    new[0].load_state_dict(old[0].state_dict())
    new[1].load_state_dict(old[1].state_dict())
    apply_new_settings(*new, then, now)
    expected = rates(*whole, 30)[19:]
    rate = new[0].param_groups[0]["lr"]  # of the next step, which a longer schedule has not brought to its end
    assert [rate, *rates(*new, 10)] == pytest.approx(expected, rel=1e-6)


def test_a_sequence_of_schedules_takes_a_new_learning_rate():
    old, new = made(sequence, 0.1), made(sequence, 0.4)
    then, now = optimizer_settings(*old), optimizer_settings(*new)
    rates(*old, 5)
    new[0].load_state_dict(old[0].state_dict())
    new[1].load_state_dict(old[1].state_dict())
    apply_new_settings(*new, then, now)
    assert rates(*new, 3) == pytest.approx([4 * rate for rate in rates(*old, 3)])


def test_nothing_changes_where_nothing_was_typed_or_a_checkpoint_does_not_know():
    optimizer, scheduler = made(partial(warmup_cosine, total_steps=50), 0.1)
    now = optimizer_settings(optimizer, scheduler)
    rates(optimizer, scheduler, 7)
    before = repr(optimizer.state_dict()), repr(scheduler.state_dict())
    apply_new_settings(optimizer, scheduler, now, now)
    apply_new_settings(optimizer, scheduler, {}, now)
    assert (repr(optimizer.state_dict()), repr(scheduler.state_dict())) == before

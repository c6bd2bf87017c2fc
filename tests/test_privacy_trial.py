"""strategy=dp refuses networks in which an image may change the gradient of another, whatever does it."""

import collections
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imago.dp.terms import UnknownGradientError
from imago.dp.trial import try_network
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.model.networks import SimpleCNN, SimpleDenseNet, TinyNet
from imago.model.torchvision import torchvision_net

REMEMBERED: list[Tensor] = []


class Data:
    """As much of a data module as the trial asks for."""

    def some_images(self, split: str, count: int, device: torch.device) -> dict[str, Any]:
        del split
        image = torch.randn(count, 3, 32, 32, device=device)
        return {"image": image, "label": torch.zeros(count).long(), "index": torch.arange(count), "epoch": 0}


class Bank:
    """Remembers features, as contrastive losses do."""

    held: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        self.features = torch.zeros(0, 8)

    def add(self, features: Tensor) -> None:
        self.features = torch.cat([self.features, features.detach()])[-256:]


class HardExamples(nn.CrossEntropyLoss):
    """Only the eight hardest images of a batch count."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(input, target, reduction="none")
        if len(losses) > 8:
            losses = losses * (losses >= losses.detach().topk(8).values[-1])
        return losses if self.reduction == "none" else losses.mean()


class ByLabel(nn.CrossEntropyLoss):
    """Images of the first class are left alone, the others are divided by the hardest of them."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(input, target, reduction="none")
        if bool((target > 0).any()):
            losses = torch.where(target > 0, losses / losses[target > 0].detach().max(), losses)
        return losses if self.reduction == "none" else losses.mean()


class Backward(torch.autograd.Function):
    """Passes values on as they are, and gradients divided by the greatest of the batch."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / gradient.abs().max()


class Features(nn.Module):
    """Features of each image, whose treatment is the test's."""

    def __init__(self, treat: Any, num_classes: int) -> None:
        super().__init__()
        self.treat = treat
        self.convolution = nn.Conv2d(3, 8, 3, stride=4)
        self.head = nn.Linear(8, num_classes)
        self.weight = nn.Parameter(torch.zeros(1, 8))
        self.seen: Any = torch.zeros(8)
        self.queue: collections.deque[Tensor] = collections.deque(maxlen=4)
        if treat is numpy_stateful:
            self.generator = np.random.default_rng(0)
        self.bank = Bank()
        self.frozen = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.calls = 0
        self.register_buffer("buffer", torch.zeros(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.treat(self, x)

    def features(self, x: Tensor) -> Tensor:
        return self.convolution(x).relu().mean((2, 3))


def own(treat: Any) -> Any:
    return partial(Features, treat)


def tried(make: Any, at_once: int | None = None, zero_head: bool = False, loss: Any = nn.CrossEntropyLoss) -> None:
    """Raises what the trial raises; the model is as before afterwards."""
    optimizer = partial(torch.optim.SGD, lr=0.1)
    criterions = CriterionsComposition({"ce": loss()})
    model = DictModule(["a", "b", "c"], make, criterions, optimizer, norm="group").train()
    if zero_head:
        nn.init.zeros_(model.net.head.weight)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    data: Any = Data()
    try:
        try_network(model, data, "auto", at_once)
    finally:
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def ranked(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    order = z.sum(1).argsort()
    return net.head(z[order])[order.argsort()]


def permuted(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    order = torch.randperm(len(z))
    return net.head(z[order])[order.argsort()]


def by_hand(net: Features, x: Tensor) -> Tensor:
    z = net.convolution(x).relu()
    z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.std((0, 2, 3), keepdim=True) + 1e-5)
    return net.head(z.mean((2, 3)))


def remembering(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    net.seen = 0.99 * net.seen + 0.01 * z.detach().mean(0)
    return net.head(z - net.seen)


def queueing(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    net.queue.append(z.detach().mean(0))  # looked at some day
    return net.head(z)


def buffering(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    net.buffer.mul_(0.9).add_(z.detach().mean(0))
    return net.head(z)


def outside(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    REMEMBERED.append(z.detach().mean(0))
    return net.head(z - 0.01 * REMEMBERED[max(0, len(REMEMBERED) - 2)])


def fixed(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    return net.head(z * torch.rand(z.shape, generator=torch.Generator().manual_seed(0)))


def numpy_fixed(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    return net.head(F.dropout(z, 0.2) * torch.from_numpy(np.random.default_rng(0).random(z.shape)).float())


def numpy_stateful(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    return net.head(z * torch.from_numpy(net.generator.random(z.shape)).float())


def attending(net: Features, x: Tensor) -> Tensor:
    """Batch attention behind a gate that begins at zero."""
    z = net.features(x)
    return net.head(z + net.weight * ((z @ z.T).softmax(1) @ z))


def hooked(net: Features, x: Tensor) -> Tensor:
    logits = net.head(net.features(x))
    if logits.requires_grad:
        logits.register_hook(lambda gradient: 3 * gradient / gradient.norm())
    return logits


def above_five(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    return net.head(z - z.mean(0) if len(z) > 5 else z)


def scaled_backwards(net: Features, x: Tensor) -> Tensor:
    """The value is as it is, its gradient is divided by the size of the batch."""
    logits = net.head(net.features(x))
    return logits.detach() + (logits - logits.detach()) * 100 / len(x)


def banked(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    net.bank.add(z)
    return net.head(z)


def banked_in_a_class(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    Bank.held.append(z.detach().mean(0))
    return net.head(z)


def kept_in_a_parameter(net: Features, x: Tensor) -> Tensor:
    z = net.features(x)
    net.frozen.data.mul_(0.9).add_(0.1 * z.detach().mean(0))
    return net.head(z)


MIXING = {
    "a hook on gradients": hooked,
    "a backward pass of its own": lambda net, x: net.head(Backward.apply(net.features(x))),
    "only in larger batches": above_five,
    "gradients by the number of images": scaled_backwards,
    "a memory bank": banked,
    "a memory bank of a class": banked_in_a_class,
    "kept in a frozen parameter": kept_in_a_parameter,
    "rrelu and the number of images": lambda net, x: net.head(F.rrelu(net.features(x), training=True)) * 8 / len(x),
    "divided by the greatest value": lambda net, x: net.head(net.features(x / x.abs().max())),
    "scaled by its extremes": lambda net, x: net.head(net.features((x - x.min()) / (x.max() - x.min()))),
    "gate that begins at zero": lambda net, x: net.head((z := net.features(x)) + net.weight * z.mean(0)),
    "batch attention": attending,
    "divided by the number of images": lambda net, x: net.head(net.features(x)) * 8 / len(x),
    "the same with dropout": lambda net, x: net.head(F.dropout(net.features(x), 0.5)) * 8 / len(x),
    "sorted": ranked,
    "permuted": permuted,
    "mixed": lambda net, x: net.head((z := net.features(x)) + 0.1 * z[torch.randperm(len(z))]),
    "rolled, a little": lambda net, x: net.head((z := net.features(x)) + 1e-2 * z.roll(1, 0)),
    "summed up": lambda net, x: net.head(net.features(x).cumsum(0)),
    "softmax over the batch": lambda net, x: net.head((z := net.features(x)) * z.softmax(0)),
    "clipped to the norm of the batch": lambda net, x: net.head((z := net.features(x)) / z.norm().clamp_min(1)),
    "another way where one is odd": lambda net, x: net.head(net.features(x) * (1 if bool((x.abs() > 8).any()) else 2)),
    "by place": lambda net, x: net.head(F.dropout(net.features(x), 0.2) * (1 + torch.arange(len(x))[:, None])),
    "a generator of its own": fixed,
    "one of NumPy, new each time": numpy_fixed,
    "one of NumPy that goes on": numpy_stateful,
    "remembered in an attribute": remembering,
    "kept in a queue": queueing,
    "kept in a buffer that is not saved": buffering,
    "remembered outside": outside,
}


@pytest.mark.parametrize("treat", MIXING.values(), ids=MIXING.keys())
def test_what_mixes_draws_or_remembers_is_refused(treat):
    REMEMBERED[:] = [torch.zeros(8)]
    with pytest.raises((ValueError, UnknownGradientError)):
        tried(own(treat))


@pytest.mark.parametrize("loss", [HardExamples, ByLabel])
def test_losses_that_look_at_the_others_are_refused(loss):
    with pytest.raises(ValueError, match="the loss of an image depends on"):
        tried(TinyNet, loss=loss)


def test_a_head_that_begins_at_zero_hides_nothing():
    with pytest.raises(ValueError, match=r"physical_batch_size=1 gives the network one image at a time"):
        tried(own(by_hand), zero_head=True)


def counting(net: Features, x: Tensor) -> Tensor:
    net.calls += 1
    return net.head(net.features(x))


HARMLESS = {
    "dropout of several kinds": lambda net, x: net.head(F.dropout(F.dropout2d(net.convolution(x), 0.3).mean((2, 3)))),
    "noise": lambda net, x: net.head((z := net.features(x)) + torch.randn_like(z)),
    "a counter": counting,
}


@pytest.mark.parametrize(
    "make",
    [
        *(own(treat) for treat in HARMLESS.values()),
        *(SimpleCNN, TinyNet, partial(SimpleDenseNet, in_features=3 * 32 * 32, hidden=[8])),
        partial(torchvision_net, name="mobilenet_v3_small", weights=None),
        partial(torchvision_net, name="convnext_tiny", weights=None),  # stochastic depth
    ],
    ids=[*HARMLESS, "SimpleCNN", "TinyNet", "SimpleDenseNet", "mobilenet_v3_small", "convnext_tiny"],
)
def test_what_keeps_images_apart_is_accepted(make):
    tried(make)


USES = {
    "a sum by keywords": lambda net, x: net.head(torch.add(input=net.features(x), other=net.weight)),
}
REFUSED_USES = {
    "images one by one": lambda net, x: net.head(torch.stack([net.convolution(image) for image in x]).mean((2, 3))),
    "rows one by one": lambda net, x: torch.stack([net.head(row) for row in net.features(x)]),
    "experts for some images": lambda net, x: net.head((z := net.features(x))[z.sum(1) > -9e9][: len(x) // 2 + 1]),
}


@pytest.mark.parametrize("treat", USES.values(), ids=USES.keys())
def test_uses_of_parameters_that_are_followed(treat):
    tried(own(treat))


@pytest.mark.parametrize("treat", REFUSED_USES.values(), ids=REFUSED_USES.keys())
def test_uses_that_are_not_followed_are_refused_with_a_reason(treat):
    with pytest.raises(UnknownGradientError, match="its gradient for a single image is unknown"):
        tried(own(treat))


def test_a_network_that_is_given_one_image_at_a_time_cannot_mix():
    tried(own(MIXING["divided by the greatest value"]), at_once=1)
    with pytest.raises(ValueError, match="changes with the images"):
        tried(own(remembering), at_once=1)

"""Trial whether the images of a batch are kept apart, and whether the draws for one depend on the others.

The accountant assumes gradients that belong to one image each. A trial finds what it looks for and is no proof;
`strategy.physical_batch_size=1`, which gives the network one image at a time, rules out mixing within a batch.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from imago.data.module import ImageDataModule
from imago.dp.constant_draws import ConstantDraws
from imago.dp.keeping import GENERATOR, kept_by, leaves, same
from imago.dp.tape import Tape
from imago.dp.terms import UnknownGradientError
from imago.errors import UserError
from imago.model.module import DictModule
from imago.randomness import seeded_scope

log = logging.getLogger(__name__)

SEEDS = 5
FEW_SEEDS = 2
"""Number of seeds for larger batches, and for other places."""
RELATIVE, ABSOLUTE, OF_GRADIENTS = 1e-4, 1e-5, 1e-2
"""Tolerances of losses, and of gradients as a fraction of their norm."""
PLACES = ((0,), (1, 0, 2), (3, 0), (4, 2, 0, 1, 3), (5, 6, 1, 2, 3, 4, 0, 8, 7))
"""Batches of several sizes; 0 is the watched image."""
SIZES, MANY, MOST_AGAIN = (3, 9), 33, 3
LONE = "strategy.physical_batch_size=1 gives the network one image at a time, so that nothing can mix within a batch"
MIXED = (
    "strategy=dp: in a trial on random images, the loss of an image depends on the others of its batch, or the network "
    "changes their order, so that gradients cannot be separated by image. Does it normalise over the batch? "
    f"model.norm=group replaces BatchNorm. {LONE}"
)
PLACED = (
    "strategy=dp: in a trial on random images, the loss of an image depends on its position in the batch, or on the "
    "batch size, apart from the draws of torch's global generator. Do not divide by the size of the batch, and "
    f"draw with torch, without a generator of your own. {LONE}"
)
OWN_GENERATOR = (
    "strategy=dp: {what} draws from a generator of its own, so that one more image may change the draws of the others, "
    "or the draws are known in advance. Draw without generator="
)
Gradients = dict[str, Tensor]


def try_network(
    model: DictModule, data: ImageDataModule, mode: str, at_once: int | None, again: int | None = None
) -> None:
    """Try the network as in training; its state is restored afterwards.

    `at_once` is the number of images that it gets at a time (`strategy.physical_batch_size`). It is tried with its
    weights as they are, and perturbed. `again` is the number of an epoch at whose start the trial is repeated with
    other images, small batches, the weights as they are, and losses alone.

    Raises:
        ValueError: The gradient of an image is not known, or depends on other images, or on its place; or what the
            network sees is kept in a buffer or an attribute.
    """
    seeds = range(SEEDS) if again is None else [SEEDS * again]
    trial = _Trial(model, data, mode, math.inf if at_once is None else at_once)
    if again is not None:
        trial.at_once = min(trial.at_once, MOST_AGAIN)
        trial.has_gradients = False  # rounding may change them where a unit is about to be switched off
    try:
        if (name := trial.own_generator()) is not None:
            raise UserError(OWN_GENERATOR.format(what=name))
        for seed in seeds:
            with _perturbed(model, seed) if seed % SEEDS else nullcontext():
                trial.note()
                trial.beside_others(seed)
                if seed % SEEDS < FEW_SEEDS:
                    trial.at_other_places(seed)
                    trial.in_larger_batches(seed)
                    trial.after_others(seed)
    finally:
        trial.put_back()


class _Trial:
    def __init__(self, model: DictModule, data: ImageDataModule, mode: str, at_once: float) -> None:
        model.zero_grad(set_to_none=True)  # gradients of the step before
        self.model = model
        self.mode = mode
        self.at_once = at_once
        self.has_gradients = True
        like = data.some_images("train", 1, model.device)
        self.like = like
        self.shape = like["image"].shape[1:]
        self.dtype = like["image"].dtype if like["image"].is_floating_point() else torch.float32
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.state = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
        self.attributes = [(module, dict(vars(module))) for module in _modules(model)]
        self.kept: dict[int, dict[str, Any]] = {}
        self.note()

    def note(self) -> None:
        """Record the current values of what is not trained and must not change."""
        self.untrained = {
            name: tensor.detach().clone() for name, tensor in _tensors(self.model) if name not in self.parameters
        }
        self.kept = {}

    def own_generator(self) -> str | None:
        """Return the name of an attribute that is a generator, if there is one."""
        return next((name for name, value in kept_by(self._parts()).items() if GENERATOR in leaves(value)), None)

    def beside_others(self, seed: int) -> None:
        """Try an image in the first place, beside others of several kinds and labels, in batches of several sizes: its
        loss and its gradient must stay the same."""
        first = self._pictures(seed)[seed % 4]
        various = [picture for number in range(7) for picture in self._pictures(100 * number + seed + 100)]
        wide = [self._pictures(100 * number + seed + 150)[-1] for number in range(MANY)]
        turns = ((MANY * [first], 0), (wide, 1), (various, 2))  # itself, hard ones, and various kinds
        sizes = [*SIZES, MANY] if seed % SEEDS == 0 else SIZES[: 2 if seed % SEEDS < FEW_SEEDS else 1]
        for size in (size for size in sizes if size <= self.at_once):
            reference: tuple[float, Gradients] | None = None
            for neighbours, step in turns:
                labels = [seed, *(seed + (place + 1) * step for place in range(size - 1))]
                with torch.no_grad() if size == MANY else nullcontext():
                    images = [first, *neighbours[: size - 1]]
                    result = self._loss_and_gradient(images, labels, range(size), seed, 0)
                reference = reference or result
                self._compare(reference, result, MIXED)

    def at_other_places(self, seed: int) -> None:
        """Try an image at several places of batches of several sizes, where torch draws the same for all."""
        pictures = self._pictures(seed)
        order = [pictures[(seed + 1) % 4], *self._pictures(seed + 300), *self._pictures(seed + 310)]
        reference: tuple[float, Gradients] | None = None
        for places in (places for places in PLACES if len(places) <= self.at_once):
            labels = [seed + place for place in places]
            with ConstantDraws() as draws:
                images = [order[place] for place in places]
                result = self._loss_and_gradient(images, labels, places, seed, places.index(0))
            if draws.own_generator:
                raise UserError(OWN_GENERATOR.format(what="the network"))
            if draws.unknown:
                log.warning(
                    "strategy=dp: the network draws with %s, which cannot be tracked: the trial did not test whether "
                    "an image's position in the batch matters. %s", draws.unknown, LONE
                )  # fmt: skip
                return
            reference = reference or result
            self._compare(reference, result, PLACED)

    def in_larger_batches(self, seed: int) -> None:
        """Try many images at once, and three by three: losses must agree where torch draws the same for all."""
        count, few = int(min(MANY, self.at_once)), min(SIZES)
        if count <= few:
            return
        images = [picture for number in range(7) for picture in self._pictures(100 * number + seed + 500)][:count]
        losses: dict[int, Tensor] = {}
        with torch.no_grad(), ConstantDraws() as draws:
            for size in (few, count):
                rows = []
                for first in range(0, count, size):
                    numbers = range(first, min(first + size, count))
                    self._restore()
                    rows.append(self._losses([images[number] for number in numbers], numbers, numbers, seed)[0])
                losses[size] = torch.cat(rows)
        near = torch.allclose(losses[few], losses[count], rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
        if not draws.unknown and not near:
            raise UserError(MIXED)

    def after_others(self, seed: int) -> None:
        """Try an image by itself, before and after others: nothing may be remembered anywhere."""
        first = self._pictures(seed)[(seed + 2) % 4]
        before = self._loss_and_gradient([first], [seed], [0], seed, 0)
        for number, picture in enumerate(self._pictures(seed + 400), 1):
            self._loss_and_gradient([picture], [seed + number], [number], seed, 0)
        self._compare(
            before,
            self._loss_and_gradient([first], [seed], [0], seed, 0),
            "strategy=dp: in a trial on random images, the loss of an image depends on earlier images, or on draws of "
            "a generator of its own. Remove what stores images",
        )

    def put_back(self) -> None:
        """Restore the model."""
        self._restore()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, tensor in _tensors(self.model):
                if name in self.state:
                    tensor.copy_(self.state[name])

    def _loss_and_gradient(
        self, images: Sequence[Tensor], labels: Sequence[int], numbers: Sequence[int], seed: int, watched: int
    ) -> tuple[float, Gradients]:
        """Return loss and gradients of the image at `watched`, from the sum over the batch, as in training."""
        self._restore()
        with nullcontext() if self.has_gradients else torch.no_grad():
            losses, tape = self._losses(images, labels, numbers, seed)
        if losses.shape != (len(images),):
            raise UserError(f"strategy=dp: {len(images)} images have losses of shape {tuple(losses.shape)}.")
        gradients: Gradients = {}
        if losses.requires_grad:
            losses.sum().backward()
            rest = torch.arange(len(images), device=losses.device) != watched
            with torch.no_grad():
                only = (~rest).to(losses.dtype)
                gradients = {name: part.without(rest).weighted_sum(only) for name, part in tape.parts()}
            self._check_gradients()
        self._check_kept(len(images))
        return float(losses.detach()[watched]), gradients

    def _losses(
        self, images: Sequence[Tensor], labels: Sequence[int], numbers: Sequence[int], seed: int
    ) -> tuple[Tensor, Tape]:
        count, device = len(images), self.model.device
        classes = torch.tensor(list(labels)) % len(self.model.class_names)
        batch: dict[str, Any] = self.like | {
            "image": torch.stack(list(images)).to(device),
            "label": classes.to(device),
            "index": torch.tensor([1000 + number for number in numbers], device=device),
        }
        gpus = [device] if device.type == "cuda" else []
        with seeded_scope("trial", seed), torch.random.fork_rng(gpus), Tape(self.parameters, count, self.mode) as tape:
            if gpus:
                torch.cuda.manual_seed(seed)
            batch = self.model(batch)
            return self.model.criterions.per_image(batch)["total"], tape

    def _compare(self, reference: tuple[float, Gradients], result: tuple[float, Gradients], message: str) -> None:
        """Raise ValueError(message) if losses or gradients differ."""
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in reference[1].values()))
        apart = math.sqrt(sum(float((reference[1][name] - result[1][name]).square().sum()) for name in reference[1]))
        near = not math.isfinite(norm) or apart <= OF_GRADIENTS * norm + ABSOLUTE
        if reference[1].keys() != result[1].keys() or not near or not _is_close(reference[0], result[0]):
            raise UserError(message)

    def _check_gradients(self) -> None:
        """Raise UnknownGradientError unless all gradients are known."""
        if strange := [name for name, parameter in self.parameters.items() if parameter.grad is not None]:
            raise UnknownGradientError(
                f"strategy=dp: {strange[0]} is used in a way for which the gradient of a single image is unknown. "
                "docs/privacy.md lists the networks that can be trained"
            )

    def _check_kept(self, count: int) -> None:
        """Raise ValueError if the modules keep something else than after as many other images."""
        now = kept_by(self._parts())
        now |= {name: tensor.detach().clone() for name, tensor in _tensors(self.model) if name not in self.parameters}
        before = self.kept.setdefault(count, now)
        for name, value in now.items():
            if name in before and not same(value, before[name]):
                raise UserError(
                    f"strategy=dp: {name} changes with the images that the network sees in training. It would affect "
                    "later steps, or be saved, without noise. Remove it"
                )

    def _parts(self) -> list[Any]:
        return [*_modules(self.model), *self.model.criterions.criterions.values()]

    def _restore(self) -> None:
        for module, attributes in self.attributes:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for name, tensor in _tensors(self.model):
                if name in self.untrained:
                    tensor.copy_(self.untrained[name])

    def _pictures(self, seed: int) -> list[Tensor]:
        """Make test images as the network gets them, (channels, height, width): noise, black, bright, faint, wide."""
        with seeded_scope("trial images", seed):
            noise = torch.rand(self.shape, dtype=self.dtype)
            # with equal pixels, rounding would decide where maxima are
            grain = torch.randn(self.shape, dtype=self.dtype)
        bright = 3 * (noise > 0.1).to(self.dtype) + grain / 20
        return [noise, -2 + grain / 20, bright, 0.5 + noise / 20, 10 * grain]


@contextmanager
def _perturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Perturb all weights inside the context by half their standard deviation, or by 0.1 where that is 0: weights that
    begin at zero, such as the head of a vision transformer, would hide their inputs."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            with seeded_scope("perturbation", seed, number):
                noise = torch.randn(parameter.shape)
            scale = float(parameter.float().std()) / 2 if parameter.numel() > 1 else 0.0
            parameter.add_((noise * (scale if scale > 0 and math.isfinite(scale) else 0.1)).to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, including those that are not saved."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _modules(model: DictModule) -> list[nn.Module]:
    parts = [model.net, model.criterions, model.forward_fn]
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]


def _is_close(a: float, b: float) -> bool:
    if not math.isfinite(a) or not math.isfinite(b):
        return a == b or (a != a and b != b)
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)

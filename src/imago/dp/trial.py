"""Tries whether the images of a batch are kept apart, and whether what is drawn for one depends on the others.

The accountant counts with gradients that belong to one image each. A trial finds what it looks for and is no proof;
`strategy.physical_batch_size=1`, which gives the network one image at a time, rules out mixing within a batch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imago.data.loading import ImageDataset
from imago.data.module import ImageDataModule
from imago.dp.gradients import Tape, UnknownGradientError
from imago.module import DictModule
from imago.randomness import keyed

SEEDS = 5
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerances of losses."""
PLACES = ((0,), (1, 0, 2), (3, 0), (4, 2, 0, 1, 3))
"""Batches of several sizes: 0 is the image that is watched."""
LONE = "strategy.physical_batch_size=1 gives the network one image at a time, so that nothing can mix within a batch"
MIXED = (
    "strategy=dp: in a trial on random images, the loss of an image depends on the others of its batch, or they change "
    "places in the network, so that no gradient is that of one image. Does it normalise over the batch? "
    f"model.norm=group replaces BatchNorm. {LONE}"
)
PLACED = (
    "strategy=dp: in a trial on random images, the loss of an image depends on its place in the batch, or on how many "
    "images are in it, other than by what torch's own generator draws. Do not divide by the size of the batch, and "
    f"draw with torch, without a generator of your own. {LONE}"
)


def try_network(
    model: DictModule, data: ImageDataModule, mode: str, at_once: int | None, seeds: Iterable[int] = range(SEEDS)
) -> None:
    """Tries the network in training; all is put back afterwards.

    `at_once` is the number of images that it is given at a time (`strategy.physical_batch_size`). Every fifth seed
    takes the weights as they are, the others perturb them.

    Raises:
        ValueError: The gradient of an image is not known, or depends on other images, or on its place; or what the
            network sees is kept in a buffer or an attribute.
    """
    trial = _Trial(model, data, mode)
    try:
        for seed in seeds:
            with _perturbed(model, seed) if seed % SEEDS else nullcontext():
                if at_once != 1:
                    trial.beside_others(seed)
                if seed % SEEDS < 2:  # a third of the time
                    trial.at_other_places(seed, at_once)
                    trial.after_others(seed)
                trial.check_kept()
    finally:
        trial.put_back()


class _Trial:
    def __init__(self, model: DictModule, data: ImageDataModule, mode: str) -> None:
        model.zero_grad(set_to_none=True)  # those of the step before
        self.model = model
        self.mode = mode
        like = data.some_images("train", 1, model.device)
        self.like = like
        self.shape = like["image"].shape[1:]
        self.dtype = like["image"].dtype if like["image"].is_floating_point() else torch.float32
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.state = {name: each.detach().clone() for name, each in _tensors(model)}
        self.attributes = [(module, dict(vars(module))) for module in _modules(model)]

    def beside_others(self, seed: int) -> None:
        """The image in the first place, beside two others of several kinds: its loss has to stay the same."""
        first = self._pictures(seed)[seed % 4]
        reference: float | None = None
        kept: dict[str, Any] | None = None
        for kind, other in enumerate(self._pictures(seed + 100)):
            images = [first, other, self._pictures(seed + 200)[(kind + 1) % 5]]
            self._restore_attributes()
            losses, tape = self._losses(images, [0, kind, kind + 1], seed)
            if kind == 0:
                losses[0].backward()
                self._check_gradients(tape)
            loss = float(losses.detach()[0])
            reference = loss if reference is None else reference
            if not _is_close(loss, reference):
                raise ValueError(MIXED)
            kept = self._check_attributes(kept)

    def at_other_places(self, seed: int, at_once: int | None) -> None:
        """The image at several places of batches of several sizes, where torch draws the same for all of them."""
        pictures = self._pictures(seed)
        order = [pictures[(seed + 1) % 4], *self._pictures(seed + 300)]
        reference: float | None = None
        for places in PLACES:
            if at_once is not None and len(places) > at_once:
                continue
            self._restore_attributes()
            with ConstantDraws() as draws:
                losses, _ = self._losses([order[place] for place in places], places, seed)
            if draws.own_generator:
                raise ValueError(
                    "strategy=dp: the network draws from a generator of its own, so that an image more may change what "
                    "is drawn for the others, or is known in advance. Draw without generator="
                )
            loss = float(losses.detach()[places.index(0)])
            reference = loss if reference is None else reference
            if not draws.unknown and not _is_close(loss, reference):
                raise ValueError(PLACED)

    def after_others(self, seed: int) -> None:
        """The image by itself, before and after others: nothing may be remembered anywhere."""
        first = self._pictures(seed)[(seed + 2) % 4]
        kept: dict[str, Any] | None = None
        watched: list[float] = []
        for number, picture in enumerate([first, *self._pictures(seed + 400), first]):
            self._restore_attributes()
            losses, tape = self._losses([picture], [number % 6], seed)
            kept = self._check_attributes(kept)
            if picture is first:
                losses[0].backward()
                self._check_gradients(tape)
                watched.append(float(losses.detach()[0]))
        if not _is_close(*watched):
            raise ValueError(
                "strategy=dp: in a trial on random images, the loss of an image depends on those that the network has "
                "seen before, or on draws of a generator of its own. Take out what remembers them"
            )

    def _check_attributes(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """What the modules keep now; ValueError where that is not what they kept `before`, of other images."""
        now = _attributes(self.model)
        if before is not None and (name := next((name for name in now if not _same(now[name], before[name])), None)):
            raise ValueError(
                f"strategy=dp: {name} changes with the images that the network sees in training, and would carry them "
                "to the next ones. Take that out"
            )
        return now

    def check_kept(self) -> None:
        """Raises ValueError where a buffer has changed."""
        for name, each in self.model.named_buffers():
            if not torch.equal(each, self.state[name]):
                raise ValueError(
                    f"strategy=dp: {name} changes with the images that the network sees in training, and would be "
                    "saved without noise. Take that layer out"
                )

    def put_back(self) -> None:
        """Leaves the model as it was."""
        self._restore_attributes()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, each in _tensors(self.model):
                each.copy_(self.state[name])

    def _losses(self, images: Sequence[Tensor], labels: Sequence[int], seed: int) -> tuple[Tensor, Tape]:
        count = len(images)
        given = torch.tensor(list(labels)) % len(self.model.class_names)
        batch: dict[str, Any] = self.like | {
            "image": torch.stack(list(images)).to(self.model.device),
            "label": given.to(self.model.device),
            "index": torch.arange(count, device=self.model.device),
        }
        gpus = [self.model.device] if self.model.device.type == "cuda" else []
        with keyed("trial", seed), torch.random.fork_rng(gpus), Tape(self.parameters, count, self.mode) as tape:
            if gpus:
                torch.cuda.manual_seed(seed)
            batch = self.model(batch)
            return self.model.criterions.per_image(batch)["total"], tape

    def _check_gradients(self, tape: Tape) -> None:
        """Those of the first loss: they have to be known, and in the first row."""
        if any(bool(part.squared_norms()[1:].any()) for _, part in tape.parts()):
            raise ValueError(MIXED)
        if strange := [name for name, each in self.parameters.items() if each.grad is not None]:
            raise UnknownGradientError(
                f"strategy=dp: {strange[0]} is used in a way of which the gradient for a single image is not known. "
                "docs/privacy.md lists the networks that can be trained"
            )

    def _restore_attributes(self) -> None:
        for module, attributes in self.attributes:
            vars(module).clear()
            vars(module).update(attributes)

    def _pictures(self, seed: int) -> list[Tensor]:
        """Uniform noise, black, bright, faint and wide ones, as the network gets them."""
        with keyed("trial images", seed):
            noise = torch.rand(self.shape, dtype=self.dtype)
            wide = 10 * torch.randn(self.shape, dtype=self.dtype)
        return [noise, torch.full_like(noise, -2.0), 3 * (noise > 0.1).to(self.dtype), 0.5 + noise / 100, wide]


class ConstantDraws(TorchDispatchMode):
    """Inside, torch draws the same for all: every uniform number is 1/2, nothing is dropped, nothing is permuted.

    `own_generator` says whether something asked for another generator than torch's own; `unknown` whether an operation
    drew in a way that could not be replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own_generator = False
        self.unknown = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.own_generator |= any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values()))
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            kept = torch.ones_like(args[0], dtype=torch.bool)
            return args[0] / (1 - args[1]) if args[1] < 1 else torch.zeros_like(args[0]), kept
        result = func(*args, **kwargs)
        if name == "randperm":
            return torch.arange(len(result), dtype=result.dtype, device=result.device)
        if name in FILLS and isinstance(result, Tensor):
            return result.fill_(FILLS[name])
        self.unknown |= not (name.startswith(ATTENTION) and _drops_nothing(func, args, kwargs))
        return result


ATTENTION = ("_scaled_dot_product", "scaled_dot_product")
FILLS = {
    **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_", "randn", "randn_like", "normal", "normal_"), 0.5),
    **dict.fromkeys(("normal_functional", "exponential_", "cauchy_", "log_normal_", "geometric_"), 1.0),
    **dict.fromkeys(("bernoulli", "bernoulli_"), 1.0),
    **dict.fromkeys(("randint", "randint_like", "random", "random_", "multinomial", "poisson"), 0),
}


def _drops_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return not given.get("dropout_p", 0.0)


def try_transforms(data: ImageDataModule, device: torch.device, at_once: int | None) -> None:
    """Tries the stages of the train images: what becomes of one has to depend on it and its draws alone.

    `at_once` is the number of images that the batch stage is given at a time.

    Raises:
        ValueError: It depends on other images, or on a generator of the transform's own.
    """
    transform, images = data.train_transform, data.sets.splits["train"]
    dataset = ImageDataset(images, transform, data.image_size, data.seed)
    numbers = list(islice((index for index in range(len(images)) if images.fault(index) is None), 3))
    once = [dataset.augmented(index, 1) for index in numbers]
    again = [dataset.augmented(index, 1) for index in reversed(numbers)][::-1]
    if any(not torch.equal(*pair) for pair in zip(once, again, strict=True)):
        raise ValueError(
            "strategy=dp: data.train_transform makes another picture of an image with the same draws: its box or "
            "pixels stage draws from a generator of its own, or remembers images. Draw from those of Python, NumPy or "
            "torch"
        )
    with keyed("trial of the batch stage"):
        pixels = torch.randint(256, (5, *once[0].shape), dtype=torch.uint8)
    keys = torch.tensor([7, 11, 13, 17, 19])

    def staged(places: Sequence[int], seed: int | None = None) -> Tensor:
        batch = {"image": pixels[list(places)], "label": torch.tensor(places) % 2, "index": keys[list(places)]}
        on_device: dict[str, Any] = {key: value.to(device) for key, value in batch.items()}
        with keyed("trial of the batch stage", seed or 0), nullcontext() if seed is not None else ConstantDraws():
            return transform.batch(on_device | {"epoch": 0})["image"][list(places).index(0)].float()

    most = at_once or len(PLACES[-1])
    pairs = [(staged(places), staged((0,))) for places in PLACES if len(places) <= most]
    if most > 2:
        pairs += [(staged((0, 1, 2), seed), staged((0, 3, 4), seed)) for seed in range(SEEDS)]
    if any(not torch.allclose(*pair, rtol=RELATIVE, atol=ABSOLUTE) for pair in pairs):
        raise ValueError(
            "strategy=dp: data.train_transform.batch makes another picture of an image beside others. Leave out what "
            "mixes images, or draws by their place; `index` is a secret number here, by which a step may draw"
        )


@contextmanager
def _perturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, all weights are off by half their standard deviation, or by 0.1 where that is 0: what begins at zero,
    such as the head of a vision transformer, would hide what it is given."""
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        for number, each in enumerate(model.parameters()):
            with keyed("perturbation", seed, number):
                noise = torch.randn(each.shape)
            scale = float(each.float().std()) / 2 if each.numel() > 1 else 0.0
            each.add_((noise * (scale if scale > 0 and math.isfinite(scale) else 0.1)).to(each))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, each in model.named_parameters():
                each.copy_(before[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those too that are not saved."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _modules(model: DictModule) -> list[nn.Module]:
    parts = [model.net, model.criterions, model.forward_fn]
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]


def _attributes(model: DictModule) -> dict[str, Any]:
    """Name -> copy of what the modules keep besides parameters, buffers and sub-modules."""
    kept: dict[str, Any] = {}
    for number, module in enumerate(_modules(model)):
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                kept[f"{type(module).__name__} {number}.{name}"] = _copied(value)
    return kept


def _copied(value: Any, depth: int = 0) -> Any:
    """A copy of tensors, arrays and numbers, alone or in containers; None for the rest."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else None
    if isinstance(value, bool | int | float):
        return value
    if depth < 4 and isinstance(value, Mapping):
        return {str(key): _copied(entry, depth + 1) for key, entry in value.items()}
    if depth < 4 and hasattr(value, "__iter__") and hasattr(value, "__len__") and not isinstance(value, str | bytes):
        return [_copied(entry, depth + 1) for entry in value]
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and (one == other or one != one)


def _is_close(one: float, other: float) -> bool:
    if not math.isfinite(one) or not math.isfinite(other):
        return one == other or (one != one and other != other)
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)

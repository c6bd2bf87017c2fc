"""A trained network with everything that it needs to classify images, from its checkpoint alone."""

import logging
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from imago.checkpoint.fits import check_weights
from imago.checkpoint.read import Checkpoint
from imago.config.carried import without_pretrained
from imago.data.colour import PLAIN, Decoding
from imago.data.crops import Size, pair
from imago.data.decode import BadImageError
from imago.data.transforms import ImageTransform
from imago.errors import UserError
from imago.evaluation.bounds import check_cost
from imago.evaluation.from_config import check_modules, decoding_of, eval_transform_of, image_size_of, make_model
from imago.evaluation.pixels import DAMAGED, FileLike, ImageLike, is_several, read_pixels
from imago.evaluation.prediction import Prediction
from imago.model.module import DictModule
from imago.model.origin import name_of
from imago.randomness import derive_seed, seeded
from imago.terminal import counted, shortened

if TYPE_CHECKING:
    from imago.evaluation.calibration import Calibration

log = logging.getLogger(__name__)

OnError = Literal["raise", "return"]
ON_ERROR = ("raise", "return")
Floats = NDArray[np.float64]
_global_generators = threading.Lock()


class Classifier:
    """Classifier of images, made by `imago.load_classifier`.

    `predict` is thread-safe: calls from several threads at once return what calls one after the other return. For this,
    a network of your own must not write to itself in `forward`, and threads must not share an open file or PIL image.

    Args:
        model: The network, with its weights.
        transform: The preprocessing of an image.
        image_size: Input size of the network in pixels: the side of a square, or height and width.
        checkpoint: The entry `imago` of the checkpoint, which describes its run.
        decoding: How files are decoded.
        calibration: How probabilities are calibrated; None leaves them as the network gives them.
        file: The checkpoint, for `repr`.
    """

    def __new__(cls, *parts: Any, **named: Any) -> Self:
        if isinstance(path := next(iter(parts), named.get("model")), str | Path):
            raise UserError(f"A classifier is loaded with imago.load_classifier({str(path)!r}).")
        return super().__new__(cls)

    def __init__(
        self,
        model: DictModule,
        transform: ImageTransform,
        image_size: Size,
        checkpoint: dict[str, Any],
        decoding: Decoding = PLAIN,
        calibration: "Calibration | None" = None,
        file: str | Path | None = None,
    ) -> None:
        self.model = model.eval()
        self.transform = transform
        self.image_size = image_size
        self.checkpoint = checkpoint
        self.decoding = decoding
        self.calibration = calibration
        self.file = file

    def __repr__(self) -> str:
        size = "x".join(map(str, pair(self.image_size)))
        names = f"{counted(len(self.class_names), 'class', 'classes')} ({shortened(self.class_names)})"
        what = [name_of(self.model.net), names, f"images of {size}", str(self.model.device)]
        what += ["calibrated"] * (self.calibration is not None) + ([str(self.file)] if self.file is not None else [])
        return f"Classifier({', '.join(what)})"

    @classmethod
    def from_config(cls, cfg: DictConfig, checkpoint: Checkpoint, path: str | Path, is_own: bool) -> "Classifier":
        """Make the objects of `model`, `data.eval_transform` and `data.image_size`, and load the weights.

        Raises:
            ValueError: The weights are those of another network, or would take more memory than they may.
        """
        without_pretrained(cfg.model)
        entry = checkpoint["imago"]
        size = image_size_of(cfg.data)
        check_modules(cfg, entry, path, is_own)
        if not is_own:
            check_cost(cfg, checkpoint, path)
        model = make_model(cfg.model, entry["class_names"])
        check_weights(checkpoint, model, path)
        model.load_state_dict(checkpoint["state_dict"])
        return cls(model, eval_transform_of(cfg.data), size, entry, decoding_of(cfg.data), file=path)

    @property
    def class_names(self) -> list[str]:
        """Class names, in the order of the network's outputs."""
        return list(self.model.class_names)

    @property
    def channels(self) -> int:
        """Number of channels: 3, or 1 for a network of grey images."""
        normalise = self.transform.normalisation
        return 3 if normalise is None else len(normalise.mean)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is also an iterable of str
        self, images: FileLike, batch_size: int = ..., *, top: int = ..., on_error: OnError = ...
    ) -> Prediction: ...

    @overload  # a list for an array of four dimensions
    def predict(
        self, images: NDArray[Any] | Tensor, batch_size: int = ..., *, top: int = ..., on_error: OnError = ...
    ) -> Any: ...

    @overload
    def predict(
        self, images: Iterable[ImageLike], batch_size: int = ..., *, top: int = ..., on_error: OnError = ...
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = 32,
        *,
        top: int = 5,
        on_error: OnError = "raise",
        **unknown: Any,
    ) -> Prediction | list[Prediction]:
        """Predict the class of an image, or of each of several images.

        Args:
            images: One image, or several: a list, a tuple, a generator, an array (n, height, width, channels), … A
                generator is read one batch at a time, and only the predictions are kept. An image is
                - a path, the bytes of an image file, or an open binary file, which is read from its start;
                - a PIL image of any mode;
                - a NumPy array, uint8 (height, width), (height, width, 1), (height, width, 3) for RGB or
                  (height, width, 4) for RGBA; or uint16, which becomes 8 bits as 16-bit files do;
                - a tensor of the same types with its channels first.
            batch_size: Number of images that go through the network at a time.
            top: Number of classes in `Prediction.top`; all classes if there are fewer.
            on_error: `raise` raises the error of the first image that cannot be read. `return` makes it a prediction
                with the message in `error`, at its place in the list. What a generator raises itself is always raised.

        Returns:
            The prediction of one image; for several, a list with the prediction of each, in order.

        Raises:
            BadImageError: An image cannot be read, or is none of the above. It is a ValueError.
            UserError: Another argument cannot work. It is a ValueError.
            TypeError: There is no such argument.
        """
        for name, value in unknown.items():
            names = ("images", "batch_size", "top", "on_error")
            meant = "".join(f" Did you mean {close}={value!r}?" for close in get_close_matches(name, names, n=1))
            raise TypeError(f"predict has no argument {name}.{meant} The arguments are {', '.join(names)}.")
        for name, value in (("batch_size", batch_size), ("top", top)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise UserError(f"{name}={value!r}: must be an integer of 1 or more.")
        if on_error not in ON_ERROR:
            raise UserError(f"on_error={on_error!r}: must be {' or '.join(map(repr, ON_ERROR))}.")
        several = is_several(images)
        numbered: Iterator[tuple[int, Any]] = enumerate(images if several else [images])  # type: ignore[arg-type]
        predictions: list[Prediction] = []
        while batch := self._read(islice(numbered, batch_size), several, on_error):
            predictions += self._predict(batch, len(predictions), top)
        return predictions if several else predictions[0]

    def _read(self, numbered: Iterator[tuple[int, Any]], several: bool, on_error: str) -> list["_Image"]:
        """Read images one by one: uint8 (channels, *image_size), or the message of an error."""
        images: list[_Image] = []
        for number, image in numbered:
            damage: dict[str, str] = {}
            try:
                pixels = self.see(read_pixels(image, self.channels, self.decoding, damage), number)
            except BadImageError as error:
                named = not several or isinstance(image, str | Path)
                message = str(error) if named else f"images[{number}]: {error}"
                if on_error == "raise":
                    raise BadImageError(message) from error
                images.append(_Image(None, error=message))
            else:
                images.append(_Image(pixels, warning=next((DAMAGED % what for what in damage.values()), None)))
        return images

    def see(self, pixels: Tensor, number: int = 0) -> Tensor:
        """Apply the crop and pixel stages to an image, as `ml-inference` does to the image at that position: uint8
        (channels, height, width) becomes uint8 (channels, *image_size)."""
        with self._draws(number):
            return self.transform.image(pixels, self.image_size)

    def _black(self, number: int) -> Tensor:
        """Return what stands for an unreadable image in its batch, as in `ml-inference`."""
        with self._draws(number):
            return self.transform.resized(torch.zeros(self.channels, 1, 1, dtype=torch.uint8), self.image_size)

    def _draws(self, number: int) -> AbstractContextManager[None]:
        if self.transform.randomness == "none":
            return nullcontext()
        return _repeatable(derive_seed("augmentation", 0, 0, number))

    @torch.inference_mode()
    def forward(self, images: Sequence[Tensor], first: int = 0) -> tuple[Floats, list[int]]:
        """Pass images through the network, as `see` returns them; `first` is the position of the first one.

        Returns:
            Log-probabilities, float64 (n, classes), without calibration, and the predicted class of each image.
        """
        output = self.model(self.transform.to_batch(images, first, device=self.model.device))
        return torch.log_softmax(output["logits"].cpu().double(), dim=1).numpy(), output["prediction"].tolist()

    def describe(self, log_probabilities: Floats, predicted: Sequence[int], top: int = 5) -> list[Prediction]:
        """Return the prediction of each image, calibrated if the classifier is, from what `forward` returns."""
        names = self.class_names
        extra: list[dict[str, Any]] = [{} for _ in predicted]
        if self.calibration is not None:
            log_probabilities = self.calibration.apply(log_probabilities)
            accepted = self.calibration.accepts(log_probabilities).tolist()
            sets = [[names[index] for index in np.flatnonzero(row)] for row in self.calibration.sets(log_probabilities)]
            extra = [{"accepted": accepts, "set": inside} for accepts, inside in zip(accepted, sets, strict=True)]
        predictions = []
        for best, row, calibrated in zip(predicted, log_probabilities, extra, strict=True):
            shares = np.exp(row).tolist()
            order = np.argsort(-row, kind="stable")[:top].tolist()
            ranked = [(names[index], shares[index]) for index in order]
            probabilities = dict(zip(names, shares, strict=True))
            predictions.append(Prediction(names[best], shares[best], probabilities, ranked, **calibrated))
        return predictions

    def _predict(self, batch: list["_Image"], first: int, top: int) -> list[Prediction]:
        """Predict a batch of images. Unreadable ones keep their place in it, as the bits of the other predictions may
        depend on the size of the batch."""
        if all(image.pixels is None for image in batch):
            return [Prediction(None, None, error=image.error) for image in batch]
        pixels = [self._black(first + n) if image.pixels is None else image.pixels for n, image in enumerate(batch)]
        predictions = self.describe(*self.forward(pixels, first), top)
        return [
            replace(prediction, warning=image.warning)
            if image.pixels is not None
            else Prediction(None, None, error=image.error)
            for image, prediction in zip(batch, predictions, strict=True)
        ]


class _Image(NamedTuple):
    """An image after crop and pixel stages, uint8 (channels, *image_size), or why it could not be read."""

    pixels: Tensor | None
    error: str | None = None
    warning: str | None = None


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed the global generators, which random transforms draw from, for one thread at a time, and restore them."""
    with _global_generators:
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with seeded(seed):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

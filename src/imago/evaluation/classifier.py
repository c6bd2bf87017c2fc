"""A trained network with everything that it needs to classify images, from its checkpoint alone."""

import logging
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from imago.checkpoint.fits import check_weights
from imago.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from imago.checkpoint.signing import is_signed
from imago.config.allow_list import TRANSFORMS, check_targets
from imago.config.carried import leave_out_training, read_checkpoint_config, without_pretrained
from imago.config.own_code import allow_imports, is_writable_by_others
from imago.config.root import PROJECT_ROOT
from imago.data.colour import PLAIN, Decoding
from imago.data.crops import Size
from imago.data.decode import BadImageError
from imago.data.transforms import ImageTransform
from imago.errors import UserError, message_of
from imago.evaluation.bounds import check_cost
from imago.evaluation.from_config import decoding_of, eval_transform_of, image_size_of, make_model
from imago.evaluation.pixels import FileLike, ImageLike, is_several, read_pixels
from imago.evaluation.prediction import Prediction
from imago.model.module import DictModule
from imago.randomness import derive_seed, seeded

if TYPE_CHECKING:
    from imago.evaluation.calibration import Calibration

log = logging.getLogger(__name__)

OnError = Literal["raise", "return"]
ON_ERROR = ("raise", "return")
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
    """

    def __init__(
        self,
        model: DictModule,
        transform: ImageTransform,
        image_size: Size,
        checkpoint: dict[str, Any],
        decoding: Decoding = PLAIN,
        calibration: "Calibration | None" = None,
    ) -> None:
        self.model = model.eval()
        self.transform = transform
        self.image_size = image_size
        self.checkpoint = checkpoint
        self.decoding = decoding
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg: DictConfig, checkpoint: Checkpoint, path: str | Path, is_own: bool) -> "Classifier":
        """Make the objects of `model`, `data.eval_transform` and `data.image_size`, and load the weights.

        Raises:
            ValueError: The weights are those of another network, or would take more memory than they may.
        """
        without_pretrained(cfg.model)
        entry = checkpoint["imago"]
        size = image_size_of(cfg.data)
        if not is_own:
            check_cost(cfg, checkpoint, path)
        model = make_model(cfg.model, entry["class_names"])
        check_weights(checkpoint, model, path)
        model.load_state_dict(checkpoint["state_dict"])
        return cls(model, eval_transform_of(cfg.data), size, entry, decoding_of(cfg.data))

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
        """
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

    def _read(self, numbered: Iterator[tuple[int, Any]], several: bool, on_error: str) -> list[Tensor | str]:
        """Read images one by one: uint8 (channels, *image_size), or the message of an error."""
        read: list[Tensor | str] = []
        for number, image in numbered:
            try:
                read.append(self._seen(read_pixels(image, self.channels, self.decoding), number))
            except BadImageError as error:
                named = not several or isinstance(image, str | Path)
                message = str(error) if named else f"images[{number}]: {error}"
                if on_error == "raise":
                    raise BadImageError(message) from error
                read.append(message)
        return read

    def _seen(self, pixels: Tensor, number: int) -> Tensor:
        """Apply the crop and pixel stages to an image, as `ml-inference` does to the image at that position."""
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
    def _predict(self, batch: list[Tensor | str], first: int, top: int) -> list[Prediction]:
        """Predict a batch of images. Unreadable ones keep their place in it, as the bits of the other predictions may
        depend on the size of the batch."""
        if all(isinstance(image, str) for image in batch):
            return [Prediction(None, None, error=str(message)) for message in batch]
        images = [self._black(first + n) if isinstance(image, str) else image for n, image in enumerate(batch)]
        output = self.model(self.transform.to_batch(images, first, device=self.model.device))
        log_probabilities = torch.log_softmax(output["logits"].cpu().double(), dim=1).numpy()
        names = self.class_names
        extra: list[dict[str, Any]] = [{} for _ in batch]
        if self.calibration is not None:
            log_probabilities = self.calibration.apply(log_probabilities)
            accepted = self.calibration.accepts(log_probabilities).tolist()
            sets = [[names[index] for index in np.flatnonzero(row)] for row in self.calibration.sets(log_probabilities)]
            extra = [{"accepted": accepts, "set": inside} for accepts, inside in zip(accepted, sets, strict=True)]
        predictions = []
        for image, best, row, more in zip(batch, output["prediction"].tolist(), log_probabilities, extra, strict=True):
            if isinstance(image, str):
                predictions.append(Prediction(None, None, error=image))
                continue
            shares = np.exp(row).tolist()
            order = np.argsort(-row, kind="stable")[:top].tolist()
            ranked = [(names[index], shares[index]) for index in order]
            predictions.append(
                Prediction(names[best], shares[best], dict(zip(names, shares, strict=True)), ranked, **more)
            )
        return predictions


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


def check_own_code(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the user's own. Its code may then be imported from where it was in training."""
    if not is_signed(checkpoint):
        return False
    for name, folder in checkpoint["imago"].get("own_code", {}).items():
        if is_writable_by_others(Path(folder)):
            log.warning(
                "%s, where %s was imported from in training, can be written by others: it is not used", folder, name
            )
        else:
            allow_imports([name], Path(folder))
    return True


def load_classifier(
    path: str | Path, device: str = "cpu", trusted_targets: Sequence[str] = (), calibrated: bool = False
) -> Classifier:
    """Load the classifier in a checkpoint, executing nothing in the file and making only what is known to be harmless.

    Args:
        path: A checkpoint, a run folder (its best checkpoint), or `latest` (of the runs in logs/).
        device: Device of the network: `cpu`, `cuda`, …
        trusted_targets: Prefixes of names in your own code that the config of the checkpoint may use, `["my_net."]`.
        calibrated: Calibrate the probabilities as `ml-inference calibrated=true` does. Predictions then have `accepted`
            and `set`. Needs `ml-eval ckpt_path=… calibrate=true` before.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a checkpoint, its config makes something else, it has no calibration, or there is no such
            device.
    """
    file = find_checkpoint(str(path), PROJECT_ROOT / "logs")
    classifier = of_checkpoint(file, trusted_targets, calibrated)
    try:
        classifier.model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={device!r}: {reason}. It must be cpu, cuda, cuda:0, mps, …") from error
    return classifier


def of_checkpoint(file: Path, trusted_targets: Sequence[str] = (), calibrated: bool = False) -> Classifier:
    """Make the classifier from the checkpoint's own config, with the calibration beside it if `calibrated`."""
    from imago.config.resolvers import register_functions  # which imports Hydra, as `make` does

    register_functions()
    checkpoint = read_checkpoint(file)
    allow_imports(trusted_targets, Path.cwd())
    is_own = check_own_code(checkpoint)
    try:
        cfg = OmegaConf.create(read_checkpoint_config(checkpoint["imago"].get("config"), file, is_own))
        leave_out_training(cfg, ("model",))
        if not is_own:
            check_targets(cfg, ("model", *TRANSFORMS), trusted_targets)
            OmegaConf.set_struct(cfg, False)
            cfg.data.batch_size = None  # `predict` has its own
            cfg.trusted_targets = list(trusted_targets)
        calibration = _calibration(cfg, checkpoint, file) if calibrated else None
        classifier = Classifier.from_config(cfg, checkpoint, file, is_own)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"ckpt_path={file}: the config in it cannot be used: {message_of(error)}") from error
    classifier.calibration = calibration
    return classifier


def _calibration(cfg: DictConfig, checkpoint: Checkpoint, file: Path) -> "Calibration":
    from imago.evaluation.calibration import file_beside, key_of, read

    return read(file_beside(file), key_of(checkpoint["imago"]["timestamp"], cfg.data))

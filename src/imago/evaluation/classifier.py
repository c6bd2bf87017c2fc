"""A trained network with everything that it needs to classify images, from its checkpoint alone."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imago.checkpoint.fits import check_weights
from imago.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from imago.checkpoint.signing import is_signed
from imago.config.allow_list import TRANSFORMS, check_targets
from imago.config.carried import leave_out_training, read_checkpoint_config, without_pretrained
from imago.config.own_code import allow_imports, is_writable_by_others
from imago.config.root import PROJECT_ROOT
from imago.data.colour import PLAIN, Decoding
from imago.data.crops import Size
from imago.data.decode import BadImageError, read_image, upright_rgb
from imago.data.transforms import ImageTransform
from imago.errors import UserError, message_of
from imago.evaluation.bounds import check_cost
from imago.evaluation.from_config import decoding_of, eval_transform_of, image_size_of, make_model
from imago.model.module import DictModule

log = logging.getLogger(__name__)

Picture = str | Path | bytes | BinaryIO | Image.Image | Tensor | NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The most likely class, its probability, and the probability of every class."""

    class_name: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """Classifier of images, made by `imago.load_classifier`. Its probabilities are not calibrated.

    Args:
        model: The network, with its weights.
        transform: The preprocessing of an image.
        image_size: Input size of the network in pixels: the side of a square, or height and width.
        checkpoint: The entry `imago` of the checkpoint, which describes its run.
        decoding: How files are decoded.
    """

    def __init__(
        self,
        model: DictModule,
        transform: ImageTransform,
        image_size: Size,
        checkpoint: dict[str, Any],
        decoding: Decoding = PLAIN,
    ) -> None:
        self.model = model.eval()
        self.transform = transform
        self.image_size = image_size
        self.checkpoint = checkpoint
        self.decoding = decoding

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

    def predict(self, images: Picture | Sequence[Picture], batch_size: int = 32) -> list[Prediction]:
        """Predict one class per image, in order.

        Args:
            images: One or several of: a path, the bytes of a file, an open file, a PIL image, a uint8 tensor (3,
                height, width) or (height, width), a uint8 array (height, width, 3) or (height, width).
            batch_size: Images that go through the network at a time.

        Raises:
            BadImageError: A file cannot be used as an image.
            ValueError: `images` holds something else.
        """
        several: Sequence[Any] = [images] if _is_one(images) else images  # type: ignore
        rows: list[Tensor] = []
        for first in range(0, len(several), batch_size):
            rows += self._probabilities([self._pixels(image) for image in several[first : first + batch_size]])
        return [self._prediction(row) for row in rows]

    @torch.inference_mode()
    def _probabilities(self, pixels: list[Tensor]) -> Tensor:
        batch = self.transform(pixels, self.image_size, device=self.model.device)
        return self.model(batch)["logits"].double().softmax(dim=1).cpu()

    def _prediction(self, row: Tensor) -> Prediction:
        best = int(row.argmax())
        names = self.class_names
        return Prediction(names[best], float(row[best]), dict(zip(names, row.tolist(), strict=True)))

    def _pixels(self, image: Picture) -> Tensor:
        """Pixels of an image, uint8 (channels, height, width)."""
        if isinstance(image, str | Path):
            pixels = read_image(_file(image), decoding=self.decoding)
        elif isinstance(image, bytes | bytearray):
            pixels = read_image(io.BytesIO(image), f"an image of {len(image)} bytes", self.decoding)
        elif isinstance(image, io.IOBase):
            name = str(getattr(image, "name", "an open file"))
            pixels = read_image(image, name, self.decoding)  # type: ignore[arg-type]
        elif isinstance(image, Image.Image):
            pixels = upright_rgb(image, self.decoding)
        elif isinstance(image, Tensor):
            pixels = image[None] if image.ndim == 2 else image
        elif isinstance(image, np.ndarray) and image.ndim in (2, 3):
            pixels = torch.from_numpy(np.array(np.atleast_3d(image))).permute(2, 0, 1)
        else:
            what = f"{type(image).__name__}{f' of shape {image.shape}' if isinstance(image, np.ndarray) else ''}"
            raise UserError(
                f"{what} is not an image: give a path, the bytes of a file, a PIL image, or uint8 pixels as a tensor "
                "(3, height, width) or an array (height, width, 3)."
            )
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise UserError(
                f"An image of type {pixels.dtype} and shape {tuple(pixels.shape)}: give uint8, (3, height, width) as a "
                "tensor or (height, width, 3) as an array."
            )
        if self.channels == 1:
            return F.rgb_to_grayscale(pixels) if pixels.shape[0] == 3 else pixels
        return pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels


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


def load_classifier(path: str | Path, device: str = "cpu", trusted_targets: Sequence[str] = ()) -> Classifier:
    """Load the classifier in a checkpoint, executing nothing in the file and making only what is known to be harmless.

    Args:
        path: A checkpoint, a run folder (its best checkpoint), or `latest` (of the runs in logs/).
        device: Device of the network: `cpu`, `cuda`, …
        trusted_targets: Prefixes of names in your own code that the config of the checkpoint may use, `["my_net."]`.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a checkpoint, or its config makes something else.
    """
    file = find_checkpoint(str(path), PROJECT_ROOT / "logs")
    classifier = of_checkpoint(file, trusted_targets)
    classifier.model.to(device)
    return classifier


def of_checkpoint(file: Path, trusted_targets: Sequence[str] = ()) -> Classifier:
    """Make the classifier from the checkpoint's own config."""
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
        return Classifier.from_config(cfg, checkpoint, file, is_own)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"ckpt_path={file}: the config in it cannot be used: {message_of(error)}") from error


def _is_one(images: Any) -> bool:
    if isinstance(images, Tensor | np.ndarray):
        return images.ndim in (2, 3)
    return isinstance(images, str | Path | bytes | bytearray | io.IOBase | Image.Image)


def _file(path: str | Path) -> Path:
    """Path of a file.

    Raises:
        BadImageError: It is a URL or a folder, or does not exist.
    """
    if "://" in str(path):
        raise BadImageError(f"{path} is a URL: fetch it first, and give the file or its bytes")
    file = Path(path).expanduser()
    if file.is_dir():
        raise BadImageError(f"{path} is a folder: give its files, or type ml-inference source={path}")
    if not file.exists():
        raise BadImageError(f"{path}: no such file")
    return file

"""Runners of an exported file, by the library that will run it, and of its checkpoint beside it."""

import copy
import io
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from imago.evaluation.classifier import Classifier
from imago.exporting.front import IMAGE, PIXELS
from imago.exporting.network import PROBABILITIES

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


class Runner(Protocol):
    """A classifier in parts, so that an error can be found in one of them."""

    def seen(self, image: Bytes) -> Bytes:
        """Crop and resize an image (height, width, channels) to (1, channels, *size)."""

    def network(self, pixels: Bytes) -> Floats:
        """Compute the probabilities (n, classes) of such pixels."""

    def whole(self, image: Bytes) -> Floats:
        """Compute the probabilities (1, classes) of an image."""


class CheckpointRunner:
    """The classifier of the checkpoint, as `imago.load_classifier` returns it."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._crop = copy.copy(classifier.transform)
        self._crop.pixels = {}

    def seen(self, image: Bytes) -> Bytes:
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return self._crop.image(pixels, self.classifier.image_size)[None].numpy()

    @torch.inference_mode()
    def network(self, pixels: Bytes) -> Floats:
        classifier = self.classifier
        images = [classifier.transform.resized(image, classifier.image_size) for image in torch.from_numpy(pixels)]
        batch = classifier.transform.to_batch(images, device=classifier.model.device)
        log_probabilities = torch.log_softmax(classifier.model(batch)["logits"].cpu().double(), dim=1).numpy()
        if classifier.calibration is not None:
            log_probabilities = classifier.calibration.apply(log_probabilities)
        return np.exp(log_probabilities)

    def whole(self, image: Bytes) -> Floats:
        return self.network(self.seen(image))


class OnnxRunner:
    """An ONNX file under ONNX Runtime on the CPU, with as many threads as PyTorch has."""

    def __init__(self, file: Path) -> None:
        import onnx

        extractor = onnx.utils.Extractor(onnx.load(file))
        self._whole = _session(str(file))
        self._front = _session(extractor.extract_model([IMAGE], [PIXELS]).SerializeToString())
        self._network = _session(extractor.extract_model([PIXELS], [PROBABILITIES]).SerializeToString())

    def seen(self, image: Bytes) -> Bytes:
        return self._front.run([PIXELS], {IMAGE: image})[0]

    def network(self, pixels: Bytes) -> Floats:
        return self._network.run([PROBABILITIES], {PIXELS: pixels})[0]

    def whole(self, image: Bytes) -> Floats:
        return self._whole.run([PROBABILITIES], {IMAGE: image})[0]


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class ProgramRunner:
    """A file of `torch.export`, behind the crop and resize of Imago: it has none of its own."""

    def __init__(self, file: Path, checkpoint: CheckpointRunner) -> None:
        self._network = torch.export.load(io.BytesIO(file.read_bytes())).module()  # its name may end otherwise
        self.seen = checkpoint.seen

    @torch.inference_mode()
    def network(self, pixels: Bytes) -> Floats:
        return self._network(torch.from_numpy(pixels)).numpy()

    def whole(self, image: Bytes) -> Floats:
        return self.network(self.seen(image))


def top_two(probabilities: Floats) -> tuple[int, float]:
    """Most likely class of a row, and how much likelier it is than the next one."""
    best = int(probabilities.argmax())
    others = np.delete(probabilities, best)
    return best, float(probabilities[best] - others.max(initial=0.0))

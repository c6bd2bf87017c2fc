"""Runners of an exported file, by the library that will run it, and of its checkpoint beside it."""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from imago.definitions import Batch
from imago.errors import UserError
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

    def further(self, pixels: Bytes) -> dict[str, Any]:
        """Compute the further outputs of such pixels: name -> array (n, …)."""

    def whole(self, image: Bytes) -> Floats:
        """Compute the probabilities (1, classes) of an image."""


class CheckpointRunner:
    """The classifier of the checkpoint, as `imago.load_classifier` returns it; `outputs` are further ones of it: name
    -> key in the batch."""

    def __init__(self, classifier: Classifier, outputs: Mapping[str, str] = MappingProxyType({})) -> None:
        self.classifier = classifier
        self.outputs = outputs
        self._crop = copy.copy(classifier.transform)
        self._crop.pixels = {}

    def seen(self, image: Bytes) -> Bytes:
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return self._crop.image(pixels, self.classifier.image_size)[None].numpy()

    @torch.inference_mode()
    def network(self, pixels: Bytes) -> Floats:
        batch = self._batch(pixels)
        if not torch.equal(batch["prediction"], batch["logits"].argmax(dim=1)):
            raise UserError(
                "model.forward_fn predicts another class than the most likely one, and an exported file has the "
                "probabilities only. Use the checkpoint itself, with ml-inference, ml-serve or imago.load_classifier"
            )
        log_probabilities = torch.log_softmax(batch["logits"].cpu().double(), dim=1).numpy()
        if self.classifier.calibration is not None:
            log_probabilities = self.classifier.calibration.apply(log_probabilities)
        return np.exp(log_probabilities)

    @torch.inference_mode()
    def further(self, pixels: Bytes) -> dict[str, Any]:
        batch = self._batch(pixels) if self.outputs else {}
        return {name: batch[key].cpu().numpy() for name, key in self.outputs.items()}

    def _batch(self, pixels: Bytes) -> Batch:
        classifier = self.classifier
        images = [classifier.transform.resized(image, classifier.image_size) for image in torch.from_numpy(pixels)]
        return classifier.model(classifier.transform.to_batch(images, device=classifier.model.device))

    def whole(self, image: Bytes) -> Floats:
        return self.network(self.seen(image))


class OnnxRunner:
    """An ONNX file under ONNX Runtime on the CPU, with as many threads as PyTorch has."""

    def __init__(self, file: Path) -> None:
        import onnx

        extractor = onnx.utils.Extractor(onnx.load(file))
        self._whole = _session(str(file))
        self._outputs = [output.name for output in self._whole.get_outputs() if output.name != PROBABILITIES]
        self._front = _session(extractor.extract_model([IMAGE], [PIXELS]).SerializeToString())
        network = extractor.extract_model([PIXELS], [PROBABILITIES, *self._outputs])
        self._network = _session(network.SerializeToString())

    def seen(self, image: Bytes) -> Bytes:
        return self._front.run([PIXELS], {IMAGE: image})[0]

    def network(self, pixels: Bytes) -> Floats:
        return self._network.run([PROBABILITIES], {PIXELS: pixels})[0]

    def further(self, pixels: Bytes) -> dict[str, Any]:
        values = self._network.run(self._outputs, {PIXELS: pixels}) if self._outputs else []
        return dict(zip(self._outputs, values, strict=True))

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
        self._outputs = checkpoint.outputs
        self.seen = checkpoint.seen

    def network(self, pixels: Bytes) -> Floats:
        return self._run(pixels)[0].numpy()

    def further(self, pixels: Bytes) -> dict[str, Any]:
        return {name: value.numpy() for name, value in zip(self._outputs, self._run(pixels)[1:], strict=True)}

    @torch.inference_mode()
    def _run(self, pixels: Bytes) -> tuple[torch.Tensor, ...]:
        results = self._network(torch.from_numpy(pixels))
        return results if isinstance(results, tuple) else (results,)

    def whole(self, image: Bytes) -> Floats:
        return self.network(self.seen(image))


def top_two(probabilities: Floats) -> tuple[int, float]:
    """Most likely class of a row, and how much likelier it is than the next one."""
    best = int(probabilities.argmax())
    others = np.delete(probabilities, best)
    return best, float(probabilities[best] - others.max(initial=0.0))

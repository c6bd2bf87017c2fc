"""The part of an exported network behind crop and resize: pixel and batch transforms, the network, probabilities."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from imago.data.crops import pair
from imago.data.transforms import Normalize
from imago.definitions import Batch
from imago.errors import UserError
from imago.evaluation.classifier import Classifier
from imago.exporting.front import IMAGE, PIXELS
from imago.model.contract import RESULTS
from imago.randomness import seeded
from imago.wiring import keys_read

log = logging.getLogger(__name__)

PROBABILITIES = "probabilities"
"""Name of the output, float32 (n, classes)."""
EXAMPLES = 2
"""Images that a network is traced with; another number could be taken for a property of the network."""
LARGEST = 1.9e9
"""Bytes of weights that fit into one file of ONNX, whose format ends at 2 GB."""


class Scaled(nn.Module):
    """`Normalize` of uint8 images without its shortcuts in memory, which cannot be traced."""

    def __init__(self, normalise: Normalize) -> None:
        super().__init__()
        mean, std = torch.tensor(normalise.mean), torch.tensor(normalise.std)
        self.register_buffer("scale", (1 / (255 * std.double())).float()[:, None, None])
        self.register_buffer("shift", (-mean.double() / std.double()).float()[:, None, None])

    def forward(self, batch: Batch) -> Batch:
        return {"image": batch["image"].to(torch.float32) * self.scale + self.shift}


class Network(nn.Module):
    """Images after crop and resize, uint8 (n, channels, height, width), to calibrated probabilities (n, classes), and
    to `further` outputs: name -> key in the batch."""

    def __init__(self, classifier: Classifier, further: Mapping[str, str]) -> None:
        super().__init__()
        self.further = dict(further)
        self.model = classifier.model
        self.pixels = classifier.transform.pixels
        steps = classifier.transform.batch.steps
        first = next(iter(steps), None)  # behind other steps, images may have another type
        self.steps: dict[str, Callable[[Batch], Batch]] = {
            name: Scaled(step) if name == first and type(step) is Normalize else step for name, step in steps.items()
        }
        self.registered = nn.ModuleList(step for step in self.steps.values() if isinstance(step, nn.Module))
        self.temperature = 1.0 if classifier.calibration is None else classifier.calibration.temperature

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        batch = self.run(pixels)
        probabilities = (batch["logits"].float() / self.temperature).softmax(dim=1)
        return (probabilities, *(batch[key] for key in self.further.values())) if self.further else probabilities

    def run(self, pixels: Tensor) -> Batch:
        """Return the batch as the model leaves it."""
        for change in self.pixels.values():
            pixels = change(pixels)
        count = pixels.shape[0]
        batch: Batch = {"image": pixels, "label": pixels.new_zeros(count, dtype=torch.long), "epoch": 0}
        batch["index"] = torch.arange(count, device=pixels.device)
        for step in self.steps.values():
            batch = batch | step(batch)
        return self.model(batch)


@torch.no_grad()
def further_outputs(classifier: Classifier) -> dict[str, str]:
    """Map the names of further outputs to their keys in the batch: the tensors with a row per image that
    `model.forward_fn` adds beside logits and prediction, and that no step of it reads."""
    forward_fn = classifier.model.forward_fn
    if forward_fn is None:
        return {}
    batch = Network(classifier, {}).eval().run(example_of(classifier))
    ends = batch.keys() - {"image", "label", "index", "epoch", *RESULTS} - keys_read(forward_fn)
    rows = sorted(key for key in ends if isinstance(batch[key], Tensor) and batch[key].shape[:1] == (EXAMPLES,))
    if left := sorted(ends - {*rows}):
        log.warning("The file does not contain %s: no tensor with a row per image", ", ".join(left))
    taken = (IMAGE, PIXELS, PROBABILITIES)
    return {f"forward_fn.{key}" if key in taken else key: key for key in rows}


def example_of(classifier: Classifier) -> Tensor:
    """Images to trace a network with, uint8 (2, channels, height, width)."""
    shape = (EXAMPLES, classifier.channels, *pair(classifier.image_size))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def check_draws(classifier: Classifier) -> None:
    """Raise UserError for transforms that draw random numbers."""
    transform, pixels = classifier.transform, example_of(classifier)
    for name, step in transform.pixels.items():
        _check_fixed(f"pixels.{name}", partial(_changed, step, pixels[0]))
        pixels = step(pixels)
    batch: Batch = {"image": pixels, "label": torch.zeros(EXAMPLES).long(), "index": torch.arange(EXAMPLES), "epoch": 0}
    for name, change in transform.batch.steps.items():
        _check_fixed(f"batch.{name}", partial(_image_of, change, batch))
        batch = batch | change(dict(batch))


def _changed(step: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return step(image.clone())


def _image_of(step: Callable[[Batch], Batch], batch: Batch) -> Tensor:
    image: Tensor = (batch | step(dict(batch)))["image"]
    return image


def _check_fixed(place: str, transform: Callable[[], Tensor]) -> None:
    results = []
    for seed in (1, 2, 3):
        with seeded(seed):
            results.append(transform())
    if any(not torch.equal(result, results[0]) for result in results):
        raise UserError(
            f"data.eval_transform.{place} draws random numbers, which an exported file cannot repeat. Type "
            f"data.eval_transform.{place}=null"
        )


def bytes_of(classifier: Classifier) -> int:
    """Size of the weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in classifier.model.state_dict().values())


@torch.no_grad()
def network_model(classifier: Classifier, further: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Make the ONNX model of the network, for any number of images.

    Raises:
        UserError: It has an operator that ONNX does not have, or cannot be traced.
    """
    check_draws(classifier)
    if (size := bytes_of(classifier)) > LARGEST:
        raise UserError(
            f"The weights have {size / 1e9:.1f} GB, and a file of ONNX ends at 2 GB. Type format=torch_export"
        )
    with quiet(), _explained("ONNX", "format=torch_export or format=safetensors"):
        program = torch.onnx.export(
            Network(classifier, further).eval(),
            (example_of(classifier),),
            dynamo=True,
            dynamic_shapes={"pixels": {0: torch.export.Dim("images")}},
            input_names=[PIXELS],
            output_names=[PROBABILITIES, *further],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@torch.no_grad()
def exported_program(
    classifier: Classifier, further: Mapping[str, str] = MappingProxyType({})
) -> torch.export.ExportedProgram:
    """Trace the network with `torch.export`, for any number of images.

    Raises:
        UserError: It cannot be traced.
    """
    check_draws(classifier)
    with quiet(), _explained("torch.export", "format=safetensors"):
        network, example = Network(classifier, further).eval(), (example_of(classifier),)
        return torch.export.export(network, example, dynamic_shapes={"pixels": {0: torch.export.Dim("images")}})


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the console what exporters say to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _explained(target: str, instead: str) -> Iterator[None]:
    """Turn an error of the exporter into one that names the operator or the reason, and the way out."""
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # of many types, most of them private
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        text = "\n".join(str(cause) for cause in causes)
        missing = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)))
        if missing:
            what = f"it has no form of the operator {', '.join(missing)}. Replace that in the network"
        else:
            first = str(causes[-1]).strip().partition("\n")[0] or type(causes[-1]).__name__
            what = f"{first.rstrip('.')}. Often that is a branch or a loop that depends on pixel values"
        raise UserError(f"The network cannot be exported to {target}: {what}, or type {instead}") from error

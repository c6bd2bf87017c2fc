"""The ONNX file: crop and resize, the network in the wanted precision, probabilities, and the metadata."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imago.errors import MissingModuleError
from imago.evaluation.classifier import Classifier
from imago.exporting.front import PIXELS, front_model
from imago.files import strict

INSTALL = "pip install 'imago[onnx]'"
Convert = Callable[[Any], Any]


def check_packages(kind: str) -> None:
    """Raise MissingModuleError if a package of the extra `onnx` is missing, which the format `kind` needs."""
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingModuleError(f"format={kind} needs {', '.join(missing)}, not installed here: {INSTALL}")


def onnx_model(classifier: Classifier, network: Any) -> Any:
    """Put crop and resize in front of the ONNX model of a network."""
    import onnx

    (opset,) = (entry.version for entry in network.opset_import if entry.domain == "")
    transform, size = classifier.transform, classifier.image_size
    front = front_model(
        transform.box, size, transform.interpolation, classifier.channels, opset, ir_version=network.ir_version
    )
    return onnx.compose.merge_models(front, network, io_map=[(PIXELS, PIXELS)])


def write_onnx(model: Any, metadata: Mapping[str, Any], path: Path) -> None:
    """Write an ONNX model, with each entry of `metadata` as JSON, not atomically: `path` is a temporary one."""
    import onnx

    onnx.helper.set_model_props(model, {name: json.dumps(strict(value)) for name, value in metadata.items()})
    model.producer_name = "imago"
    path.write_bytes(model.SerializeToString())

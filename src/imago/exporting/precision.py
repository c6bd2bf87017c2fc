"""ONNX networks with smaller numbers: 16-bit floats, and 8-bit integers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imago.exporting.front import PIXELS
from imago.exporting.network import quiet
from imago.exporting.runners import Bytes

KEPT = ("Softmax",)
"""Operators that stay in 32 bits: probabilities need the digits."""


def to_half(network: Any) -> Any:
    """Convert weights and activations of an ONNX network to float16, with inputs and outputs as they are."""
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx_ir.from_proto(convert_float_to_float16(network, keep_io_types=True, op_block_list=list(KEPT)))
    model.graph.sort()  # conversions back to 32 bits were appended at the end
    return onnx_ir.to_proto(model)


class _Batches:
    """Images by which ONNX Runtime chooses the range of each activation; the interface is its CalibrationDataReader."""

    def __init__(self, pixels: Sequence[Bytes]) -> None:
        self._pixels = iter(pixels)

    def get_next(self) -> dict[str, Bytes] | None:
        batch = next(self._pixels, None)
        return None if batch is None else {PIXELS: batch}


def to_int8(network: Any, pixels: Sequence[Bytes], place: Path) -> Any:
    """Quantise an ONNX network to 8 bits per channel, with the ranges of activations on `pixels`. Temporary files are
    in the folder `place`, where there must be space for the result anyway."""
    import onnx
    from onnxruntime import transformers

    if (modules := str(Path(transformers.__file__).parent)) not in sys.path:
        sys.path.append(modules)  # as the package does itself once: its modules import one another by their bare names
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    CalibrationDataReader.register(_Batches)
    with TemporaryDirectory(dir=place, prefix=".", suffix=".tmp") as folder, quiet():
        prepared, file = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(network, prepared)
        quantize_static(
            prepared,
            file,
            _Batches(pixels),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(file)

"""The part of an exported network in front of it: crop and resize of an image of any size, as Imago does them.

PyTorch resizes uint8 images with weights of 16 bits, which are multiples of a power of two, and rounds in between. The
graph computes with the same numbers in doubles, which hold their products and sums exactly. So there is no difference,
in whatever order they are added; with ONNX's own Resize (antialias=1) 16% of the values differ.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from imago.data.crops import CenterBox, CropPolicy, FittedBox, Size, WholeBox, pair
from imago.errors import UserError
from imago.exporting.graph import Graph, Value

IMAGE, PIXELS = "image", "pixels"
"""Names of the input, uint8 (height, width, channels), and of the output, uint8 (1, channels, *size)."""
MOST_BITS = 22
"""PyTorch's bound on the precision of weights, in bits after the point."""
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half of the width of a filter, in pixels of the smaller image."""
BLOCK = 8
"""Lines of the result that are computed together, from the few lines of the image that they need."""
Box = tuple[Value, Value, Value, Value]  # top, left, height, width


def front_model(box: CropPolicy, size: Size, interpolation: str, channels: int, opset: int, ir_version: int) -> Any:
    """Make the ONNX model that crops and resizes a decoded image.

    Raises:
        UserError: There is no graph for this kind of box.
    """
    import onnx
    from onnx import TensorProto, helper

    graph, (rows, columns) = Graph("front"), pair(size)
    image = Value(graph, IMAGE, np.dtype(np.uint8))
    shape = graph.op("Shape", image, dtype=np.int64)
    height, width = (graph.op("Gather", shape, graph.whole(axis), axis=0) for axis in (0, 1))
    cut_out = _cropped(graph, image, box, (height, width), channels)
    lines = _narrowed(graph, cut_out, columns, interpolation, channels)
    lines = _lowered(graph, lines, rows, interpolation)
    seen = graph.op("Transpose", graph.op("Reshape", lines, graph.whole([rows, channels, columns])), perm=[1, 0, 2])
    graph.op("Unsqueeze", seen, graph.whole([0]), output=PIXELS)
    image_info = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["height", "width", channels])
    made = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["images", channels, rows, columns])
    proto = helper.make_graph(graph.nodes, "front", [image_info], [made], graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def check_box(box: CropPolicy) -> None:
    """Raise UserError unless there is a graph for a box."""
    inner = box.box if isinstance(box, FittedBox) else box
    if type(inner) not in BOXES:
        names = " and ".join(f"imago.data.{kind.__name__}" for kind in BOXES)
        raise UserError(
            f"data.eval_transform.box is {type(inner).__name__}, and an ONNX file can contain {names} only. Type "
            "data.eval_transform.box._target_=imago.data.CenterBox, or format=torch_export, which takes images that "
            "your program has cropped and resized"
        )


def _center(graph: Graph, box: Any, height: Value, width: Value) -> Box:
    short = graph.least(height, width).to(np.float64)
    side = graph.greatest(graph.rounded(box.share * short), 1)
    return (height - side) // 2, (width - side) // 2, side, side


def _whole(graph: Graph, box: Any, height: Value, width: Value) -> Box:
    del box
    return graph.whole(0), graph.whole(0), height, width


BOXES: dict[type, Callable[[Graph, Any, Value, Value], Box]] = {CenterBox: _center, WholeBox: _whole}
"""Crop policy -> the function that adds its arithmetic to a graph."""


def _box(graph: Graph, box: CropPolicy, height: Value, width: Value) -> Box:
    """Add the arithmetic of a crop policy; of a FittedBox, line by line that of its `__call__`."""
    check_box(box)
    if not isinstance(box, FittedBox):
        return BOXES[type(box)](graph, box, height, width)
    seen_height, seen_width = box.size
    rows, columns = height, width
    if box.fit == "pad":
        rows = graph.greatest(height, (width * seen_height + (seen_width - 1)) // seen_width)
        columns = graph.greatest(width, (height * seen_width + (seen_height - 1)) // seen_height)
    squashed = box.fit == "squash"
    down = columns if squashed else graph.whole(seen_width)
    across = rows if squashed else graph.whole(seen_height)
    top, left, high, wide = BOXES[type(box.box)](graph, box.box, rows * down, columns * across)

    def shrunk(number: Value, by: Value) -> Value:
        return graph.rounded(number.to(np.float64) / by.to(np.float64))

    bottom, right = shrunk(top + high, down), shrunk(left + wide, across)
    top, left = graph.least(shrunk(top, down), rows - 1), graph.least(shrunk(left, across), columns - 1)
    high, wide = graph.greatest(bottom - top, 1), graph.greatest(right - left, 1)
    if box.fit == "pad":
        top, left = top - (rows - height) // 2, left - (columns - width) // 2
    return top, left, high, wide


def _cropped(graph: Graph, image: Value, box: CropPolicy, sides: tuple[Value, Value], channels: int) -> Value:
    """Crop an image, (height, width, channels), with margins where the box of `fit=pad` reaches beyond it."""
    place = _box(graph, box, *sides)
    starts = [graph.greatest(side, 0) for side in place[:2]]
    ends = [graph.least(start + length, side) for start, length, side in zip(place[:2], place[2:], sides, strict=True)]
    inside = graph.op("Slice", image, graph.vector(*starts), graph.vector(*ends), graph.whole([0, 1]))
    if not isinstance(box, FittedBox) or box.fit != "pad":
        return inside
    before = [start - side for start, side in zip(starts, place[:2], strict=True)]
    after = [start + length - end for start, length, end in zip(place[:2], place[2:], ends, strict=True)]
    pads = graph.vector(*before, 0, *after, 0)
    colour = np.array(box.fill, dtype=np.uint8) if channels == 3 else np.array([int(sum(box.fill) / 3)], np.uint8)
    extent = graph.op("Shape", inside, dtype=np.int64)
    covered = graph.op("Expand", graph.constant(1, np.uint8), extent)
    padded, mask = graph.op("Pad", inside, pads), graph.op("Pad", covered, pads)
    return graph.where(mask.to(np.bool_), padded, colour)


def _narrowed(graph: Graph, pixels: Value, columns: int, interpolation: str, channels: int) -> Value:
    """Resize (height, width, channels) to (height, channels * columns). Products of matrices do it in the order in
    which pixels lie in memory, at the price of zeros between the channels: transposing them takes three times as long.
    """
    weights, starts, window = _weights(graph, _side(graph, pixels, 1), columns, interpolation)
    apart = np.eye(channels).reshape(1, 1, channels, channels, 1)
    turned = graph.op("Transpose", weights, perm=[0, 2, 1])  # (blocks, window, BLOCK)
    spread = graph.op("Unsqueeze", turned, graph.whole([2, 3])) * graph.constant(apart, np.float64)
    matrices = graph.op("Reshape", spread, graph.whole([-1, channels * BLOCK]))
    flat, products = graph.op("Flatten", pixels, axis=1), []
    blocks = -(-columns // BLOCK)
    for matrix, start in zip(graph.split(matrices, blocks), graph.split(starts * channels, blocks), strict=True):
        part = graph.op("Slice", flat, start, start + window * channels, graph.whole([1]))
        product = _rounded(graph, part.to(np.float64), matrix, interpolation)
        products.append(graph.op("Reshape", product, graph.whole([0, channels, BLOCK])))
    joined = graph.op("Concat", *products, axis=2)
    if blocks * BLOCK != columns:
        joined = graph.op("Slice", joined, graph.whole([0]), graph.whole([columns]), graph.whole([2]))
    return graph.op("Flatten", joined, axis=1)


def _lowered(graph: Graph, lines: Value, rows: int, interpolation: str) -> Value:
    """Resize (height, all the rest) to (rows, all the rest)."""
    weights, starts, window = _weights(graph, _side(graph, lines, 0), rows, interpolation)
    blocks = -(-rows // BLOCK)
    matrices = graph.op("Reshape", weights, graph.whole([blocks * BLOCK, -1]))
    products = []
    for matrix, start in zip(graph.split(matrices, blocks), graph.split(starts, blocks), strict=True):
        part = graph.op("Slice", lines, start, start + window, graph.whole([0]))
        products.append(_rounded(graph, matrix, part.to(np.float64), interpolation))
    joined = graph.op("Concat", *products, axis=0)
    if blocks * BLOCK == rows:
        return joined
    return graph.op("Slice", joined, graph.whole([0]), graph.whole([rows]), graph.whole([0]))


def _side(graph: Graph, pixels: Value, axis: int) -> Value:
    return graph.op("Gather", graph.op("Shape", pixels, dtype=np.int64), graph.whole(axis), axis=0)


def _rounded(graph: Graph, left: Value, right: Value, interpolation: str) -> Value:
    """Product of two matrices, rounded to uint8: a half is added, and the conversion cuts off what is behind the
    point. Weights of one sign cannot leave the range of the pixels."""
    product = graph.op("Gemm", left, right, 0.5)
    return (product if interpolation == "bilinear" else graph.op("Clip", product, 0.0, 255.0)).to(np.uint8)


def _weights(graph: Graph, side: Value, length: int, interpolation: str) -> tuple[Value, Value, Value]:
    """Weights of an axis, double (blocks, BLOCK, window); the first line of each window (blocks,); and the window.

    PyTorch computes them in double precision (`compute_index_ranges_int16_weights`), and then rounds them to multiples
    of the smallest power of two with which they fit into 16 bits.
    """
    blocks = -(-length // BLOCK)
    number = np.minimum(np.arange(blocks * BLOCK), length - 1).reshape(blocks, BLOCK, 1) + 0.5
    scale = side.to(np.float64) / float(length)
    wide = graph.greatest(scale, 1.0)
    support = wide * SUPPORT[interpolation]
    reach = graph.op("Ceil", scale * float(BLOCK - 1) + support * 2.0).to(np.int64) + 2
    window = graph.least(side, reach)
    first = graph.op("Floor", graph.constant(number[:, 0, 0], np.float64) * scale - support).to(np.int64)
    starts = graph.greatest(graph.least(first, side - window), 0)
    places = graph.op("Range", graph.whole(0), window, graph.whole(1))
    places = (graph.op("Reshape", starts, graph.whole([blocks, 1, 1])) + places).to(np.float64) + 0.5
    distance = graph.op("Abs", (places - graph.constant(number, np.float64) * scale) / wide)
    shape = graph.greatest(1.0 - distance, 0.0) if interpolation == "bilinear" else _bicubic(graph, distance)
    shares = shape / graph.op("ReduceSum", shape, graph.whole([2]), keepdims=1)
    peak = graph.op("ReduceMax", shares, graph.whole([0, 1, 2]), keepdims=0)
    powers = graph.constant(2.0 ** np.arange(1, MOST_BITS + 1), np.float64)
    fits = graph.op("Floor", peak * powers + 0.5) < 32768.0
    one = graph.op("ReduceMax", graph.where(fits, powers, 1.0), graph.whole([0]), keepdims=0)
    rounded = graph.op("Floor", graph.op("Abs", shares) * one + 0.5) / one
    return graph.op("Sign", shares) * rounded, starts, window


def _bicubic(graph: Graph, x: Value) -> Value:
    """Keys' kernel with a = -0.5, as Pillow's."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return graph.where(x < 1.0, near, graph.where(x < 2.0, far, 0.0))

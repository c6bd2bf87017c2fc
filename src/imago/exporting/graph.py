"""ONNX graphs written as Python arithmetic: every operator adds a node."""

from typing import Any, Union

import numpy as np
from numpy.typing import DTypeLike

Operand = Union["Value", int, float, list[int], np.ndarray]


class Value:
    """A tensor of a graph. `dtype` is that of its elements, to which Python numbers beside it are converted."""

    def __init__(self, graph: "Graph", name: str, dtype: np.dtype[Any]) -> None:
        self.graph = graph
        self.name = name
        self.dtype = dtype

    def __add__(self, other: Operand) -> "Value":
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Operand) -> "Value":
        return self.graph.op("Add", self.graph.constant(other, self.dtype), self)

    def __sub__(self, other: Operand) -> "Value":
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> "Value":
        return self.graph.op("Sub", self.graph.constant(other, self.dtype), self)

    def __mul__(self, other: Operand) -> "Value":
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> "Value":
        return self.graph.op("Mul", self.graph.constant(other, self.dtype), self)

    def __truediv__(self, other: Operand) -> "Value":
        return self.graph.op("Div", self, other)

    def __floordiv__(self, other: Operand) -> "Value":
        """Divide whole numbers that are not negative: ONNX rounds towards 0."""
        return self.graph.op("Div", self, other)

    def __lt__(self, other: Operand) -> "Value":
        return self.graph.op("Less", self, other, dtype=np.bool_)

    def __le__(self, other: Operand) -> "Value":
        return self.graph.op("LessOrEqual", self, other, dtype=np.bool_)

    def to(self, dtype: DTypeLike) -> "Value":
        """Convert the elements to another type."""
        import onnx

        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.graph.op("Cast", self, dtype=dtype, to=kind)


class Graph:
    """A graph with one input and one output, which grows by calls of `op`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(
        self, kind: str, *operands: Operand, dtype: DTypeLike | None = None, output: str = "", **attributes: Any
    ) -> Value:
        """Add a node. Its result has the element type of the first operand unless `dtype` says otherwise, and numbers
        among the operands that of the first value."""
        import onnx

        first = next(operand for operand in operands if isinstance(operand, Value))
        inputs = [self.constant(operand, first.dtype).name for operand in operands]
        name = output or f"{self.name}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=f"{name}_{kind}", **attributes))
        return Value(self, name, np.dtype(dtype) if dtype is not None else first.dtype)

    def constant(self, operand: Operand, dtype: DTypeLike) -> Value:
        """Make a value of numbers; a value is returned as it is."""
        import onnx

        if isinstance(operand, Value):
            return operand
        array = np.asarray(operand, dtype=dtype)
        name = f"{self.name}_constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return Value(self, name, array.dtype)

    def whole(self, numbers: Operand) -> Value:
        """Make a value of whole numbers, as axes and shapes are."""
        return self.constant(numbers, np.int64)

    def vector(self, *numbers: Operand) -> Value:
        """Join whole numbers to a vector, such as a shape."""
        parts = [self.op("Reshape", self.whole(number), self.whole([1])) for number in numbers]
        return self.op("Concat", *parts, axis=0)

    def split(self, value: Value, parts: int) -> list[Value]:
        """Divide a value into equal parts along its first axis."""
        import onnx

        name = f"{self.name}_{len(self.nodes)}"
        names = [f"{name}_{part}" for part in range(parts)]
        self.nodes.append(onnx.helper.make_node("Split", [value.name], names, name=f"{name}_Split", num_outputs=parts))
        return [Value(self, part, value.dtype) for part in names]

    def least(self, a: Operand, b: Operand) -> Value:
        """Smaller one of two values."""
        return self.op("Min", a, b)

    def greatest(self, a: Operand, b: Operand) -> Value:
        """Greater one of two values."""
        return self.op("Max", a, b)

    def where(self, condition: Value, value: Value, otherwise: Operand) -> Value:
        """Choose between two values by a condition."""
        return self.op("Where", condition, value, self.constant(otherwise, value.dtype), dtype=value.dtype)

    def rounded(self, number: Value) -> Value:
        """Whole number nearest to a double, the even one of two, as Python's `round`."""
        return self.op("Round", number).to(np.int64)

"""Columns of many images in few bytes: names and labels, as sequences of plain strings and integers."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from imago.errors import UserError

Value = TypeVar("Value", bound=str | int)
STEP = 64  # names between two positions that are kept
MOST_AT_ONCE = 2**16  # labels as Python integers
ENCODING = ("utf-8", "surrogateescape")  # file names may be no Unicode


class _EqualByContent(Sequence[Value]):
    """Sequence that equals every sequence of the same values, as lists do."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class StringArray(_EqualByContent[str]):
    """Compact sequence of strings: 8 bytes each besides their own, where a Python string in a list takes 57."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(*ENCODING) for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = array("Q", accumulate(map(len, encoded), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "StringArray": ...
    def __getitem__(self, index: int | slice) -> "str | StringArray":
        if isinstance(index, slice):
            return StringArray(self[position] for position in range(*index.indices(len(self))))
        at = range(len(self))[index]  # IndexError and negative indices as in lists
        return self._bytes[self._ends[at] : self._ends[at + 1]].decode(*ENCODING)


class Columns(Protocol):
    """Owner of the arrays: it maps them again in another process, where a copy of the arrays would travel."""

    label: np.ndarray
    names: np.ndarray
    name_starts: np.ndarray


def pack_names(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all texts, each with a zero byte behind it, and the position of every `STEP`-th and the end.

    Raises:
        ValueError: A text has a zero byte.
    """
    encoded = [text.encode(*ENCODING) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise ValueError("A name has a zero byte.")
    ends = np.fromiter(accumulate((len(text) + 1 for text in encoded), initial=0), np.uint64, len(encoded) + 1)
    starts = np.append(ends[:-1:STEP], ends[-1:])
    return np.frombuffer(b"".join(text + b"\0" for text in encoded), np.uint8), starts


class _Packed(_EqualByContent[Value]):
    """Values of packed columns; `rows` are those of the sequence, None for all."""

    def __init__(self, columns: Columns, rows: np.ndarray | None = None) -> None:
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._columns.label) if self._rows is None else len(self._rows)


class PackedNames(_Packed[str]):
    """Texts of `pack_names`."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> "str | list[str]":
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        block, place = divmod(at if self._rows is None else int(self._rows[at]), STEP)
        return self._block(block)[place].decode(*ENCODING)

    def __iter__(self) -> Iterator[str]:
        if self._rows is not None:
            yield from (self[index] for index in range(len(self)))
            return
        for block in range(len(self._columns.name_starts) - 1):
            yield from (text.decode(*ENCODING) for text in self._block(block)[:-1])

    def _block(self, block: int) -> list[bytes]:
        start, end = self._columns.name_starts[block : block + 2].tolist()
        texts = self._columns.names[start:end].tobytes().split(b"\0")
        if len(texts) != min(STEP, len(self._columns.label) - block * STEP) + 1:
            raise UserError("The names of the images are damaged. Copy the index again.")
        return texts


class PackedLabels(_Packed[int]):
    """Labels in an array of few bytes each."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> "int | list[int]":
        if isinstance(index, slice):
            return np.asarray(self)[index].tolist()
        at = range(len(self))[index]
        return int(self._columns.label[at if self._rows is None else self._rows[at]])

    def __iter__(self) -> Iterator[int]:
        labels = np.asarray(self)
        for first in range(0, len(labels), MOST_AT_ONCE):
            yield from labels[first : first + MOST_AT_ONCE].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        labels = self._columns.label if self._rows is None else self._columns.label[self._rows]
        return np.array(labels, dtype) if copy else np.asarray(labels, dtype)

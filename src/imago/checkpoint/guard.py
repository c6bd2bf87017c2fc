"""Inspect a checkpoint file before torch reads it: it may be damaged, or crafted by a stranger to take all memory.

Nothing in the file is executed here, and nothing larger than the file is allocated. Which objects the config in the
file may make is decided in config/allow_list.py.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from imago.errors import UserError

MOST_OPCODES, MOST_NODES, MOST_DEPTH = 5_000_000, 5_000_000, 100
"""Limits of the pickle in a checkpoint: operations, values that it expands to, and nesting depth. A run of 1,000 epochs
has 300,000 operations."""
OPCODES = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINSTRING",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "EMPTY_SET",
        "ADDITEMS",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
    ]
)
ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
REBUILD = "torch._utils _rebuild_tensor_v2"
GLOBALS = {
    *("collections OrderedDict", "collections Counter", "builtins set", "__builtin__ set"),
    *(REBUILD, "torch._utils _rebuild_parameter", "torch Size", "torch device"),
    *(f"torch {name}" for name in ITEM_BYTES),
}
"""Names allowed in the pickle of a checkpoint: containers and tensors. torch would allow more, such as bytearray."""
FOLDER = 0x10
"""The MS-DOS attribute of a folder in a zip file."""
SHARED = 4
"""How many times tensors may claim the bytes of all storages: two names for one weight are common."""


class DamagedError(UserError):
    """The file is damaged or not a checkpoint. The message continues a sentence that begins with the file name."""


class ForeignError(UserError):
    """The file holds what no checkpoint holds. The message continues a sentence that begins with the file name."""


def look_over(path: Path) -> None:
    """Inspect the whole file, and inspect it again only after it has changed.

    Raises:
        DamagedError: The directory of the file or a checksum is wrong, or a part is missing.
        ForeignError: It names something other than tensors and containers, or would expand to more than it holds.
    """
    stat = os.stat(path)
    _look_over(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=16)
def _look_over(path: Path, _: tuple[int, ...]) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise DamagedError("is damaged or not a checkpoint of Imago: it is not a zip file.")
        try:
            with zipfile.ZipFile(file) as archive:
                sizes = _check_directory(archive, path.stat().st_size)
                _check_sums(archive)
                name, *further = [name for name in sizes if name.endswith("/data.pkl")] or [""]
                if further or name.count("/") != 1:
                    raise DamagedError("is damaged or not a checkpoint of Imago: it must have exactly one data.pkl.")
                pickled = archive.read(name)
        except (DamagedError, ForeignError):
            raise
        except Exception as error:  # zipfile raises many types of errors on damaged files
            raise DamagedError(f"is damaged or not a checkpoint of Imago ({error}).") from error
    prefix = name.removesuffix("data.pkl")
    records = {key.removeprefix(f"{prefix}data/"): size for key, size in sizes.items() if key.startswith(prefix)}
    check_pickle(pickled, records)


def _check_directory(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """Map the names in the zip to their sizes. The parts must lie one after another, uncompressed."""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ForeignError("is compressed, and could expand to any size. Checkpoints of Imago are not compressed.")
    if any(entry.external_attr & FOLDER or entry.filename.endswith("/") for entry in entries):
        raise DamagedError("is damaged: an entry in it is marked as a folder.")  # torch would read uninitialised memory
    sizes = {entry.filename: entry.file_size for entry in entries}
    if any(name.endswith("/constants.pkl") for name in sizes):
        raise ForeignError("is a TorchScript program, not a checkpoint of Imago.")
    end = 0
    for entry in entries:
        if entry.header_offset < end or entry.compress_size != entry.file_size:
            raise DamagedError("is damaged: entries in it overlap.")
        end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.file_size
    if len(sizes) != len(entries) or len({name.partition("/")[0] for name in sizes}) != 1 or archive.comment:
        raise DamagedError("is damaged: its zip directory is not that of a checkpoint.")
    if end > archive.start_dir or archive.start_dir > file_size or (entries and entries[0].header_offset):
        raise DamagedError("is damaged: its zip directory does not match the file.")
    return sizes


def _check_sums(archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        crc = 0
        with archive.open(entry) as part:  # zipfile compares names, and the checksum at the end
            while block := part.read(2**20):
                crc = zlib.crc32(block, crc)
        if crc != entry.CRC:
            raise DamagedError(f"is damaged: the checksum of {entry.filename} does not match.")


def check_pickle(pickled: bytes, records: dict[str, int]) -> None:
    """Raise ForeignError or DamagedError unless the pickle makes only containers and tensors of `records`, in bytes."""
    puts = _check_opcodes(pickletools.genops(pickled))
    if puts > len(pickled):
        raise DamagedError("is damaged: its pickle has a wrong count.")
    try:
        content, claimed = _Dry(io.BytesIO(pickled), records).run()
    except (DamagedError, ForeignError):
        raise
    except Exception as error:
        raise DamagedError(f"is damaged or not a checkpoint of Imago ({type(error).__name__}).") from error
    if claimed > SHARED * sum(records.values()) + 2**20:
        raise ForeignError("has tensors that claim more memory than the file contains. It was not read.")
    _check_unfolded(content)


def check_legacy(path: Path) -> None:
    """Check the names in a file that torch wrote before 1.6: five pickles, followed by the raw weights.

    Raises:
        ForeignError: It names something other than tensors and containers.
        DamagedError: It is not such a file.
    """
    with path.open("rb") as file:
        try:
            for _ in range(5):
                _check_opcodes(pickletools.genops(file), {"LONG", "BINSTRING", "GLOBAL"})
        except ForeignError:
            raise
        except Exception as error:
            raise DamagedError(f"is damaged, or not a state dict of torch ({type(error).__name__}).") from error


def _check_opcodes(opcodes: Iterable[Any], names: Iterable[str] = ()) -> int:
    """Check the operations of a pickle. Returns the greatest index of its memo."""
    known, most = OPCODES | set(names), 0
    number = 0
    try:
        for number, (opcode, argument, _) in enumerate(opcodes):
            if number > MOST_OPCODES:
                raise ForeignError("is larger than any checkpoint of Imago. It was not read.")
            if opcode.name == "GLOBAL" and argument not in GLOBALS:
                raise ForeignError(_refusal(argument.replace(" ", ".")))
            if opcode.name not in known:
                raise ForeignError(f"is damaged or not a checkpoint of Imago (its pickle has {opcode.name}).")
            if opcode.name.endswith("BINPUT"):
                most = max(most, argument)
    except (DamagedError, ForeignError):
        raise
    except Exception as error:  # a truncated pickle, or malformed numbers and strings
        raise DamagedError(f"is damaged or not a checkpoint of Imago ({error}).") from error
    return most


def _refusal(name: str) -> str:
    return (
        f"contains {name}, which is not allowed in a checkpoint. Nothing was executed. If it is a whole network "
        "(torch.save(net)) that you trust, load it yourself and save net.state_dict()."
    )


class _Dry(pickle.Unpickler):
    """Unpickler that makes stand-ins for tensors and storages, and adds up the bytes that tensors claim."""

    def __init__(self, file: io.BytesIO, records: dict[str, int]) -> None:
        super().__init__(file)
        self.records = records
        self.claimed = 0

    def run(self) -> tuple[Any, int]:
        return self.load(), self.claimed

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in GLOBALS:
            raise ForeignError(_refusal(f"{module}.{name}"))
        if name in ITEM_BYTES:
            return name
        known: dict[str, Any] = {
            "OrderedDict": OrderedDict,
            "Counter": _container,
            "set": _container,
            "Size": _container,
        }
        return known.get(name, self._tensor if name == "_rebuild_tensor_v2" else _container)

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in ITEM_BYTES:
            raise DamagedError("is damaged: a storage in it is not valid.")
        _, kind, key, _, count = pid
        size = self.records.get(key) if isinstance(key, str) else None
        if type(count) is not int or size is None or not 0 <= count * ITEM_BYTES[kind] <= size:
            raise DamagedError("is damaged: a tensor is larger than its storage.")
        return _Storage(ITEM_BYTES[kind], count)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        numbers = [offset, *size, *stride]
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 16:
            raise DamagedError("is damaged: a tensor in it is not valid.")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise DamagedError("is damaged: a tensor in it has no size.")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) + 1
        count = math.prod(size)
        if count and (last > storage.count or count > storage.count):
            raise ForeignError("has a tensor that claims more memory than the file contains. It was not read.")
        self.claimed += count * storage.item_bytes
        return _Storage(storage.item_bytes, count)


class _Storage:
    """Stand-in for a storage or a tensor."""

    def __init__(self, item_bytes: int, count: int) -> None:
        self.item_bytes = item_bytes
        self.count = count

    def __setstate__(self, state: Any) -> None:
        raise ForeignError("changes a tensor after creating it, which is not allowed in a checkpoint. It was not read.")


def _container(*parts: Any) -> list[Any]:
    return list(parts)


def _check_unfolded(content: Any) -> None:
    """Raise ForeignError if the content expands to too much: an object that occurs twice counts twice, and lists of
    lists of lists may stand for more than any memory holds."""
    sizes: dict[int, int] = {}
    under_way: set[int] = set()

    def size_of(value: Any, depth: int) -> int:
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if depth > MOST_DEPTH or id(value) in under_way:
            raise ForeignError("is nested too deeply for a checkpoint of Imago. It was not read.")
        if id(value) not in sizes:
            under_way.add(id(value))
            parts: Iterable[Any] = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size_of(part, depth + 1) for part in parts)
            under_way.discard(id(value))
        if sizes[id(value)] > MOST_NODES:
            raise ForeignError("expands to more than any checkpoint of Imago. It was not read.")
        return sizes[id(value)]

    size_of(content, 0)

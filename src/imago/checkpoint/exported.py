"""The file of `ml-export`: weights as safetensors, and in its metadata what is needed to predict with them.

It is read like a stranger's checkpoint, wherever it comes from: it has no signature.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imago.checkpoint.fits import NET_CODE
from imago.checkpoint.read import SCHEMA, Checkpoint, check_entry, read_checkpoint
from imago.definitions import is_export
from imago.errors import MissingFileError, UserError
from imago.files import atomic_write, strict

NET = "net."
"""Prefix of the network's tensors in a checkpoint."""
CHECKSUM = "sha256"
"""Entry of the metadata by which damage is noticed; it protects from nobody who changes the file on purpose."""
NOT_RECORDED: dict[str, Any] = {
    "data": {"fingerprint": "", "counts": {}},
    "drawn_val": None,
    "history": [],
    "progress": {},
    "strategy": {},
}
"""Entries of a checkpoint that an export lacks."""


def write_export(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> None:
    """Write the network's tensors under their own names, and each entry of `metadata` as JSON."""
    from safetensors.torch import save

    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    texts = {name: json.dumps(strict(value)) for name, value in metadata.items()}
    texts[CHECKSUM] = json.dumps(_checksum(own, texts))
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(own, texts))


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 of the tensors of an export and of all other metadata, in the order of their names."""
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        digest.update(f"{name}\0{text}\0".encode() if name != CHECKSUM else b"")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def metadata_of(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, JSON texts; empty for other files, and for those that are damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    if not is_export(path) or not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return {}


def read_model(path: str | Path, key: str = "ckpt_path") -> Checkpoint:
    """Read a checkpoint to predict with: one of a training, or an export. Nothing in the file is executed.

    `key` is the setting that names it, for messages.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is neither, is damaged, or is from a newer version.
    """
    return _read_export(Path(path).expanduser(), key) if is_export(path) else read_checkpoint(path, key=key)


def _read_export(path: Path, key: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    where = f"{key}={path}"
    if not path.is_file():
        raise MissingFileError(f"{where} does not exist.")
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            weights = {f"{NET}{name}": file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} is damaged, or not a safetensors file: {error}") from error
    if "imago" not in texts:
        raise UserError(
            f"{where} contains weights only. Type ml-export again to predict with them, or model.net.weights={path} to "
            "train with them."
        )
    if CHECKSUM in texts:
        own = {name.removeprefix(NET): tensor for name, tensor in weights.items()}
        if texts[CHECKSUM] != json.dumps(_checksum(own, texts)):
            raise UserError(f"{where} is damaged: its {CHECKSUM} is another. Copy it again, or type ml-export again.")
    try:
        entry, names, versions = (json.loads(texts.get(key, "null")) for key in ("imago", "class_names", "versions"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: its metadata are not JSON.") from error
    if isinstance(entry, dict):
        entry = NOT_RECORDED | entry | {"class_names": names, "versions": versions}
    checkpoint = {"state_dict": weights, "imago": entry}
    check_entry(checkpoint, where)
    return checkpoint


def export_entry(entry: Mapping[str, Any], config: str, calibration: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the entry `imago` of an export from that of its checkpoint. Nothing in it tells of the data: not even class
    counts and fingerprint, which differential privacy does not cover."""
    if calibration is not None:
        calibration = {**calibration, "fingerprint": ""}
    kept = {key: entry[key] for key in ("timestamp", NET_CODE) if key in entry}
    return {"schema": SCHEMA, "config": config, "calibration": calibration, **kept}

"""The formats that other software runs: made, compared with the checkpoint, and only then put in place."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imago.data.module import ImageDataModule
from imago.definitions import __version__
from imago.errors import UserError
from imago.evaluation.classifier import Classifier
from imago.exporting.front import check_box
from imago.exporting.images import cases_of_split, odd_cases, spread
from imago.exporting.network import PROBABILITIES, bytes_of, exported_program, further_outputs, network_model
from imago.exporting.onnx_file import onnx_model, write_onnx
from imago.exporting.precision import to_half, to_int8
from imago.exporting.proof import Case, Proof, compare
from imago.exporting.runners import Bytes, CheckpointRunner, OnnxRunner, ProgramRunner, Runner
from imago.exporting.speed import measured
from imago.files import atomic_write, strict, write_json

RANGE_IMAGES = 128
"""Images of val by which the ranges of 8-bit activations are chosen."""


@dataclass(frozen=True)
class Terms:
    """Conditions of a proof: `images` of the test split are compared, `allow_flips` predictions may be others, and a
    probability may differ by `tolerance`, None by any number."""

    images: int
    allow_flips: int
    tolerance: float | None


class ProvenExport:
    """One export: the file, its proof and its speed.

    Args:
        classifier: The checkpoint, with its calibration.
        kind: `onnx`, `onnx_fp16`, `onnx_int8` or `torch_export`.
        metadata: Entries of the file, as plain types.
        data: The data of the run, if they are here and may be used.
    """

    def __init__(
        self, classifier: Classifier, kind: str, metadata: Mapping[str, Any], data: ImageDataModule | None
    ) -> None:
        if kind != "torch_export":
            check_box(classifier.transform.box)
        self.classifier = classifier
        self.kind = kind
        self.metadata = metadata
        self.data = data
        self.proof = Proof()
        self.record: dict[str, Any] = {}

    @property
    def split(self) -> str:
        """Split whose images are compared."""
        return self.data.scored_split("test") if self.data is not None else "test"

    def write(self, path: Path, terms: Terms, record_file: Path) -> None:
        """Write the file, compare it with the checkpoint, and put it in place.

        Raises:
            UserError: It does not answer as the checkpoint does. Then `record_file` says more, and there is no file.
        """
        before = CheckpointRunner(self.classifier, further_outputs(self.classifier))
        with atomic_write(path) as temporary:
            after = self._make(temporary, before)
            names, threshold = self.classifier.class_names, self.metadata.get("threshold")
            self.proof = compare(before, after, self._cases(terms.images), names, threshold)
            problems = [*self.proof.problems(terms.allow_flips, terms.tolerance)]
            self.record = self._record(temporary, terms, problems)
            if not problems:
                self.record["speed"] = measured(before, after, self._picture())
            write_json(record_file, self.record)
            self.proof.check(terms.allow_flips, terms.tolerance)

    def _make(self, file: Path, before: CheckpointRunner) -> Runner:
        metadata = {**self.metadata, "outputs": [PROBABILITIES, *before.outputs]}
        if self.kind == "torch_export":
            content = io.BytesIO()
            texts = {"metadata.json": json.dumps(strict(metadata))}
            torch.export.save(exported_program(self.classifier, before.outputs), content, extra_files=texts)
            file.write_bytes(content.getvalue())
            return ProgramRunner(file, before)
        network = network_model(self.classifier, before.outputs)
        if self.kind == "onnx_fp16":
            network = to_half(network)
        if self.kind == "onnx_int8":
            network = to_int8(network, self._range_pixels(before), file.parent)
        write_onnx(onnx_model(self.classifier, network), metadata, file)
        return OnnxRunner(file)

    def _range_pixels(self, before: CheckpointRunner) -> list[Bytes]:
        """Images of val as the network sees them, uint8 (1, channels, *size)."""
        if self.data is None:
            raise UserError(
                "format=onnx_int8 needs the images of the run's val split, by which the range of each activation is "
                "chosen. Those of a private run are never used. Type format=onnx_fp16, or for another run "
                "data.data_dir=PATH"
            )
        images = self.data.split(self.data.scored_split("val"))
        cases = cases_of_split(images, RANGE_IMAGES, self.classifier.channels)
        return [before.seen(case.pixels) for case in cases]

    def _cases(self, count: int) -> Iterable[Case]:
        own: Iterator[Case] = iter(())
        if self.data is not None and count:
            own = cases_of_split(self.data.split(self.split), count, self.classifier.channels)
        return chain(own, odd_cases(self.classifier))

    def _picture(self) -> Bytes:
        """Image for the measurement of speed: one of the split, or noise of a photograph's size."""
        if self.data is not None and len(spread(images := self.data.split(self.split), 1)):
            return next(cases_of_split(images, 1, self.classifier.channels)).pixels
        shape = (375, 500, self.classifier.channels)
        return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)

    def _record(self, file: Path, terms: Terms, problems: list[str]) -> dict[str, Any]:
        return {
            "format": self.kind,
            "checkpoint": self.classifier.checkpoint["timestamp"],
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "bytes": file.stat().st_size,
            "weights_bytes": bytes_of(self.classifier),
            "split": self.split if self.proof.test else None,
            **self.proof.record(),
            "allow_flips": terms.allow_flips,
            "tolerance": terms.tolerance,
            "problems": problems,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"imago": __version__}
    for name in ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions

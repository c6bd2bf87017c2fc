"""Calibration of probabilities: calibration error, temperature, and which images to flag for review."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from scipy.optimize import minimize_scalar

from imago.definitions import is_export
from imago.errors import UserError
from imago.evaluation.from_config import looks
from imago.files import MISFIT, NUMBER, fitting, read_json, write_json
from imago.terminal import counted

log = logging.getLogger(__name__)

BINS = 15
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.05, 20.0
LEAST_MISTAKES, FOLDS = 10, 5
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Images whose most likely class has a probability above `low` and at most `high`."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(log_probabilities: Floats, labels: Ints, bins: int = BINS) -> list[Bin]:
    """Bins of equal width that have images; `log_probabilities` is float64 (n, classes), `labels` int64 (n,)."""
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = log_probabilities.argmax(axis=1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    full_bins = []
    for place in np.unique(number):
        chosen = number == place
        of_bin = (int(chosen.sum()), float(confidence[chosen].mean()), float(correct[chosen].mean()))
        full_bins.append(Bin(float(place / bins), float((place + 1) / bins), *of_bin))
    return full_bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean distance of confidence and accuracy over the images, in [0, 1] (Naeini et al. 2015; Guo et al. 2017)."""
    return sum(entry.n * abs(entry.confidence - entry.accuracy) for entry in bins) / sum(entry.n for entry in bins)


SHAPE = {
    **dict.fromkeys(("temperature!", "target_accuracy!", "quantile!", "coverage!"), NUMBER),
    "threshold!": (*NUMBER, type(None)),
    "n!": int,
    **dict.fromkeys(("fingerprint!", "checkpoint!"), str),
    "held_out": {"*": NUMBER},
    "why_not": (str, type(None)),
}
"""The content of a calibration file."""


@dataclass(frozen=True)
class Calibration:
    """Calibration of one checkpoint, fitted on the val split.

    `temperature` divides the logits (Guo et al. 2017). `threshold` is the least calibrated probability of an accepted
    prediction; None if no threshold reaches `target_accuracy`. A class belongs to the conformal set of an image if its
    calibrated probability is at least 1 - `quantile` (Sadinle et al. 2019); the most likely one always does.
    `checkpoint` is the `key_of` the checkpoint and of the way in which it saw the images. `held_out` has cross-entropy
    and calibration error without and with a temperature, on fifths of val that it was not fitted on; `why_not` says why
    the temperature is 1, if none was found that helps there.
    """

    temperature: float
    threshold: float | None
    target_accuracy: float
    quantile: float
    coverage: float
    n: int
    fingerprint: str
    checkpoint: str
    held_out: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None

    def apply(self, log_probabilities: Floats) -> Floats:
        """Calibrate log-probabilities, float64 (n, classes). Returns the same shape."""
        return _scaled(log_probabilities, self.temperature)

    def accepts(self, calibrated: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the images that are accepted rather than flagged for review; `calibrated` is (n, classes)."""
        if self.threshold is None:
            return np.zeros(len(calibrated), dtype=bool)
        return np.exp(calibrated.max(axis=1)) >= self.threshold

    def sets(self, calibrated: Floats) -> NDArray[np.bool_]:
        """Mask (n, classes) of the classes in the conformal set of each image; `calibrated` is (n, classes)."""
        inside = np.exp(calibrated) >= 1 - self.quantile
        inside[np.arange(len(inside)), calibrated.argmax(axis=1)] = True
        return inside

    def measured(self, log_probabilities: Floats, labels: Ints) -> dict[str, Any]:
        """Metrics on a split, such as calibration error, and accuracy and fraction of the images that are accepted.

        `log_probabilities` is float64 (n, classes), not calibrated; `labels` is int64 (n,).
        """
        calibrated = self.apply(log_probabilities)
        accepted, correct = self.accepts(calibrated), calibrated.argmax(axis=1) == labels
        inside, rows = self.sets(calibrated), np.arange(len(labels))
        return {
            "temperature": self.temperature,
            "ece": expected_calibration_error(reliability(calibrated, labels)),
            "cross_entropy": float(-calibrated[rows, labels].mean()),
            "cross_entropy_before": float(-log_probabilities[rows, labels].mean()),
            "threshold": self.threshold,
            "accepted_share": float(accepted.mean()),
            "accepted_acc": float(correct[accepted].mean()) if accepted.any() else None,
            "set_coverage": float(inside[rows, labels].mean()),
            "set_size": float(inside.sum(axis=1).mean()),
        }


def fit(
    log_probabilities: Floats, labels: Ints, target_accuracy: float, coverage: float, fingerprint: str, checkpoint: str
) -> Calibration:
    """Fit the calibration of a checkpoint to val: `log_probabilities` float64 (n, classes), `labels` int64 (n,)."""
    temperature, held_out, why_not = _helpful_temperature(log_probabilities, labels)
    plain = Calibration(temperature, None, target_accuracy, 1.0, coverage, len(labels), fingerprint, checkpoint)
    calibrated = plain.apply(log_probabilities)
    threshold = _threshold(calibrated, labels, target_accuracy)
    quantile = _quantile(1 - np.exp(calibrated[np.arange(len(labels)), labels]), coverage)
    return Calibration(
        *(temperature, threshold, target_accuracy, quantile, coverage, len(labels), fingerprint, checkpoint),
        held_out=held_out,
        why_not=why_not,
    )


def _helpful_temperature(log_probabilities: Floats, labels: Ints) -> tuple[float, dict[str, float], str | None]:
    """Temperature, its effect on images that it was not fitted on, and the reason if it has to be 1.

    Without mistakes the cross-entropy falls towards a temperature of 0, which is far too sure of new images. There have
    to be some mistakes, and the temperature has to help on the fifths of the images when it is fitted on the others.
    """
    n, mistakes = len(labels), int((log_probabilities.argmax(axis=1) != labels).sum())
    if mistakes < LEAST_MISTAKES:
        wanted = math.ceil(LEAST_MISTAKES * (n + 2) / (mistakes + 1) / 10) * 10
        few = f"{counted(mistakes, 'mistake')} on {counted(n, 'image')} are too few to fit one"
        why = f"{few}; about {wanted} images are needed"
        return 1.0, {}, why
    calibrated = np.empty_like(log_probabilities)
    for fold in range(FOLDS):
        out = np.arange(n) % FOLDS == fold
        calibrated[out] = _scaled(log_probabilities[out], _temperature(log_probabilities[~out], labels[~out]))
    held_out = {}
    for name, log_p in (("before", log_probabilities), ("after", calibrated)):
        held_out[f"cross_entropy_{name}"] = float(-log_p[np.arange(n), labels].mean())
        held_out[f"ece_{name}"] = expected_calibration_error(reliability(log_p, labels))
    temperature = _temperature(log_probabilities, labels)
    if not LEAST_TEMPERATURE * 1.01 < temperature < GREATEST_TEMPERATURE / 1.01:
        return 1.0, held_out, f"the best one, {temperature:.3g}, is at the limit of the range that is searched"
    if not held_out["cross_entropy_after"] < held_out["cross_entropy_before"]:
        return 1.0, held_out, "it does not help on held-out images"
    return temperature, held_out, None


def _scaled(log_probabilities: Floats, temperature: float) -> Floats:
    scaled = log_probabilities / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def _temperature(log_probabilities: Floats, labels: Ints) -> float:
    """Temperature with the least cross-entropy."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_probabilities / math.exp(log_temperature)
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[rows, labels]).mean())

    bounds = (math.log(LEAST_TEMPERATURE), math.log(GREATEST_TEMPERATURE))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def _threshold(calibrated: Floats, labels: Ints, target: float) -> float | None:
    """Least confidence above which a fraction `target` of the answers is right; None if there is none."""
    confidence, correct = np.exp(calibrated.max(axis=1)), calibrated.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    accuracy = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    last_of_equals = np.append(confidence[order][1:] != confidence[order][:-1], True)
    reached = np.flatnonzero((accuracy >= target) & last_of_equals)
    return float(confidence[order][reached[-1]]) if len(reached) else None


def _quantile(scores: Floats, coverage: float) -> float:
    """Split-conformal quantile, of rank ceil((n + 1) * coverage) of n (Vovk et al. 2005); 1 if n is too small."""
    rank = math.ceil((len(scores) + 1) * coverage)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


FITTED_HERE = (
    "fitted on these images, which makes it look too good (for an honest score type split=test; without a test split, "
    "train with data.test_ratio=0.2)"
)


def describe_calibration(measured: dict[str, Any]) -> str:
    """Text such as `cross-entropy 0.4215 -> 0.3874; 99.1% right on the 82% accepted, 18% flagged for review`, after
    `FITTED_HERE` where the same images determined the calibration."""
    text = f"{FITTED_HERE}: " if measured.get("fitted_here") else ""
    if measured["temperature"] != 1:
        before, after = measured["cross_entropy_before"], measured["cross_entropy"]
        worse = ", worse than without the temperature" if after > before else ""
        text += f"cross-entropy {before:.4f} -> {after:.4f}{worse}; "
    if measured["accepted_acc"] is None:
        return f"{text}all images flagged for review: no threshold reaches the target"
    share = measured["accepted_share"]
    return f"{text}{measured['accepted_acc']:.1%} right on the {share:.0%} accepted, {1 - share:.0%} flagged for review"


def key_of(timestamp: str, data: DictConfig) -> str:
    """Key of a calibration: the time stamp of the checkpoint, and a hash of image size and evaluation transform."""
    return f"{timestamp} {hashlib.sha256(json.dumps(looks(data), sort_keys=True).encode()).hexdigest()[:16]}"


def file_beside(checkpoint: Path) -> Path:
    """Path of the calibration of a checkpoint."""
    return checkpoint.with_suffix(".calibration.json")


def write(calibration: Calibration, path: Path) -> None:
    """Write the calibration as JSON."""
    write_json(path, asdict(calibration))


def calibration_of(entry: Mapping[str, Any], data: DictConfig, checkpoint: Path) -> Calibration:
    """Read the calibration of a checkpoint with the entry `imago` and the settings `data`: that in an export, or the
    file beside the checkpoint.

    Raises:
        ValueError: There is none, or it is for another checkpoint or transform.
    """
    key = key_of(entry["timestamp"], data)
    if not is_export(checkpoint):
        return read(file_beside(checkpoint), key)
    how = "Type ml-eval ckpt_path=RUN calibrate=true, and then ml-export ckpt_path=RUN again."
    if entry.get("calibration") is None:
        raise UserError(f"There is no calibration in {checkpoint}. {how}")
    return _checked(fitting(entry["calibration"], SHAPE), checkpoint, key, how)


def read(path: Path, checkpoint: str) -> Calibration:
    """Read the calibration in a file, for the checkpoint with that `key_of`.

    Raises:
        ValueError: There is none, or it is for another checkpoint.
    """
    file = path.with_name(path.name.replace(".calibration.json", ".ckpt"))
    how = f"To fit it: ml-eval ckpt_path={file} calibrate=true"
    if not path.is_file():
        raise UserError(f"There is no calibration at {path}. {how}")
    try:
        content = read_json(path, SHAPE)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a calibration ({error}). {how}") from error
    return _checked(content, path, checkpoint, how)


def _is_in_range(content: Mapping[str, Any]) -> bool:
    """Whether the numbers of a calibration file can be those of a calibration."""
    shares = [content[key] for key in ("threshold", "quantile", "target_accuracy", "coverage")]
    return 0 < content["temperature"] < math.inf and all(share is None or 0 <= share <= 1 for share in shares)


def _checked(content: Any, path: Path, checkpoint: str, how: str) -> Calibration:
    if content is MISFIT or not _is_in_range(content):
        raise UserError(f"The calibration in {path} is damaged. {how}")
    calibration = Calibration(**content)
    if calibration.checkpoint != checkpoint:
        raise UserError(f"{path} was fitted for another checkpoint, or with another transform. {how}")
    if calibration.why_not is not None:
        log.warning("%s leaves the probabilities as they are (temperature 1): %s", path.name, calibration.why_not)
    return calibration

"""Calibration error, and the temperature that makes probabilities as sure as they are right."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from imago.terminal import counted

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


def helpful_temperature(log_probabilities: Floats, labels: Ints) -> tuple[float, dict[str, float], str | None]:
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
        calibrated[out] = scaled(log_probabilities[out], _temperature(log_probabilities[~out], labels[~out]))
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


def scaled(log_probabilities: Floats, temperature: float) -> Floats:
    """Divide the logits by a temperature, float64 (n, classes). Returns log-probabilities of that shape."""
    divided = log_probabilities / temperature
    divided = divided - divided.max(axis=1, keepdims=True)
    return divided - np.log(np.exp(divided).sum(axis=1, keepdims=True))


def _temperature(log_probabilities: Floats, labels: Ints) -> float:
    """Temperature with the least cross-entropy."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        divided = log_probabilities / math.exp(log_temperature)
        return float((np.logaddexp.reduce(divided, axis=1) - divided[rows, labels]).mean())

    bounds = (math.log(LEAST_TEMPERATURE), math.log(GREATEST_TEMPERATURE))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)

"""Calibration of a checkpoint: temperature, the threshold of accepted predictions, and conformal sets."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imago.definitions import CALIBRATION
from imago.evaluation.conformal import set_thresholds
from imago.evaluation.promise import Promise, estimated_threshold, first_threshold, promised_threshold
from imago.evaluation.temperature import (
    Floats,
    Ints,
    expected_calibration_error,
    helpful_temperature,
    reliability,
    scaled,
)
from imago.terminal import counted, percent_down, shortened, threshold_text

FITTED_ON = ("val", CALIBRATION)
"""Splits that determine a calibration."""
LOOK = ("target_accuracy", "confidence", "n", "threshold", "fingerprint")


class Answers(NamedTuple):
    """Predictions for images with a label: `log_probabilities` float64 (n, classes), `labels` int64 (n,)."""

    log_probabilities: Floats
    labels: Ints


class Wanted(NamedTuple):
    """Settings of a calibration: the accuracy of accepted predictions and the confidence with which it is promised, and
    the fraction of images whose set has the true class."""

    target_accuracy: float
    confidence: float
    coverage: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of one checkpoint.

    `temperature` divides the logits (Guo et al. 2017). `threshold` is the least calibrated probability of an accepted
    prediction: with `confidence`, at least `target_accuracy` of these are right; None if no threshold could be shown to
    reach it. Without a `confidence`, it is an estimate from the images that chose the checkpoint, and promises nothing.
    A class belongs to the conformal set of an image if its calibrated probability is at least that of its place in
    `set_thresholds`; the most likely class always does. `n` images determined threshold and sets. `checkpoint` is the
    `key_of` the checkpoint and of the way in which it saw the images. `evidence` has the numbers of the promise.
    `held_out` has cross-entropy and calibration error without and with a temperature, on fifths of val that it was not
    fitted on; `why_not` says why the temperature is 1, if none was found that helps there. `looks` are the earlier
    calibrations of this checkpoint by a calibration split, each a chance of a false promise. `settings` are the typed
    ones that change how images are seen: the calibration is valid with these only.
    """

    temperature: float
    threshold: float | None
    target_accuracy: float
    confidence: float | None
    set_thresholds: list[float]
    coverage: float
    n: int
    fingerprint: str
    checkpoint: str
    evidence: dict[str, int | None] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None
    looks: list[dict[str, Any]] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)

    @property
    def look(self) -> dict[str, Any]:
        """This calibration as one of the `looks` of a later one."""
        return {key: getattr(self, key) for key in LOOK}

    def apply(self, log_probabilities: Floats) -> Floats:
        """Calibrate log-probabilities, float64 (n, classes). Returns the same shape."""
        return scaled(log_probabilities, self.temperature)

    def accepts(self, calibrated: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the images that are accepted rather than flagged for review; `calibrated` is (n, classes)."""
        if self.threshold is None:
            return np.zeros(len(calibrated), dtype=bool)
        return np.exp(calibrated.max(axis=1)) >= self.threshold

    def sets(self, calibrated: Floats) -> NDArray[np.bool_]:
        """Mask (n, classes) of the classes in the conformal set of each image; `calibrated` is (n, classes)."""
        inside = np.exp(calibrated) >= np.array(self.set_thresholds)
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
            "target_accuracy": self.target_accuracy,
            "confidence": self.confidence,
            "accepted_share": float(accepted.mean()),
            "accepted_acc": float(correct[accepted].mean()) if accepted.any() else None,
            "set_coverage": float(inside[rows, labels].mean()),
            "set_size": float(inside.sum(axis=1).mean()),
        }


def fit(val: Answers, unseen: Answers | None, wanted: Wanted, fingerprint: str, checkpoint: str) -> Calibration:
    """Fit the calibration of a checkpoint: the temperature to val, threshold and sets to `unseen` images, which neither
    trained nor chose it. Without these, threshold and sets are estimates from val."""
    temperature, held_out, why_not = helpful_temperature(*val)
    of_val = scaled(val.log_probabilities, temperature), val.labels
    if unseen is None:
        determining = of_val
        promise = Promise(estimated_threshold(*of_val, wanted.target_accuracy), 0, 0)
    else:
        determining = scaled(unseen.log_probabilities, temperature), unseen.labels
        promised = wanted.target_accuracy, wanted.confidence
        first = first_threshold(*of_val, len(unseen.labels), *promised)
        promise = promised_threshold(*determining, first, *promised)
    return Calibration(
        temperature=temperature,
        threshold=promise.threshold,
        target_accuracy=wanted.target_accuracy,
        confidence=wanted.confidence if unseen is not None else None,
        set_thresholds=set_thresholds(*determining, wanted.coverage).tolist(),
        coverage=wanted.coverage,
        n=len(determining[1]),
        fingerprint=fingerprint,
        checkpoint=checkpoint,
        evidence=promise.evidence if unseen is not None else {},
        held_out=held_out,
        why_not=why_not,
    )


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
        none = "no threshold reaches the target" if measured["threshold"] is None else "none is above the threshold"
        return f"{text}all images flagged for review: {none}"
    share = measured["accepted_share"]
    return f"{text}{measured['accepted_acc']:.1%} right on the {share:.0%} accepted, {1 - share:.0%} flagged for review"


def describe_threshold(calibration: Calibration) -> str:
    """Sentence that says what is promised of accepted predictions, and by what evidence; or why nothing is."""
    target, evidence, images = percent_down(calibration.target_accuracy), calibration.evidence, calibration.n
    threshold = None if calibration.threshold is None else threshold_text(calibration.threshold)
    if calibration.confidence is None:
        return (
            f"Threshold for {target} accuracy: {threshold or 'no threshold reaches it'}. It is an estimate, and "
            "promises nothing: no images were set aside for it. For a promise, train with data.calibration_ratio=0.5"
        )
    confidence = percent_down(calibration.confidence)
    seen = f"{evidence['wrong']} of the {evidence['accepted']} accepted ones wrong"
    if threshold is not None:
        return (
            f"Promise: with confidence {confidence}, at least {target} of the accepted predictions are right, on new "
            f"images like those of calibration. Threshold {threshold}: of {images} images, {seen}"
        )
    needed = evidence["needed"]
    how = f"about {needed:,} new ones would do" if needed is not None else f"{seen}. Type a smaller target_accuracy"
    return (
        f"{target} accuracy cannot be promised with {counted(images, 'image')} (confidence {confidence}): {how}. No "
        "prediction is accepted"
    )


def describe_looks(calibration: Calibration) -> str:
    """Sentence about the earlier looks at images of calibration; empty without any."""
    if not calibration.looks or calibration.confidence is None:
        return ""
    number = len(calibration.looks) + 1
    planned = threshold_text(1 - (1 - calibration.confidence) / number)
    return (
        f"This is look {number} at images of calibration; before: {shortened(map(_asked, calibration.looks))}. Each "
        f"look is a further chance of a false promise: who plans {number} types confidence={planned} for each "
        "(docs/evaluation.md)"
    )


def _asked(look: dict[str, Any]) -> str:
    """One of the `looks` in words."""
    target, confidence = percent_down(look["target_accuracy"]), percent_down(look["confidence"])
    outcome = "" if look["threshold"] is not None else " (not promised)"
    return f"{target} with confidence {confidence} by {counted(look['n'], 'image')}{outcome}"


def describe_guarantee(calibration: Calibration) -> str:
    """Phrase that says how many accepted predictions are right, as `99% right, promised with confidence 95%`."""
    right = f"{percent_down(calibration.target_accuracy)} right"
    if calibration.confidence is None:
        return f"{right} is an estimate, without a promise"
    if calibration.threshold is None:
        return f"{right} cannot be promised"
    confidence = percent_down(calibration.confidence)
    return f"{right}, promised with confidence {confidence} for images like those of calibration"

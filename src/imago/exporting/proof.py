"""Proof of an export: it answers as its checkpoint does, on images of the data and on a set of odd ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from imago.errors import UserError
from imago.exporting.runners import Bytes, Floats, Runner, top_two
from imago.terminal import counted, shortened

BATCHES = (1, 17)
"""Images that go through the network at a time: the usual number on a server, and one that is no power of two."""
MOST_OFF = 0.005
"""Fraction of the values behind crop and resize that may differ, by one grey level. Here none does, and 16% do with
ONNX's own resize."""
MOST_SHOWN = 10


@dataclass(frozen=True)
class Case:
    """An image of the proof, uint8 (height, width, channels); `label` is that of a labelled one."""

    name: str
    pixels: Bytes
    label: int | None = None
    is_odd: bool = False


@dataclass(frozen=True)
class Flip:
    """An image whose most likely class is another one, or that is accepted by one of the two only; `margin` is by how
    much it was the likeliest, or how far its probability was from the threshold."""

    image: str
    batch: int
    before: str
    after: str
    margin: float


@dataclass
class Proof:
    """Comparison of a file with its checkpoint.

    `differences` maps a batch size to the greatest difference of a probability, and `outputs` a further output to the
    greatest difference of its values, as a fraction of the greatest one where that is above 1; `off` is the fraction of
    differing values behind crop and resize, and `levels` their greatest difference; `right` counts correct answers on
    labelled images, before and after.
    """

    test: int = 0
    odd: int = 0
    flips: list[Flip] = field(default_factory=list)
    differences: dict[int, float] = field(default_factory=lambda: dict.fromkeys(BATCHES, 0.0))
    outputs: dict[str, float] = field(default_factory=dict)
    off: float = 0.0
    levels: int = 0
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def greatest(self) -> float:
        """Greatest difference of a probability; infinite if one is no number."""
        return max(self.differences.values())

    def problems(self, allow_flips: int, tolerance: float | None) -> Iterator[str]:
        """Yield why the export is refused."""
        if len(self.flips) > allow_flips:
            shown = [
                f"{flip.image} (batch of {flip.batch}): {flip.before} -> {flip.after}, margin {flip.margin:.2g}"
                for flip in self.flips
            ]
            listed = "\n  ".join([*shown[:MOST_SHOWN], *["…"] * (len(shown) > MOST_SHOWN)])
            yield f"{counted(len(self.flips), 'prediction')} flipped:\n  {listed}"
        if not np.isfinite(self.greatest):
            yield "a probability is not a number"
        elif tolerance is not None and not self.greatest <= tolerance:
            yield f"a probability differs by {self.greatest:.2g}, and tolerance is {tolerance:g}"
        for name, gap in self.outputs.items():
            if tolerance is not None and not gap <= tolerance:
                yield f"the output {name} differs by {gap:.2g}, and tolerance is {tolerance:g}"
        if self.off > MOST_OFF or self.levels > 1:
            yield (
                f"{self.off:.2%} of the values behind crop and resize differ, by up to "
                f"{counted(self.levels, 'grey level')}"
            )

    def check(self, allow_flips: int, tolerance: float | None) -> None:
        """Raise UserError if the export does not answer as its checkpoint does."""
        if reasons := [*self.problems(allow_flips, tolerance)]:
            flips = len(self.flips)
            way = f" To accept the flips: allow_flips={flips}" if flips > allow_flips and len(reasons) == 1 else ""
            raise UserError(f"The export does not answer as its checkpoint does: {'; '.join(reasons)}.{way}")

    def record(self) -> dict[str, Any]:
        """Return the content of `export.json`."""
        accuracy = None
        if self.labelled:
            before, after = (right / self.labelled for right in self.right)
            accuracy = {"before": before, "after": after, "images": self.labelled}
        return {
            "images": {"test": self.test, "odd": self.odd},
            "flips": [asdict(flip) for flip in self.flips],
            "greatest_difference": {str(size): value for size, value in self.differences.items()},
            "outputs": self.outputs,
            "pixels": {"off": self.off, "levels": self.levels},
            "accuracy": accuracy,
        }


def compare(
    before: Runner,
    after: Runner,
    cases: Iterable[Case],
    class_names: Sequence[str],
    threshold: float | None = None,
) -> Proof:
    """Compare a file with its checkpoint, image by image, and in batches of the largest of BATCHES. With a `threshold`,
    the same predictions must be accepted."""
    proof, values, off = Proof(), 0, 0
    answer = _Answer(class_names, threshold)
    remaining = iter(cases)
    while chunk := list(islice(remaining, max(BATCHES))):
        seen = [before.seen(case.pixels) for case in chunk]
        own = [after.seen(case.pixels) for case in chunk]
        for wanted, pixels in zip(seen, own, strict=True):
            gaps = np.abs(wanted.astype(int) - pixels)
            values, off = values + gaps.size, off + int((gaps > 0).sum())
            proof.levels = max(proof.levels, int(gaps.max()))
        expected, answers = (
            np.concatenate([runner.whole(case.pixels) for case in chunk]) for runner in (before, after)
        )
        _note(proof, chunk, 1, expected, answers, answer)
        _count(proof, chunk, expected, answers)
        batches = np.concatenate(seen), np.concatenate(own)
        many = before.network(batches[0]), after.network(batches[1])
        _note(proof, chunk, max(BATCHES), many[0], many[1], answer)
        _note_outputs(proof, before.further(batches[0]), after.further(batches[1]))
    proof.off = off / max(values, 1)
    return proof


@dataclass(frozen=True)
class _Answer:
    """Answers in words: the most likely class and, with a `threshold`, whether it is accepted."""

    class_names: Sequence[str]
    threshold: float | None

    def __call__(self, probabilities: Floats) -> str:
        name = self.class_names[int(probabilities.argmax())]
        if self.threshold is None:
            return name
        return f"{name} {'accepted' if probabilities.max() >= self.threshold else 'flagged for review'}"

    def margin(self, before: Floats, after: Floats) -> float:
        """How near the answer `before` was to another one."""
        if self.threshold is None or before.argmax() != after.argmax():
            return top_two(before)[1]
        return abs(float(before.max()) - self.threshold)


def _note(proof: Proof, chunk: Sequence[Case], batch: int, before: Floats, after: Floats, answer: _Answer) -> None:
    """Add the flips and the greatest difference of one batch size to a proof."""
    for case, expected, probabilities in zip(chunk, before, after, strict=True):
        gap = float(np.abs(expected - probabilities).max())
        proof.differences[batch] = max(proof.differences[batch], gap if np.isfinite(gap) else np.inf)
        if (wanted := answer(expected)) != (got := answer(probabilities)):
            proof.flips.append(Flip(case.name, batch, wanted, got, answer.margin(expected, probabilities)))


def _note_outputs(proof: Proof, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Add the greatest differences of further outputs to a proof."""
    for name, expected in before.items():
        wanted, values = expected.astype(float), after[name].astype(float)
        gap = float(np.abs(wanted - values).max(initial=0.0) / np.abs(wanted).max(initial=1.0))
        proof.outputs[name] = max(proof.outputs.get(name, 0.0), gap if np.isfinite(gap) else np.inf)


def _count(proof: Proof, chunk: Sequence[Case], before: Floats, after: Floats) -> None:
    for case, expected, probabilities in zip(chunk, before, after, strict=True):
        proof.odd += case.is_odd
        proof.test += not case.is_odd
        if case.label is not None:
            proof.labelled += 1
            proof.right[0] += int(expected.argmax()) == case.label
            proof.right[1] += int(probabilities.argmax()) == case.label


def describe(proof: Proof, split: str) -> list[str]:
    """Lines for the console: what was compared, and what differed."""
    kinds = [f"{counted(proof.test, 'image')} of {split}"] * (proof.test > 0) + [f"{proof.odd} odd images"]
    sizes = " and ".join(map(str, BATCHES))
    flipped = {flip.image for flip in proof.flips}
    flips = f"{counted(len(proof.flips), 'flip')} ({shortened(sorted(flipped))})" if flipped else "0 flips"
    lines = [
        f"Compared with its checkpoint on {' and '.join(kinds)}, in batches of {sizes}: {flips}, probabilities differ "
        f"by {proof.greatest:.1e} at most, pixels in {proof.off:.2%} of the values"
    ]
    if proof.outputs:
        gap = max(proof.outputs.values())
        lines.append(f"Further outputs: {', '.join(proof.outputs)}, which differ by {gap:.1e} at most")
    if proof.labelled:
        before, after = (right / proof.labelled for right in proof.right)
        lines.append(f"Accuracy on these {counted(proof.labelled, 'image')}: {before:.4f} -> {after:.4f}")
    return lines

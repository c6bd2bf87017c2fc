"""The prediction for one image, as Python code and notebooks see it."""

from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True, repr=False)
class Prediction:
    """Prediction for one image. Probabilities are from 0 to 1, and add up to 1 over all classes.

    Args:
        class_name: The predicted class; None if the image could not be read.
        probability: Probability of that class; None if the image could not be read.
        probabilities: Probability of each class, in the order of `Classifier.class_names`; empty with an `error`.
        top: The most likely classes with their probabilities, most likely first; empty with an `error`.
        error: The reason why the image could not be read; None for a readable one.
        accepted: Only of a calibrated classifier: False if the prediction is flagged for review.
        set: Only of a calibrated classifier: the classes of the conformal prediction set.
        warning: What is wrong with a file that could be read all the same, such as a JPEG that is damaged inside.
    """

    class_name: str | None
    probability: float | None
    probabilities: dict[str, float] = field(default_factory=dict)
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None
    accepted: bool | None = None
    set: list[str] | None = None
    warning: str | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction(error={self.error!r})"
        calibrated = "" if self.accepted is None else f", accepted={self.accepted}, set={self.set}"
        warning = "" if self.warning is None else f", warning={self.warning!r}"
        return f"Prediction({self.class_name!r}, {self.probability:.4f}{calibrated}{warning})"

    def _repr_html_(self) -> str:
        """Return a table of the most likely classes, as notebooks show it."""
        if self.error is not None:
            return f"<p>Unreadable image: {escape(self.error)}</p>"
        bar = '<td><meter min="0" max="1" value="{0:.4f}"></meter></td><td>{0:.4f}</td>'
        rows = "".join(f"<tr><th>{escape(name)}</th>{bar.format(share)}</tr>" for name, share in self.top)
        note = "<p>Flagged for review</p>" if self.accepted is False else ""
        note += f"<p>{escape(self.warning)}</p>" if self.warning is not None else ""
        return f"<table><tbody>{rows}</tbody></table>{note}"

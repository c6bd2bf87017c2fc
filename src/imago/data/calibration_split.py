"""The calibration split: images that neither train a network nor choose its checkpoint."""

from collections.abc import Mapping
from typing import Any

from imago.data.drawn_splits import MOST_OF_TRAIN
from imago.data.images import ImageSets
from imago.definitions import CALIBRATION
from imago.errors import UserError


def draw_calibration(
    sets: ImageSets, calibration_ratio: float, seed: int, recorded: Mapping[str, Any] | None = None
) -> None:
    """Make a stratified fraction of val the calibration split; a ratio of 0 draws none.

    Raises:
        ValueError: There is a calibration split, the fraction is out of range, or val has too few images.
    """
    if not calibration_ratio:
        return
    setting = f"data.calibration_ratio={calibration_ratio}"
    if CALIBRATION in sets.splits:
        raise UserError(
            f"{setting}: {sets.root} has a calibration split already, so none is drawn from val. Leave it out, or type "
            "data.calibration_ratio=0"
        )
    if not 0 < calibration_ratio <= MOST_OF_TRAIN:
        raise UserError(
            f"{setting}: must be above 0 and at most {MOST_OF_TRAIN}, or 0 for no calibration split. For more images, "
            "type a larger data.val_ratio."
        )
    sets.drawn_calibration = sets.draw(CALIBRATION, calibration_ratio, seed, recorded, source="val")
    if "test" in sets.splits:
        sets.splits["test"] = sets.splits.pop("test")  # listed last, as elsewhere

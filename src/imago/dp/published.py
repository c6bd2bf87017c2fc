"""What was spent for weights that are published: by their checkpoint, and by the folder of its run."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imago.dp.report import UNIT, epsilon_text
from imago.files import MISFIT, NUMBER, UnreadableError, fitting, read_json
from imago.run.overview import Overview
from imago.run.spent import describe_others, others_on_same_data

log = logging.getLogger(__name__)

STATE = {"epsilon!": NUMBER, "delta!": NUMBER, "history!": [[NUMBER]]}
REPORT = {"epsilon!": (str, *NUMBER), "delta!": NUMBER, "steps!": int}
NO_BOUND = ("infinite", "unknown")
WARNED = {"warnings!": [str]}
LARGEST = 2**20  # bytes
PART = "the steps of this checkpoint; its run may have taken more"
"""Entry `counted` of the privacy of a checkpoint that is not in its run folder."""


def privacy_of(file: Path, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return epsilon (rounded up, or `infinite`), delta, unit and steps; None for weights trained without privacy.

    The best checkpoint was chosen among those of all steps. So all steps of its run count, if `file` is in its folder.

    Args:
        file: The checkpoint.
        entry: Its entry `imago`, perhaps a stranger's.
    """
    state = fitting(entry["strategy"], STATE)
    if state is MISFIT:
        return None
    steps = sum(row[-1] for row in state["history"] if row)
    spent = {"epsilon": state["epsilon"], "delta": state["delta"], "steps": steps}
    part = {} if _report_beside(file).is_file() else {"counted": PART}
    with suppress(OSError, UnreadableError):
        of_run = read_json(_report_beside(file), REPORT, LARGEST)
        if of_run["steps"] > spent["steps"]:
            spent = of_run
    if spent["epsilon"] not in NO_BOUND and not isinstance(spent["epsilon"], int | float):
        return None
    text = epsilon_text(spent["epsilon"])
    epsilon = float(text) if text[0].isdigit() else text
    return {"epsilon": epsilon, "delta": spent["delta"], "unit": UNIT, "steps": spent["steps"], **part}


def _report_beside(file: Path) -> Path:
    """Report of the run in whose folder the checkpoint `file` is."""
    return file.absolute().parent.parent / "reports" / "privacy.json"


def warn_before_publishing(
    file: Path, calibration: dict[str, Any] | None, calibration_file: Path, log_dir: Path
) -> None:
    """Warn of what the epsilon of the checkpoint `file` does not cover in its export: what its training warned of, by
    now further runs on its images below `log_dir`, and its `calibration`, which loses the scores and counts of
    the images that determined it."""
    if calibration is not None:
        calibration |= {"held_out": {}, "evidence": {}, "looks": []}
        log.warning(
            "The export contains temperature and thresholds of %s, some of which are probabilities of single images, "
            "and the number of images that determined them without noise. If these images are private, type "
            "calibration=false",
            calibration_file,
        )
    folder = file.absolute().parent.parent
    warned: list[str] = []
    try:
        warned = read_json(_report_beside(file), WARNED, LARGEST)["warnings"]
    except (OSError, UnreadableError):
        log.warning(
            "%s is not in its run folder: epsilon counts the steps before it, and its run may have taken more. Type "
            "ckpt_path=RUN",
            file,
        )
    if (folder / "status.json").is_file() and (state := Overview.read(folder).state) != "completed":
        log.warning(
            "The run has not ended (its status is %s): epsilon counts its steps so far, and whatever it trains further "
            "costs more, for this export too. Export it when it has ended",
            state,
        )
    for text in warned:
        log.warning("The training warned: %s", text)
    if data := Overview(folder).data:
        now = describe_others(others_on_same_data(folder, log_dir, data["folder"], data["fingerprint"]), log_dir)
        if now and now not in warned:
            log.warning("Counted again: %s", now)

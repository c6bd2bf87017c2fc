"""TensorBoard: a server for a folder of runs, and figures for it."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image

from imago.errors import MissingFileError, UserError
from imago.files import log_write_errors
from imago.report.plots import drawn

log = logging.getLogger(__name__)

VECTORS, PICTURES, SCORES = "vectors", "visual", "weights"
"""Groups of metrics with a value per class, of pictures, and of the scores of the weights that were kept.

TensorBoard sorts groups by the alphabet, and opens a dozen cards of the first two: those of `train/` and `val/`.
"""


def tag_of_metric(name: str) -> str:
    """Name of a metric in TensorBoard.

    One without a stage (`lr-AdamW`) is in `train/`, those of test are in `weights/`, values per class in `vectors/`.
    """
    stage, _, rest = name.partition("/")
    if not rest:
        return f"train/{name}"
    if "/" in rest and not rest.startswith("loss/"):
        return f"{VECTORS}/{name}"
    return f"{SCORES}/test_{rest}" if stage == "test" else name


def serve_tensorboard(logdir: str | Path, port: int) -> None:
    """Serve the event files below `logdir` on this machine only, until the process is interrupted.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The port is taken.
    """
    from tensorboard import program

    if not any(Path(logdir).rglob("events.out.tfevents.*")):
        raise MissingFileError(f"logdir={logdir} has no TensorBoard files: train first, or type logdir=PATH")
    board = program.TensorBoard()
    board.configure(argv=["", "--logdir", str(logdir), "--host", "localhost", "--port", str(port)])
    try:
        address = board.launch()
    except program.TensorBoardServerException as error:
        raise UserError(f"TensorBoard could not be started ({error}). Type another port=") from error
    log.info("TensorBoard shows %s at %s (Ctrl-C ends it)", logdir, address)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def show_in_tensorboard(loggers: Sequence[Logger], tag: str, figure: Figure, step: int) -> None:
    """Add the figure, at half of `DPI`, to every TensorBoard logger, as `visual/TAG`."""
    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    picture = np.asarray(Image.fromarray(drawn(figure)).reduce(2)) if boards else None
    for logger in boards:
        with log_write_errors("TensorBoardLogger"):
            logger.experiment.add_image(f"{PICTURES}/{tag}", picture, step, dataformats="HWC")

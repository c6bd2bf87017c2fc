"""TensorBoard on a folder of runs."""

import logging
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def serve_tensorboard(logdir: str | Path, port: int) -> None:
    """Serves the event files below `logdir` on this machine only, until the process is interrupted.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The port is taken.
    """
    from tensorboard import program

    if not any(Path(logdir).rglob("events.out.tfevents.*")):
        raise FileNotFoundError(f"logdir={logdir} has no TensorBoard files: train first, or type logdir=PATH")
    board = program.TensorBoard()
    board.configure(argv=["", "--logdir", str(logdir), "--host", "localhost", "--port", str(port)])
    try:
        address = board.launch()
    except program.TensorBoardServerException as error:
        raise ValueError(f"TensorBoard could not be started ({error}). Type another port=") from error
    log.info("TensorBoard shows %s at %s (Ctrl-C ends it)", logdir, address)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)

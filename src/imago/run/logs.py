"""Logging of a run: plain lines to a file in the run folder, coloured lines to a terminal."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from imago.masking import masked
from imago.terminal import console, plain

MEGABYTES = 10
MOST_WARNINGS = 100  # that a run keeps for its end; the log has all
WARNINGS = "py.warnings"
"""Logger of what `warnings.warn` reports, as in `logging.captureWarnings`."""
QUIET = ("matplotlib", "PIL", "fontTools", "filelock", "fsspec", "urllib3", "asyncio", "tensorboard", "h5py", "torch")


EXPECTED = (
    ".*overriding `LightningModule.optimizer_",  # our hook is meant to run per step
    "Found .* in eval mode at the start of training",  # model.freeze
    "GPU available but not used",  # trainer=cpu was typed
    "Image size .* exceeds limit of .* pixels, could be decompression bomb",  # twice that is refused, with its file
)
"""Warnings of libraries about what is intended."""
LIBRARIES = r"(lightning|torch|torchvision|torchmetrics)\."
"""Modules whose use of deprecated functions is their own affair."""


class PlainFormatter(logging.Formatter):
    """Formatter of time, level, logger and message, without colour codes, other control characters and secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(plain(super().format(record)))


class LogFile(RotatingFileHandler):
    """Log that starts a new file at 10 MB, and keeps the old ones."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MEGABYTES * 2**20, backupCount=100, encoding="utf-8", delay=True,
                         errors="backslashreplace")  # fmt: skip

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):  # a full disk: report it once, not once per line
            self.setLevel(logging.CRITICAL + 1)
            logging.getLogger(__name__).error("%s cannot be written: %s", self.baseFilename, sys.exc_info()[1])
        else:
            super().handleError(record)


class WarningList(logging.Handler):
    """Handler that adds each warning of the console to a list, once."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.warnings = warnings
        self.addFilter(lambda record: record.levelno == logging.WARNING and _is_news(record))
        self.setFormatter(PlainFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text not in self.warnings and len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(text)


@contextmanager
def logging_to(path: Path, verbose: bool = False, warnings_list: list[str] | None = None) -> Iterator[None]:
    """Inside, DEBUG and up go to `path`, INFO and up (DEBUG if `verbose`) to the console.

    Warnings are also added to `warnings_list`.
    """
    file = LogFile(path)
    file.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    console = _console()
    console.setLevel(logging.DEBUG if verbose else logging.INFO)
    console.addFilter(_is_news)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.setLevel(logging.DEBUG)
    root.handlers = [file, console]  # Hydra's own would log everything twice
    if warnings_list is not None:
        root.handlers.append(WarningList(warnings_list))
    for name in QUIET:  # for good: torch, for one, has something to say when the process ends
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=category, module=LIBRARIES)
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        with suppress(OSError):  # what could not be written before cannot be flushed now
            file.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record goes to the console. Lightning's remarks on its settings, and warnings of libraries about
    libraries, go to the file only."""
    if record.name == WARNINGS:
        message = record.getMessage()
        return "is deprecated" not in message and "not supported by the model summary" not in message
    chatty = record.name.startswith("lightning") and not record.name.endswith("model_summary")
    return record.levelno >= logging.WARNING or not chatty


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    del file, line
    logging.getLogger(WARNINGS).warning("%s (%s, %s:%d)", message, category.__name__, filename, lineno)


def _console() -> logging.Handler:
    if sys.stdout.isatty():
        from rich.logging import RichHandler
        from rich.text import Text

        class TerminalHandler(RichHandler):
            """Time and message; the level is shown of warnings and errors only, which leaves room for the rest."""

            def render_message(self, record: logging.LogRecord, message: str) -> Any:
                text = super().render_message(record, message)
                if record.levelno == logging.INFO or not isinstance(text, Text):
                    return text
                return Text.assemble((f"{record.levelname} ", f"logging.level.{record.levelname.lower()}"), text)

        # the console of the progress bar, so that lines go above it
        terminal = TerminalHandler(console=console(), show_path=False, show_level=False, log_time_format="%X")
        terminal.setFormatter(PlainFormatter("%(message)s"))
        return terminal
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    return handler

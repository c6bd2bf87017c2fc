"""Plain text for the terminal: names of files, classes and runs may be untrusted and contain control sequences."""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import ROUND_FLOOR, Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from imago.masking import masked

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

_ODD = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
CONTROL = re.compile(rf"[{_ODD}\t\n]")
"""Control characters, line separators, and marks that change the writing direction."""
_BUT_WHITE = re.compile(f"[{_ODD}]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """Remove colour codes and control characters from `text`; tabs and line feeds stay."""
    return _BUT_WHITE.sub("", _COLOUR.sub("", text))


@cache
def _plain_console() -> "type[Console]":
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        """Console that removes control characters from all texts."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                if not segment.control and _BUT_WHITE.search(segment.text):
                    segment = Segment(_BUT_WHITE.sub("", segment.text), segment.style)
                yield segment

    return PlainConsole


def console() -> "Console":
    """Console of the process: rich's global one, which progress bars use too, but with plain texts."""
    import rich

    if not isinstance(rich._console, _plain_console()):
        rich._console = _plain_console()()
    return rich.get_console()


def say(text: str) -> None:
    """Print a line without markup or colours."""
    print(masked(plain(text)))


def fail(message: str) -> NoReturn:
    """End the program with `Error: message` and exit status 1."""
    sys.exit(f"Error: {masked(plain(message))}")


def shortened(items: Iterable[Any], most: int = 5) -> str:
    """Join the first `most` items with commas, and append the number of the rest."""
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Number and noun, as in `1 image` and `2 images`; `plural` is for nouns that take more than an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def percent_down(fraction: float) -> str:
    """Percentage of a fraction that is promised: `99.95%`. It is never rounded up, which would promise more."""
    percent = Decimal(repr(float(fraction))) * 100
    return f"{percent.quantize(Decimal('1e-9'), ROUND_FLOOR).normalize():f}%"


def threshold_text(threshold: float) -> str:
    """Least accepted probability: `0.9987`, `0.99999553`. Four digits of its distance to 1 are shown. It is never
    rounded down, which would accept more."""
    distance = 1 - Decimal(repr(float(threshold)))
    unit = Decimal(1).scaleb(min(distance.adjusted(), -1) - 3)
    return f"{(1 - distance.quantize(unit, ROUND_FLOOR)).normalize():f}"


def by_split(counts: Mapping[str, int]) -> str:
    """Name the number of images of each split: `3 in train, 1 in test`."""
    return ", ".join(f"{count} in {split}" for split, count in counts.items())


def typed_program(command: str) -> str:
    """The program that was started, as it is typed: `ml-train`, `python src/train.py` or `python -m imago.train`.

    Where Python code calls a command, this is the console script of `command`.
    """
    script = Path(sys.argv[0])
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if script.suffix != ".py":
        return script.stem if script.stem.startswith("ml-") else f"ml-{command}"
    is_module = spec is not None and spec.origin is not None and Path(spec.origin) == script
    return f"python -m {spec.name}" if is_module and spec is not None else f"python {script}"


@contextmanager
def closed_pipe_allowed() -> Iterator[None]:
    """End the program silently, with status 0, if the reader of its output goes away, as `| head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it exits
        sys.exit(0)


class _LastingStream:
    """Stream whose text is dropped once it cannot be written, with one line in the log."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())
        log.info("The output is closed (%s). The command continues; its log has the rest", error)


@contextmanager
def closed_output_survived() -> Iterator[None]:
    """Inside, a reader of the output that goes away (`| head`, a closed terminal) or a full disk below `> FILE` does
    not end the command: what it does takes hours, and its files are what is wanted of it."""
    before = sys.stdout, sys.stderr
    if all(before):  # pythonw has none
        sys.stdout, sys.stderr = (cast(TextIO, _LastingStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

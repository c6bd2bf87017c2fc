"""The lines of the console about finished epochs: aligned columns below a header that is shown once."""

from collections.abc import Mapping

from imago.callbacks.pace import format_duration

LOSSES, ACCURACIES, EPSILON = ("train/loss", "val/loss"), ("train/acc", "val/acc"), "privacy/epsilon"
COLUMN, BEST, TIME, LEFT = 6, 10, 6, 7  # least widths; with the time of a log line, all fit 80 columns of a terminal


class EpochTable:
    """Lines about epochs: losses, accuracies, the best value so far, time and ETA.

    Another `monitor`, and epsilon in private training, take the place of train/acc.

    Args:
        monitor: The monitored metric.
        row: Metrics of the first epoch that is shown; without accuracies there are no columns for them.
    """

    def __init__(self, monitor: str, row: Mapping[str, float]) -> None:
        accuracies = ACCURACIES if any(name in row for name in ACCURACIES) else ()
        self.names = [*LOSSES, *accuracies]
        further = [name for name in (monitor, EPSILON) if name not in self.names and name in row]
        if further:
            self.names = [*LOSSES, *(name for name in accuracies if name in (ACCURACIES[1], monitor)), *further]

    def header(self, epochs: int | None) -> str:
        """Names of the columns; `epochs` is the number of epochs of the run, if it has one."""
        names = " ".join(f"{_title(name):>{COLUMN}}" for name in self.names)
        return f"{'epoch':>{_width(epochs)}} {names}  {'best':<{BEST}} {'time':>{TIME}} {'ETA':>{LEFT}}"

    def line(
        self,
        row: Mapping[str, float],
        epochs: int | None,
        best: tuple[float | None, int | None],
        seconds: float,
        left: float | None,
    ) -> str:
        """Line of one epoch.

        Args:
            row: Its metrics, and `epoch`, which counts from 0.
            epochs: Epochs of the run, if it has an end.
            best: Best value of the monitored metric so far, and its epoch, which counts from 1; None if unknown.
            seconds: Time that the epoch took.
            left: Seconds until the last epoch ends; None if unknown.
        """
        number = int(row["epoch"]) + 1
        count = f"{number}/{epochs}" if _has_end(epochs) else str(number)
        values = " ".join(f"{_format(row.get(name)):>{max(COLUMN, len(_title(name)))}}" for name in self.names)
        took = f"{seconds:.1f} s" if seconds < 59.95 else format_duration(seconds)
        eta = format_duration(left) if left is not None and number != epochs else ""
        text = f"{count:>{_width(epochs)}} {values}  {_best(*best):<{BEST}} {took:>{TIME}} {eta:>{LEFT}}"
        return text.rstrip()


def _title(name: str) -> str:
    return name.removeprefix("privacy/")


def _best(value: float | None, epoch: int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" @{epoch}" if epoch is not None else "")


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _has_end(epochs: int | None) -> bool:
    return epochs is not None and epochs >= 0


def _width(epochs: int | None) -> int:
    return max(5, 2 * len(str(epochs)) + 1) if _has_end(epochs) else 5

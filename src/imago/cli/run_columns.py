"""Columns of a table of runs: what is known of every run, its settings, and its metrics."""

import difflib
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from imago.comparison.summary import summary
from imago.definitions import best_mode
from imago.errors import UserError
from imago.run.differences import TARGET, differing_settings, short_names
from imago.run.overview import Overview, first_line, seconds_since
from imago.terminal import shortened

STYLES = {"running": "cyan", "completed": "green", "failed": "red", "dead": "red", "pruned": "dim"}
ERRORS = ("error", "updated, error")
OTHER_NAMES = {"accuracy": "acc", "test": "acc", "test/acc": "acc", "test/loss": "loss"}
"""Words that are typed for a column, unless a setting of this name differs."""
LONGEST_CELL, SHORTEST_ERROR = 24, 24
"""Cells are cut to that many characters; an error gets what is left of the line, and that many at least."""


@dataclass(frozen=True)
class Column:
    """One column of a table of runs.

    Args:
        name: What is typed for it, in `--sort` and `--columns`.
        title: Its header.
        value: Value of a run, by which rows are sorted; None sorts last.
        text: The cell of a run; None shows the value.
        is_descending: The greatest value is sorted first.
        is_number: The column is aligned to the right.
        is_score: Groups of runs show mean and standard deviation.
        of_group: The cell of a group, from those of its runs that completed.
    """

    name: str
    title: str
    value: Callable[[Overview], Any]
    text: Callable[[Overview], str] | None = None
    is_descending: bool = False
    is_number: bool = False
    is_score: bool = False
    of_group: Callable[[Sequence[Overview]], str] | None = None

    def cell(self, run: Overview, longest_error: int = SHORTEST_ERROR) -> Text:
        """Content of the cell of a run, on one line."""
        text = self.text(run) if self.text is not None else as_text(self.value(run))
        longest = longest_error if self.name in ERRORS else LONGEST_CELL
        return Text(cut(text, longest), style=STYLES.get(text, "yellow") if self.name == "state" else "")


class Columns:
    """The columns that a table of `runs` may have: fixed ones, their settings, and their metrics."""

    def __init__(self, runs: Sequence[Overview]) -> None:
        self.runs = runs
        monitors = {run.monitor for run in runs if run.monitor}
        self.monitor = monitors.pop() if len(monitors) == 1 else ""
        self.differing = differing_settings(runs)
        fixed = [
            Column("state", "state", lambda run: run.state),
            Column("epoch", "epoch", lambda run: run.status.get("epoch"), is_number=True),
            Column("step", "step", lambda run: run.status.get("step"), is_number=True),
            self._best(),
            Column("acc", "test acc", lambda run: run.test.get("acc"), _of_test("acc"), True, True, True),
            Column("loss", "test loss", lambda run: run.test.get("loss"), _of_test("loss"), False, True, True),
            Column("later", "later ml-eval", _later_acc, _later, True),
            Column("epsilon", "epsilon", lambda run: run.status.get("epsilon"), _epsilon, is_number=True),
            Column(
                "duration", "duration", lambda run: run.seconds, _run_duration, False, True, of_group=_mean_duration
            ),
            Column("started", "started", _started, lambda run: (_started(run) or "")[:16].replace("T", " ")),
            Column("updated", "updated", lambda run: seconds_since(run.status.get("heartbeat")), _updated),
            Column("checkpoint", "checkpoint", lambda run: run.checkpoint, _checkpoint),
            Column("error", "error", lambda run: first_line(run.status.get("error")) or None),
        ]
        self.fixed = {column.name: column for column in fixed}
        score = (self.known("acc") or [self.fixed["best"]])[0]
        self.fixed["interval"] = Column("interval", f"95% of {score.title}", _nothing, of_group=_interval_of(score))
        self.titles = short_names(self.differing)

    def defaults(self) -> tuple[list[Column], list[Column], list[Column]]:
        """The columns that are shown if none are asked for: those of every table, the settings that differ, and
        further ones, the most important first."""
        last = [_updated_and_error()] if self.known("error") else []
        always = [self.fixed["state"], *self.known("best", "acc", "epsilon"), *last]
        optional = [*self.known("later"), *([] if last else [self.fixed["updated"]])]
        optional += self.known("epoch", "duration")
        return always, [self.setting(key) for key in self.differing], optional

    def of_sweep(self) -> tuple[list[Column], list[Column]]:
        """The columns at the end of a sweep: its state only where that is news."""
        state = [] if all(run.state == "completed" for run in self.runs) else ["state"]
        return self.known(*state, "best", "acc", "error"), [self.setting(key) for key in self.differing]

    def best_run(self) -> Overview | None:
        """The run with the best value of the monitored metric; None if there is none, or they monitor several."""
        modes = {run.mode for run in self.runs}
        known = [run for run in self.runs if run.best is not None]
        if not self.monitor or len(modes) > 1 or not known:
            return None
        return sort_runs(known, self.fixed["best"])[0]

    def known(self, *names: str) -> list[Column]:
        """Those of the fixed columns that some run has a value for."""
        return [self.fixed[name] for name in names if any(self.fixed[name].value(run) is not None for run in self.runs)]

    def named(self, name: str) -> Column:
        """The column that is typed as `name`.

        Raises:
            UserError: There is none, or several settings end like that.
        """
        by_header = {column.title: column for column in self.fixed.values()}
        if name in OTHER_NAMES and name not in self.titles.values():
            name = OTHER_NAMES[name]
        if name in self.fixed or name in by_header:
            return self.fixed.get(name) or by_header[name]
        if name and name == self.monitor:
            return self.fixed["best"]
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        by_title = [key for key, title in self.titles.items() if title == name]
        ends = [key for key in keys if key.replace("/", ".").endswith(f".{name}")]
        matches = [key for key in keys if key == name] or by_title or ends
        if len(matches) == 1:
            return self.setting(matches[0])
        if matches:
            raise UserError(f"{name} is the end of several settings: {shortened(matches, 10)}. Type one of them.")
        metrics = sorted({metric for run in self.runs for metric in run.metrics})
        if name in metrics:
            return _metric(name)
        settings = [self.titles[key] for key in self.differing]
        shown = [metric for metric in metrics if metric.count("/") == 1]
        close = difflib.get_close_matches(
            name, [*self.fixed, *by_header, *OTHER_NAMES, *settings, *metrics, *keys], n=1
        )
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"Unknown column {name}.{meant} Columns: {', '.join(self.fixed)}. "
            f"Settings that differ: {shortened(settings, 20) or 'none'}; any other setting can be typed, too. "
            f"Metrics, by their best value: {shortened(shown, 20) or 'none'}."
        )

    def setting(self, key: str) -> Column:
        """The column of a setting."""

        ends = _ends({as_text(run.setting(key)) for run in self.runs}) if key.endswith(TARGET) else {}

        def text(run: Overview) -> str:
            value = as_text(run.setting(key))
            return ends.get(value, value)

        return Column(key, self.titles.get(key, key), lambda run: run.setting(key), text, is_number=self._counts(key))

    def _counts(self, key: str) -> bool:
        return all(isinstance(run.setting(key), int | float | None) for run in self.runs)

    def _best(self) -> Column:
        def text(run: Overview) -> str:
            is_named = run.best is not None and run.monitor and not self.monitor
            return f"{metric_text(run.best)} {run.monitor}" if is_named else metric_text(run.best)

        modes = {run.mode for run in self.runs if run.monitor}
        title = f"best {self.monitor}" if self.monitor else "best"
        return Column("best", title, lambda run: run.best, text, modes != {"min"}, True, True)


def sort_runs(runs: Iterable[Overview], column: Column) -> list[Overview]:
    """Sort runs by a column: the best first, and those without a value last."""
    known = [run for run in runs if is_known(column.value(run))]
    unknown = [run for run in runs if not is_known(column.value(run))]
    known.sort(key=lambda run: sort_key(column.value(run)), reverse=column.is_descending)
    return [*known, *unknown]


def as_text(value: Any) -> str:
    """Show the value of a setting on one line; a number with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def cut(text: str, most: int) -> str:
    """Cut `text` to `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _ends(names: Collection[str]) -> dict[str, str]:
    """Name such as `my_nets.Net` -> its last parts, as few as tell all of them apart."""
    for count in range(1, 1 + max(name.count(".") + 1 for name in names)):
        ends = {name: ".".join(name.split(".")[-count:]) for name in names}
        if len({*ends.values()}) == len(names):
            break
    return ends


def _metric(name: str) -> Column:
    def value(run: Overview) -> float | None:
        return run.best if run.monitor == name else run.metrics.get(name)

    return Column(
        name, f"best {name}", value, lambda run: metric_text(value(run)), best_mode(name) == "max", True, True
    )


def metric_text(value: float | None) -> str:
    """Show a metric with four decimals."""
    return "" if value is None else f"{value:.4f}"


def _of_test(name: str) -> Callable[[Overview], str]:
    def text(run: Overview) -> str:
        split = run.test.get("split", "test")
        return metric_text(run.test.get(name)) + (f" ({split})" if split != "test" and name in run.test else "")

    return text


def _later_acc(run: Overview) -> float | None:
    return run.later[-1]["acc"] if run.later else None


def _later(run: Overview) -> str:
    """Accuracy of the newest score by ml-eval, with the split and the number of images."""
    if not run.later:
        return ""
    newest = run.later[-1]
    return f"{metric_text(newest['acc'])} {newest['split']} ({newest['n']})"


def _epsilon(run: Overview) -> str:
    value = run.status.get("epsilon")
    return str(value) if isinstance(value, str) else metric_text(value)  # all its decimals: it was rounded up


def _started(run: Overview) -> str | None:
    return run.status.get("started")


def duration_text(seconds: float | None) -> str:
    """Show a duration in hours, minutes and seconds: `1 h 02 min`, `3 min 20 s`, `45 s`."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _nothing(run: Overview) -> None:
    """Value of a column that only groups have."""
    del run


def are_folds(runs: Sequence[Overview]) -> bool:
    """Whether some runs differ in their fold."""
    return len({str(run.setting("data.fold")) for run in runs}) > 1


def _interval_of(score: Column) -> Callable[[Sequence[Overview]], str]:
    """The 95% interval of the mean of a score; empty for a single run, and where `summary` has none."""

    def text(runs: Sequence[Overview]) -> str:
        known = summary([value for run in runs if (value := score.value(run)) is not None], are_folds(runs))
        if "low" not in known:
            return ""
        is_fraction = score.is_descending and 0 <= known["mean"] <= 1  # an accuracy is not above 1
        low, high = (min(max(known[end], 0), 1) if is_fraction else known[end] for end in ("low", "high"))
        return f"{low:.4f} to {high:.4f}"

    return text


def _run_duration(run: Overview) -> str:
    return duration_text(run.seconds)


def _mean_duration(runs: Sequence[Overview]) -> str:
    known = [run.seconds for run in runs if run.seconds is not None]
    return duration_text(statistics.fmean(known)) if known else ""


def _checkpoint(run: Overview) -> str:
    return run.checkpoint.name if run.checkpoint is not None else ""


def _updated(run: Overview) -> str:
    seconds = seconds_since(run.status.get("heartbeat"))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if length <= seconds < float("inf"):
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago" if seconds < 60 else "never"


def _updated_and_error() -> Column:
    """Column with both, for a table that has no space for two."""

    def text(run: Overview) -> str:
        error = first_line(run.status.get("error"))
        return f"{_updated(run)}: {error}" if error else _updated(run)

    return Column("updated, error", "updated, error", lambda run: seconds_since(run.status.get("heartbeat")), text)


def is_known(value: Any) -> bool:
    """Whether a row can be sorted by a value: it is not None and not NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def sort_key(value: Any) -> tuple[bool, Any]:
    """Key of a value: numbers are sorted before texts."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else str(value)

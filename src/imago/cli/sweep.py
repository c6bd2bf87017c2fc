"""The frame around a sweep (`-m`): what its jobs have to know of it, and the table and `sweep.csv` at its end."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from imago.cli.search_folder import choose_folder, is_own_search
from imago.config.invocation import override_key, typed_path
from imago.config.resolvers import remember_sweep
from imago.files import write_text
from imago.masking import masked_override
from imago.run.overview import Overview, first_line
from imago.run.spent import private_runs, total_spent
from imago.terminal import console, counted, plain, say, shortened

FILE = "sweep.csv"


@dataclass(frozen=True)
class Sweep:
    """A sweep that has begun: its folder, and how many jobs it is to have (0 if that is not known)."""

    folder: Path
    jobs: int


_begun: list[Sweep] = []
"""The sweep that this process has begun: Hydra's callbacks hear of the beginning, but not of an end with an error."""


class SweepTable(Callback):
    """Hydra callback that notes where a sweep begins, and lets the names of its jobs be made from what differs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called in the process that was started, before any job."""
        if is_own_search(config):
            choose_folder(config)
        folder = Path(config.hydra.sweep.dir)
        typed, jobs = _planned(config)
        is_search = "n_trials" in config.hydra.sweeper
        remember_sweep(config, typed, jobs, first=_next_number(folder) if is_search else 0)
        keep_secrets_out_of_study(config)
        seed_sampler(config, 0 if is_own_search(config) else _next_number(folder))
        if not is_own_search(config):  # which may be refused
            folder.mkdir(parents=True, exist_ok=True)  # Optuna's study is made before the first job
            note_begun(folder, jobs)


def note_begun(folder: Path, jobs: int = 0) -> None:
    """Note that a sweep of so many `jobs` has begun, whose table is printed in the end; a search, with 0, counts its
    trials itself."""
    _begun.append(Sweep(folder, jobs))


def keep_secrets_out_of_study(config: DictConfig) -> None:
    """Keep the study of a search in memory if a secret was typed that Optuna would write to its database: the values
    that are searched, and with the sweeper of Hydra all overrides."""
    words = [str(word) for word in config.hydra.overrides.task]
    if is_own_search(config):
        parser = OverridesParser.create()
        words = [word for word in words if parser.parse_override(word).is_sweep_override()]
    secret = [override_key(word) for word in words if masked_override(word) != word]
    if secret and config.hydra.sweeper.get("storage") is not None:
        say(f"The study is not kept: {shortened(secret)} is a secret, and Optuna would write it to its database.")
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.sweeper.storage = None


def seed_sampler(config: DictConfig, first: int) -> None:
    """Let the sampler of a search draw from `seed`, unless it has one of its own; from the trial numbered `first` on
    from another one, so that further trials do not repeat those before."""
    sampler, seed = config.hydra.sweeper.get("sampler"), config.get("seed")
    if isinstance(sampler, DictConfig) and "seed" in sampler and sampler.seed is None and seed is not None:
        with flag_override(config, ["readonly", "struct"], False):
            sampler.seed = seed + first


@contextmanager
def reported_sweep(at_end: Callable[[Sweep], None] | None = None) -> Iterator[None]:
    """Inside, a command runs. If that is a sweep, `at_end`, by default `report`, is called in the end, however it
    ends."""
    _begun.clear()
    try:
        yield
    finally:
        if _begun:
            (at_end or report)(_begun.pop())


def report(sweep: Sweep) -> None:
    """Print the table of the jobs of a sweep, and write it to `sweep.csv` in its folder."""
    from imago.cli.run_columns import Columns
    from imago.cli.run_table import describe_drawn, grouped_by_seed, run_table

    runs = jobs_of(sweep.folder)
    if not runs:  # none of them began, and the error says why
        return
    columns = Columns(runs)
    always, settings = columns.of_sweep()
    groups = grouped_by_seed(runs, columns.differing)
    table, left_out = run_table(runs, sweep.folder, always, settings, groups)
    say(f"\nSweep: {sweep.folder}")
    console().print(table)
    if drawn := describe_drawn(groups):
        say(drawn)
    if best := columns.best_run():
        say(f"Best {columns.monitor}: {best.best:.4f} in {best.folder.name}")
        _show_best(best.folder)
    if left_out:
        say(f"Settings that differ, too: {shortened(left_out)}")
    if privacy := describe_spent(runs):
        say(privacy)
    if (missing := sweep.jobs - len(runs)) > 0:
        say(f"{missing} of {sweep.jobs} jobs did not begin.")
    if running := [run for run in runs if run.state == "running"]:
        verb = "has" if len(running) == 1 else "have"
        say(f"{counted(len(running), 'job')} {verb} not ended yet: ml-status {sweep.folder} shows them later.")
    try:
        write_text(sweep.folder / FILE, csv_of(runs, columns.differing))
    except OSError as error:
        say(f"{FILE} could not be written: {error}")
    else:
        say(f"Written: {sweep.folder / FILE}")


def _show_best(folder: Path) -> None:
    """Print where the files of the best job are, and the commands that use its checkpoint."""
    if (checkpoint := folder / "checkpoints" / "best.ckpt").is_file():
        word = typed_path("ckpt_path", folder)
        say(f"Checkpoint: {checkpoint}\nReport: {folder / 'report.html'}")
        say(f"Next:\n  ml-inference {word} source=PHOTOS\n  ml-eval {word}")


def describe_spent(runs: Sequence[Overview]) -> str:
    """Sentence with what private jobs spend together, empty for fewer than two of them."""
    private = private_runs(runs)
    if len(private) < 2:
        return ""
    return (
        f"Privacy: epsilons and deltas of jobs on the same images add up, also of those that you discard. These "
        f"{len(private)} have {total_spent(private)} together (docs/privacy.md)"
    )


def jobs_of(folder: Path) -> list[Overview]:
    """Read the jobs in the folder of a sweep, by their numbers."""
    folders = [path.parent for path in folder.glob("*/status.json")]
    return [Overview.read(path) for path in sorted(folders, key=lambda path: (_number(path), path.name))]


def csv_of(runs: list[Overview], settings: list[str]) -> str:
    """Table of runs as CSV: a row per job, with the settings that differ by their full names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("job", "state", "epochs", "monitor", "best", "test_split", "test_acc", "test_f1", "test_loss")
    writer.writerow([*head, *settings, "error"])
    for run in runs:
        scores = [run.test.get(name) for name in ("split", "acc", "f1", "loss")]
        row = [run.folder.name, run.state, run.status.get("epoch"), run.monitor or None, run.best, *scores]
        row += [run.setting(key) for key in settings]
        writer.writerow([*row, plain(first_line(run.status.get("error")))])
    return text.getvalue()


def _planned(config: DictConfig) -> tuple[list[str], int]:
    """What all jobs have in common, as typed and as Hydra passes it on, and the number of jobs; 0 if not known."""
    words = [str(word) for word in config.hydra.overrides.task]
    sweeper = config.hydra.sweeper
    params: dict[str, Any] = dict(OmegaConf.to_container(sweeper.get("params") or OmegaConf.create()))  # type: ignore[arg-type]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    typed: list[str] = []
    counts: dict[str, int] = {}
    for override in parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *words]):
        key = override.get_key_element()
        if override.is_sweep_override():
            counts[key] = _count(override)
            continue
        counts.pop(key, None)
        typed += [str(override.input_line), f"{key}={override.get_value_element_as_str()}"]
    return typed, int(sweeper.get("n_trials") or math.prod(counts.values()))


def _count(override: Override) -> int:
    return sum(1 for _ in override.sweep_string_iterator()) if override.is_discrete_sweep() else 0


def _number(folder: Path) -> int:
    """Number in front of the name of a job's folder."""
    number = re.match(r"\d+", folder.name)
    return int(number.group()) if number else 0


def _next_number(folder: Path) -> int:
    """Number of the first trial of a search that continues in a folder."""
    return max((_number(path.parent) + 1 for path in folder.glob("*/status.json")), default=0)

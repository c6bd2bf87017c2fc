"""Report of a cross-validation: a table in the terminal, and the files in its folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from imago.cli.fold_words import MOST_NAMED
from imago.cli.run_columns import metric_text
from imago.cli.sweep import describe_spent
from imago.config.invocation import for_hydra
from imago.evaluation.pool import BEST, FILES, METRICS, FoldRun, Pool, as_json, read_scores, spread
from imago.files import write_json, write_text
from imago.report.folds_page import write_folds_page
from imago.terminal import console, say, shortened

CHOSEN = (
    "Each fold has chosen its epoch by {} on the images that it predicts: these scores are a little too good. Those of "
    "a test split are not."
)
STARTED = "If the weights of model.init_from={} have seen these images, all scores are too good."
CORRECTED = ("data.exclude", "data.relabel")
EDITED = "If an earlier network has chosen the images in {}, all scores are too good: it has changed what is predicted."
ENSEMBLE = "ensemble.txt"
TITLES = {"acc": "accuracy", "f1": "F1 (macro)", "cross_entropy": "cross-entropy"}


def report(folder: Path, runs: Sequence[FoldRun], typed: Sequence[str]) -> None:
    """Print the table of the folds, and write `cv.json` and `cv.html`; of all folds also the pooled predictions, and
    the checkpoints as an ensemble. `typed` are the words of `ml-cv`.

    Raises:
        UserError: The data have changed between the folds, or a file is damaged.
    """
    read_scores(runs)
    unfinished = [run.fold for run in runs if not run.is_finished]
    pool = None if unfinished else Pool.of(runs)
    content = as_json(runs, pool, _facts(runs, typed))
    if pool is None:  # those of an earlier state are of other runs
        for name in (*FILES, ENSEMBLE):
            (folder / name).unlink(missing_ok=True)
    files = [] if pool is None else pool.write(folder)
    write_json(folder / "cv.json", content)
    files += [folder / "cv.json", write_folds_page(folder, content, files[-1] if files else None)]
    say(f"\nCross-validation: {folder}")
    console().print(_table(runs, pool))
    if pool is not None:
        low, high = pool.metrics["interval"]
        images = f"{pool.metrics['n']} images, each predicted once"
        say(f"Pooled: {images}. 95% interval of the accuracy: {low:.3f} to {high:.3f}")
    for run in runs:
        if not run.is_finished and run.error:
            say(f"fold {run.fold}: {run.error}")
    for sentence in filter(None, (content["note"], content["privacy"], *content["warnings"])):
        say(sentence)
    if unfinished:
        failed = any(run.state == "failed" for run in runs)
        how = "Remove the cause, and type the same words again" if failed else "To resume, type the same words again"
        say(f"Not finished: fold {shortened(unfinished, MOST_NAMED)}. {how}.")
        return
    for file in files:
        say(f"Written: {file}")
    _write_ensemble(folder, runs)


def _facts(runs: Sequence[FoldRun], typed: Sequence[str]) -> dict[str, Any]:
    monitor, is_complete = runs[0].overview.monitor, all(run.is_finished for run in runs)
    chosen = CHOSEN.format(monitor) if is_complete and monitor.startswith("val/") else None
    start = runs[0].overview.setting("model.init_from")
    seen = None if start is None else STARTED.format(start)
    lists = [key for key in CORRECTED if runs[0].overview.setting(key) is not None]
    edited = EDITED.format(" and ".join(lists)) if lists else None
    return {
        "command": list(typed),
        "number_of_folds": len(runs),
        "note": " ".join(filter(None, [chosen, seen, edited])) or None,
        "privacy": describe_spent([run.overview for run in runs]) or None,
        "warnings": _warnings(runs),
        "ensemble": [f"{run.folder.name}/{BEST}" for run in runs] if is_complete else None,
    }


def _warnings(runs: Sequence[FoldRun]) -> list[str]:
    """Warnings of the folds, such as images of val that are also in train, each once."""
    folds: dict[str, list[int]] = {}
    for run in runs:
        for warning in run.overview.status.get("warnings", []):
            folds.setdefault(warning, []).append(run.fold)
    return [f"fold {', '.join(map(str, own))}: {warning}" for warning, own in folds.items()]


def _table(runs: Sequence[FoldRun], pool: Pool | None) -> Table:
    has_test = any("test" in run.scores for run in runs)
    table = Table(
        title="Scores on the images that each fold left out", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False
    )
    for column in ("fold", "state", "images", *TITLES.values(), *["test accuracy"] * has_test):
        table.add_column(column, justify="left" if column in ("fold", "state") else "right", no_wrap=True)
    for run in runs:
        val, test = run.scores.get("val", {}), run.scores.get("test", {})
        numbers = [val.get("acc"), val.get("f1"), val.get("cross_entropy"), *[test.get("acc")] * has_test]
        table.add_row(str(run.fold), run.state, str(val.get("n", "")), *map(metric_text, numbers))
    table.add_section()
    means = spread(runs)
    for key in ("mean", "sd") if means else ():
        own = [means.get("val", {}).get(name, {}).get(key) for name in METRICS]
        own += [means.get("test", {}).get("acc", {}).get(key)] * has_test
        table.add_row(key, "", "", *map(metric_text, own))
    if pool is not None:
        pooled = [metric_text(pool.metrics[name]) for name in METRICS]
        table.add_row("pooled", "", str(pool.metrics["n"]), *pooled, *[""] * has_test)
    return table


def _write_ensemble(folder: Path, runs: Sequence[FoldRun]) -> None:
    """Write the checkpoints as `ml-inference` takes them, and print the command; none where a run kept no best one."""
    if not all((run.folder / BEST).is_file() for run in runs):
        return
    word = f"ckpt_path=[{','.join(for_hydra(str(run.folder / BEST)) for run in runs)}]"
    file = folder / ENSEMBLE
    write_text(file, f"{word}\n")
    typed = f'"$(cat {shlex.quote(str(file))})"'
    say(f"Next:\n  ml-inference {typed} source=PHOTOS")
    if all("test" in run.scores for run in runs):
        say(f"  ml-inference {typed} split=test")

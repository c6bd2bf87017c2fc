"""The commands as Python functions, for notebooks, scripts and tests: docs/python.md. `imago.train` is in train.py.

The same folders and the same results to the bit as the command line; what goes wrong is an exception with its words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.finished import FinishedRun
from imago.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from imago.data.module import ImageDataModule
    from imago.evaluation.evaluate import Result
    from imago.evaluation.score import Score


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        run_dir: Its folder.
        scores: Split -> score. `.metrics` has `acc`, `f1`, `loss` and more, `.confusion` the counts, int64 (classes,
            classes), with the true classes in rows; `.labels`, `.predictions` (n,) and `.log_probabilities`, float64
            (n, classes), are in the order of `.paths`.
        checkpoint: The weights that were scored.
        best_value: The best value of the monitored metric; None where nothing was trained.
        history: A row per epoch, with all metrics.
    """

    run_dir: Path
    scores: "dict[str, Score]" = field(default_factory=dict)
    checkpoint: Path | None = None
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def confusion_matrix(self, split: str = "test") -> "Figure":
        """A figure of the counts of a split, and of the fractions of each true class.

        Raises:
            UserError: The split was not scored.
        """
        from imago.report.plots import confusion_matrix_figure

        score = self.score(split)
        return confusion_matrix_figure(score.confusion, score.class_names, split)

    def curves(self) -> "Figure":
        """A figure of loss and metrics by epoch.

        Raises:
            UserError: No epoch was trained.
        """
        from imago.report.plots import curves_figure

        if not self.history:
            raise UserError(f"{self.run_dir} has no epochs to show: nothing was trained there.")
        return curves_figure(self.history)

    def score(self, split: str) -> "Score":
        """The score of a split.

        Raises:
            UserError: The split was not scored.
        """
        if split not in self.scores:
            there = ", ".join(self.scores) or "none"
            raise UserError(
                f"The split {split} was not scored (scored: {there}). To score it: imago.evaluate(RUN, split=…)"
            )
        return self.scores[split]

    def __repr__(self) -> str:
        accuracies = "".join(f", {split} {score.metrics['acc']:.4f}" for split, score in self.scores.items())
        return f"RunResult({str(self.run_dir)!r}{accuracies})"

    def _repr_html_(self) -> str:
        """The table of scores, as notebooks show it."""
        columns = ("images", "accuracy", "baseline", "F1 (macro)", "loss")
        rows = "".join(
            f"<tr><th>{split}</th><td>{score.metrics['n']}</td>"
            + "".join(f"<td>{score.metrics[key]:.4f}</td>" for key in ("acc", "baseline_acc", "f1", "loss"))
            + "</tr>"
            for split, score in self.scores.items()
        )
        head = "".join(f"<th>{column}</th>" for column in ("split", *columns))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def call(main: Command, overrides: Sequence[str]) -> RunResult:
    """What a command that trains or scores leaves behind, called with what one would type."""
    from imago.report.content import history

    result, run_dir = main.call(*overrides)
    if isinstance(result, FinishedRun):
        best = run_dir / "checkpoints" / "best.ckpt"
        return RunResult(run_dir, {}, best if best.is_file() else None, result.objective, history(run_dir))
    made: Result | None = result
    if made is None:
        return RunResult(run_dir)
    return RunResult(run_dir, made.scores, made.checkpoint, made.best_value, history(run_dir))


@overload
def evaluate(what: str | Path, /, *overrides: str, split: str | list[str] = "test") -> RunResult: ...
@overload
def evaluate(what: "nn.Module", /, data: "ImageDataModule", split: str = "test", device: str = "cpu") -> "Score": ...
def evaluate(what: Any, /, *arguments: Any, **options: Any) -> Any:
    """Scores a checkpoint as `ml-eval` does, or a network on a data module.

    Args:
        what: A run folder, a checkpoint, or `latest`; or a network that takes normalised images, float32 (n, 3,
            height, width), and gives logits (n, classes) in the order of `data.class_names`.
        arguments: For a checkpoint overrides, as one would type them; for a network the data module.
        options: `split` is `train`, `val` or `test`, or, for a checkpoint, a list of them; `test` is `val` where there
            is no test split. `device`, for a network, is `cpu`, `cuda` or `mps`.

    Returns:
        A RunResult; for a network its Score.

    Raises:
        UserError: There is no such checkpoint or split, or the network gives something else than logits.
        TaskError: Scoring failed in another way.
    """
    if not isinstance(what, str | Path):
        from imago.evaluation.functions import evaluate_network

        return evaluate_network(what, *arguments, **options)
    return _evaluate_checkpoint(what, *arguments, **options)


def _evaluate_checkpoint(checkpoint: str | Path, *overrides: str, split: str | Sequence[str] = "test") -> RunResult:
    from imago.config.invocation import for_hydra
    from imago.eval import main

    names = [split] if isinstance(split, str) else split
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"split must be train, val or test, or a list of them; got {split!r}.")
    splits = split if isinstance(split, str) else f"[{','.join(split)}]"
    return call(main, (f"ckpt_path={for_hydra(str(checkpoint))}", f"split={splits}", *overrides))


def load_config(*overrides: str, command: str = "train") -> DictConfig:
    """The settings that overrides compose to; nothing is run, and no folder is made.

    Args:
        overrides: What one would type.
        command: The command that they are for: `train`, `eval`, `inference`, `export`, `serve` or `visualise`.

    Returns:
        The config, with interpolations resolved; the run folder, which is not known yet, is `RUN`.

    Raises:
        UserError: They cannot be composed.
    """
    from importlib import import_module

    if command not in ("train", "eval", "inference", "export", "serve", "visualise"):
        raise UserError(f"command must be train, eval, inference, export, serve or visualise, got {command}.")
    main: Command = import_module(f"imago.{command}").main
    return main.load_config(*overrides)

"""Find a learning rate: train some steps at rising rates, and suggest one by the losses. Nothing is kept.

ml-find-lr experiment=digits
ml-find-lr data.data_dir=PATH model/optimizer=sgd --write my_configs/experiment/mine.yaml
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imago.cli.command import TaskError
from imago.config.invocation import for_hydra, override_key
from imago.config.launcher import launch_of
from imago.config.private import is_private
from imago.definitions import INTERRUPTED
from imago.errors import UserError
from imago.run.folder import RunFolder
from imago.terminal import closed_pipe_allowed, fail, say
from imago.train import main as train
from imago.tuning.experiment_file import check_target, write_rate

if TYPE_CHECKING:
    from imago.tuning.range_test import RangeTest

OF_A_RUN = ("resume", "auto_resume", "replay", "preflight", "train", "hydra.run.dir", "hydra.sweep.dir", "budget")
"""Settings that say which run, or when it ends."""


@dataclass(frozen=True)
class Range:
    """Learning rates to try."""

    lowest: float = 1e-6
    highest: float = 10.0
    steps: int = 100


@dataclass(frozen=True)
class Finding:
    """Result of a range test: the rate that is set, the one that is suggested (None if the loss never fell), and the
    test."""

    typed: float
    suggestion: float | None
    test: "RangeTest"

    @property
    def objective(self) -> float | None:
        """Value for the record of the run."""
        return self.suggestion


def main() -> None:
    """Command line of `ml-find-lr`."""
    options, words = _parser().parse_known_args()
    with closed_pipe_allowed():
        try:
            launch_of("ml-find-lr", one_process=True)
            _check(options, words)
            finding = find_learning_rate(words, Range(options.min_lr, options.max_lr, options.steps))
            _report(finding, options, words)
        except (UserError, TaskError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def find_learning_rate(words: Sequence[str], tried: Range = Range()) -> Finding:
    """Train at rising learning rates with the settings of `words`, as one would type them for `ml-train`, in a folder
    that is removed.

    Raises:
        UserError: The settings cannot work.
        TaskError: The training failed.
    """
    with TemporaryDirectory(prefix="ml_find_lr_") as folder:
        command = replace(train, task=lambda cfg, run: _range_test(cfg, run, tried))
        where = f"hydra.run.dir={for_hydra(str(Path(folder, 'run')))}"
        finding, _ = command.call(*words, where, program="ml-find-lr")
    result: Finding = finding
    return result


def _range_test(cfg: DictConfig, run: RunFolder, tried: Range) -> Finding:
    from imago.lightning_internals import add_callback
    from imago.training.build import build
    from imago.tuning.range_test import RangeTest

    if is_private(cfg):
        raise UserError("ml-find-lr and strategy=dp: the losses would not be private. Type strategy=none.")
    rate: Any = OmegaConf.select(cfg, "model.optimizer.lr")
    _leave_out_all_but_steps(cfg)
    data, model, trainer = build(cfg, run)
    test = RangeTest(tried.lowest, tried.highest, tried.steps)
    add_callback(trainer, test)
    trainer.fit(model, datamodule=data)
    return Finding(float(rate or 0.0), test.curve.suggestion, test)


def _leave_out_all_but_steps(cfg: DictConfig) -> None:
    """Leave out what keeps, scores, schedules or ends: only the steps are those of the training."""
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks, cfg.logger, cfg.preflight, cfg.test = {}, {}, False, False
    cfg.model.scheduler, cfg.model.probe, cfg.model.on_bad_loss = None, False, "skip"
    ends = {"max_epochs": -1, "max_steps": -1, "min_epochs": None, "min_steps": None, "max_time": None}
    cfg.trainer.update({**ends, "limit_val_batches": 0, "fast_dev_run": False, "enable_model_summary": False})


def _report(finding: Finding, options: argparse.Namespace, words: list[str]) -> None:
    from imago.tuning.figure import write_curve

    curve = finding.test.curve
    if len(curve.rates) < 2:
        raise UserError(f"The loss is not finite from --min-lr {options.min_lr:g} on. Type a smaller one.")
    ended = ", where the loss diverged" if finding.test.diverged else ""
    say(f"Tried {len(curve.rates)} learning rates from {curve.rates[0]:.2g} to {curve.rates[-1]:.2g}{ended}")
    write_curve(curve, finding.suggestion, options.output)
    say(f"Curve: {options.output}")
    if finding.suggestion is None:
        raise UserError(f"The loss did not fall, so that no rate is suggested. Look at {options.output}.")
    say(f"Suggested: model.optimizer.lr={finding.suggestion:g} (set: {finding.typed:g})")
    if options.write is not None:
        what = f"Learning rate of ml-find-lr {shlex.join(words)} ({len(curve.rates)} steps)"
        write_rate(options.write, finding.suggestion, words, what)
        say(f"Written: {options.write}")
        return
    rest = [word for word in words if override_key(word) != "model.optimizer.lr"]
    say(f"Next: ml-train {shlex.join([*rest, f'model.optimizer.lr={finding.suggestion:g}'])}")


def _check(options: argparse.Namespace, words: list[str]) -> None:
    if not 0 < options.min_lr < options.max_lr:
        raise UserError(f"--min-lr {options.min_lr:g} must be above 0 and below --max-lr {options.max_lr:g}.")
    if options.steps < 20:
        raise UserError(f"--steps {options.steps}: a curve needs 20 or more.")
    for word in words:
        if word in ("-m", "--multirun") or override_key(word) in OF_A_RUN:
            raise UserError(f"{word}: ml-find-lr trains a few steps, of which nothing is kept. Remove it.")
        if word.startswith("--") and not word.startswith("--config-dir"):
            raise UserError(
                f"Unknown: {word}. ml-find-lr takes the settings of ml-train, and {_parser().format_usage()}"
            )
    if options.write is not None:
        check_target(options.write)
    if not options.output.parent.is_dir():
        raise UserError(f"--output {options.output}: there is no folder {options.output.parent}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ml-find-lr",
        description="Train some steps at rising learning rates, and suggest one by the losses. Nothing else is kept.",
        usage="ml-find-lr [KEY=VALUE ...] [GROUP=OPTION ...] [--write FILE] [--output PNG] [--steps N] "
        "[--min-lr LR] [--max-lr LR]",
        epilog="The settings are those of ml-train (ml-train --help).",
        allow_abbrev=False,
    )
    parser.add_argument("--write", type=Path, help="experiment file: a new one, or one whose learning rate is replaced")
    parser.add_argument("--output", type=Path, default=Path("lr_curve.png"), help="PNG of the curve (%(default)s)")
    parser.add_argument("--steps", type=int, default=Range.steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--min-lr", type=float, default=Range.lowest, help="first rate (%(default)s)")
    parser.add_argument("--max-lr", type=float, default=Range.highest, help="last rate (%(default)s)")
    return parser


if __name__ == "__main__":
    main()

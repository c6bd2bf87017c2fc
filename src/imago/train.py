"""Train a network on a folder of images, score its best checkpoint and write the reports.

python src/train.py experiment=digits
python src/train.py data.data_dir=PATH trainer.max_epochs=20
python src/train.py resume=RUN

From Python, `imago.train("experiment=digits", "trainer.max_epochs=3")` returns an `imago.RunResult`.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from imago.cli.compose import with_data_and_model
from imago.cli.entry import Command
from imago.cli.recipe import with_recipe
from imago.cli.start_from import check_private_start, resolve_run_args
from imago.config.checks import check as check_settings_of_training
from imago.config.invocation import Invocation, override_key
from imago.config.recipe import TrainFacts
from imago.config.schema import shipped
from imago.config.setting_source import is_typed
from imago.config.time_budget import with_budget
from imago.config.trainer import is_one_device
from imago.config.tree import nodes
from imago.errors import UserError
from imago.run.folder import RunFolder

if TYPE_CHECKING:
    from imago.api import RunResult
    from imago.evaluation.evaluate import Result


def train_from_config(cfg: DictConfig, run: RunFolder) -> "Result | None":
    """Makes the objects, trains, scores."""
    from imago.ai.trusted import trust_typed
    from imago.evaluation.console import show_next, show_results
    from imago.evaluation.evaluate import evaluate
    from imago.training.build import build
    from imago.training.fit import train
    from imago.training.replay import check_replayable
    from imago.training.time_budget import log_used_time

    if cfg.replay is not None:
        check_replayable(Path(cfg.replay))
    with trust_typed(cfg.trust_generated):
        data, model, trainer = build(cfg, run)
    splits = list(cfg.report.splits) if cfg.test and cfg.preflight != "only" else []
    if cfg.train:
        ckpt_path = cfg.ckpt_path if run.resume_from is None else str(run.resume_from)
        result = train(data, model, trainer, run, cfg.monitor, splits, ckpt_path, cfg.report.pictures)
        if cfg.preflight == "only":
            is_typed = run.invocation.program and run.invocation.sweep_dir is None
            show_next([_without_preflight(run.invocation)] if is_typed and run.rank == 0 else [])
            return None
    else:
        result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits, pictures=cfg.report.pictures)
    if cfg.train:
        log_used_time(trainer, run)
    show_results(result, run, quiet=bool(cfg.trainer.get("fast_dev_run")))
    if cfg.replay is not None and run.rank == 0:
        _print_replay(Path(cfg.replay), run.path)
    return result


def _without_preflight(invocation: Invocation) -> str:
    """Command line that trains what was only tried."""
    words = [word for word in invocation.overrides if override_key(word) != "preflight" and word != "debug=preflight"]
    return replace(invocation, overrides=tuple(words)).command


def _print_replay(before: Path, now: Path) -> None:
    from imago.training.replay import compare, describe_replay

    replay = compare(before, now)
    if replay["different"]:
        raise UserError(describe_replay(replay))
    print(describe_replay(replay))


def check(cfg: DictConfig, invocation: Invocation) -> None:
    """Raises UserError for settings that cannot work, and for parts of one's own that do not fit where they are used.
    Only for these is torch imported before there is a run folder."""
    check_settings_of_training(cfg, invocation)
    check_private_start(cfg)
    if cfg.trust_generated and not is_typed("trust_generated", invocation):
        raise UserError(
            "trust_generated=true must be typed, by the person who has read the code. Remove it from the file."
        )
    if cfg.trust_generated and not is_one_device(cfg):
        raise UserError("trust_generated=true needs one process. Type it once with trainer.devices=1 preflight=only")
    if any(node._target_ not in shipped() for _, node in nodes(cfg)):
        from imago.training.own_parts import check_own_parts

        check_own_parts(cfg, invocation)


def _complete(cfg: DictConfig, invocation: Invocation) -> tuple[DictConfig, Invocation]:
    cfg, invocation = with_recipe(with_data_and_model(cfg, invocation), invocation, _look)
    return with_budget(cfg, invocation), invocation


def _look(cfg: DictConfig) -> TrainFacts:
    from imago.training.recipe import train_facts

    return train_facts(cfg)


main = Command("train", train_from_config, check, arguments=resolve_run_args, complete=_complete)
"""The command line of training."""


class _CallableModule(ModuleType):
    """`imago.train` is both: this module, and the function that one calls from Python."""

    def __call__(self, *overrides: str) -> "RunResult":
        """Trains a network, scores its best checkpoint and writes the run folder, as `ml-train` does.

        Args:
            overrides: What one would type: `"experiment=digits"`, `"trainer.max_epochs=3"`.

        Raises:
            UserError: Something in the overrides, or in the data, cannot work.
            TaskError: The run failed in another way; `status.json` and the log have the same words.
            KeyboardInterrupt: Ctrl-C; the state is saved, and `imago.train("resume=RUN")` trains on.
        """
        from imago.api import call

        return call(main, overrides)


sys.modules[__name__].__class__ = _CallableModule


if __name__ == "__main__":
    main()

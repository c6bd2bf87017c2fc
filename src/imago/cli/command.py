"""The frame around the task of a command, in four phases: claim the run folder, check, run, end."""

import copy
import logging
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.cli.compose import config_changes, describe_changes
from imago.cli.devices import follow_launch, process_count
from imago.cli.finished import finished_run
from imago.cli.leader import Leader
from imago.cli.processes import free_port, other_processes
from imago.cli.resumed import checkpoint_to_resume, resume_settings
from imago.cli.stop_signals import stopped_by_signals
from imago.config.checks import check_paths, own_targets
from imago.config.invocation import Invocation
from imago.config.launcher import Launch, current_launch
from imago.config.own_code import allow_imports
from imago.config.saved import as_new_run, mask_sweep, save_config
from imago.config.setting_source import with_places
from imago.definitions import CHECKED, PRUNED, STOPPING, TERMINATED
from imago.errors import BUILDING, IncompleteError, MissingModuleError, UserError, cause_of, message_of
from imago.files import write_json
from imago.masking import learn_secrets, masked, masked_override
from imago.run.folder import PlotOptions, RunFolder, RunFolderError
from imago.run.logs import logging_to
from imago.run.search_place import Trial
from imago.terminal import plain

log = logging.getLogger(__name__)

Task = Callable[[DictConfig, RunFolder], Any]
Check = Callable[[DictConfig, Invocation], None]


class TaskError(RuntimeError):
    """The task failed; the log and `status.json` say why, in its own words; `__cause__` was raised."""


def execute(
    task: Task,
    cfg: DictConfig,
    invocation: Invocation,
    check: Check,
    one_process: bool = False,
    leader: Leader | None = None,
    trial: Trial | None = None,
) -> Any:
    """Runs `task` in its run folder; returns what it returns, or a `FinishedRun`.

    Args:
        task: What is done.
        cfg: The composed config; `check` and `task` may complete it.
        invocation: How it came to be.
        check: Raises UserError for what cannot work, before anything heavy is imported.
        one_process: Devices do not matter.
        leader: Of the processes that a launcher has started, if it has started several.
        trial: Its place in a search; a trial that was stopped is resumed.

    Raises:
        UserError: The settings cannot work, or the run folder cannot be had; no folder is left.
        TaskError: The check or the task failed.
        KeyboardInterrupt, SystemExit: Ctrl-C, or a signal, has ended the run.
    """
    with suppress(OmegaConfBaseException):  # what leads nowhere is said below
        learn_secrets(OmegaConf.to_container(cfg, resolve=True))
    if invocation.changes_directory:
        why = "relative paths and modules of your own would be looked for in the run folder"
        raise UserError(f"hydra.job.chdir=true: {why}. Remove it; the run folder is ${{paths.output_dir}}")
    if invocation.sweep_dir is not None and trial is None:
        _check_sweeper(invocation, Path(invocation.sweep_dir) / "multirun.yaml")
        mask_sweep(Path(invocation.sweep_dir))
    sys.argv[1:] = [masked_override(word) for word in sys.argv[1:]]  # loggers keep the command line
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # it would ask git about the current folder
    if not sys.stdout.isatty():
        os.environ.setdefault("WANDB_SILENT", "true")  # it writes colours into pipes
    allow_imports(own_targets(cfg, invocation), Path.cwd())
    launch = _launch_of(leader)
    if not one_process:
        follow_launch(cfg, invocation, launch)
    if invocation.sweep_dir is None and not (cfg.resume or cfg.auto_resume):
        _refuse_early(cfg, invocation, check, one_process, launch)
    run = _claim(cfg, invocation, trial)
    run.launch = launch
    try:
        changed = resume_settings(run, cfg, check)
        if (finished := finished_run(run, cfg, changed)) is not None:
            return finished
        with (
            stopped_by_signals(),
            logging_to(run.path / f"{cfg.task_name}.log", invocation.verbose, run.warnings),
            run.beating(),
        ):
            try:
                _check(run, cfg, check, changed)
                run.processes = 1 if one_process else process_count(cfg.trainer, invocation.overrides, launch)
                run.port = free_port("127.0.0.1" if launch is None else "") if run.processes > 1 else 0
                others = other_processes if leader is None else leader.others
                with others(task, cfg, run):
                    result = task(cfg, run)
            except BaseException as error:
                _end(run, error)
            run.update(status=_state_of(cfg, result), best_value=objective(result))
            _report(run)
        return result
    except TaskError as error:
        if _is_refused(run, error.__cause__):
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    finally:
        run.release()


def objective(result: Any) -> float | None:
    """The value that a sweep optimises: `objective` of the task's result, or the result itself."""
    return getattr(result, "objective", result)


def _launch_of(leader: Leader | None) -> Launch | None:
    """The launch that this process belongs to, at most as its only process if there is no leader."""
    launch = current_launch() if leader is None else leader.launch
    if leader is None and launch is not None and launch.processes > 1:
        raise UserError(
            f"{launch.where}, and each of them calls a function of Imago. Start the command itself, for example "
            f"{launch.typed('python src/train.py')}, or this script without {launch.launcher}."
        )
    return launch


def _refuse_early(
    cfg: DictConfig, invocation: Invocation, check: Check, one_process: bool, launch: Launch | None
) -> None:
    """Raise UserError for what cannot work, before there is a run folder to record it in.

    Jobs of a sweep (the sweeper decides what a failed one means) and resumed runs are checked in their folders alone.
    """
    logging.disable()  # what the check has to say is said when it is repeated, with a log to write to
    try:
        tried = copy.deepcopy(cfg)
        tried.seed = cfg.seed or 0  # a random one is drawn when there is a record of it
        check(tried, invocation)
        check_paths(tried)
        if not one_process:
            process_count(tried.trainer, invocation.overrides, launch)
    except UserError:
        with suppress(OSError):
            Path(invocation.output_dir).rmdir()  # the resolver of its name has made it
        raise
    except Exception:  # raised again in the run, which has a log for its traceback
        pass
    finally:
        logging.disable(logging.NOTSET)


def _state_of(cfg: DictConfig, result: Any) -> str:
    """Status of a run that has ended without an error."""
    if cfg.get("preflight") == "only":
        return CHECKED
    return PRUNED if getattr(result, "is_pruned", False) else "completed"


def _claim(cfg: DictConfig, invocation: Invocation, trial: Trial | None) -> RunFolder:
    is_resumed = cfg.resume is not None or cfg.auto_resume or trial is not None
    try:
        run = RunFolder.claim(Path(invocation.output_dir), is_resumed, invocation)
        run.trial = trial
        return run
    except (RunFolderError, OSError) as error:
        raise UserError(str(error)) from error


def _check(run: RunFolder, cfg: DictConfig, check: Check, changed: list[str]) -> None:
    """Begins the record of the run, and refuses what cannot work.

    Of a run that is resumed nothing is written before its checkpoint has been accepted: its settings stay those that
    it can go on with.
    """
    run.start()
    if cfg.seed is None:
        cfg.seed = random.SystemRandom().randrange(2**31)
        log.info("seed=null: drew seed=%d", cfg.seed)
    run.write_when_accepted(partial(_write_config, run, copy.deepcopy(cfg)))  # the task completes it
    before_check = OmegaConf.to_container(cfg, resolve=False)
    check(cfg, run.invocation)
    if OmegaConf.to_container(cfg, resolve=False) != before_check:  # what a new target does not take is gone
        run.write_when_accepted(partial(save_config, copy.deepcopy(cfg), run.path, run.invocation))
    run.plots = PlotOptions.of(cfg.plots)
    if changed:
        log.warning("Settings changed since the run began: %s", "; ".join(changed))
    if run.former:
        run.resume_from = checkpoint_to_resume(run.path)
    if run.resume_from is None:
        run.accept()


def _write_config(run: RunFolder, cfg: DictConfig) -> None:
    invocation = as_new_run(cfg, run.invocation)
    save_config(cfg, run.path, invocation)
    changes = config_changes(cfg, invocation)
    write_json(run.path / "reports" / "changes.json", changes)
    run.sections["Run"] = {
        "name": cfg.name,
        "folder": run.path,
        "tags": ", ".join(cfg.tags) or None,
        "typed": _shown_words(invocation),
        "typed to resume or replay": _shown_words(run.invocation) if invocation is not run.invocation else None,
    }
    if cfg.task_name != "inference":  # that of the training, which predictions do not change
        run.sections["Configuration"] = describe_changes(changes)
    run.update()
    log.debug("Command line: %s", " ".join(sys.argv))


def _shown_words(invocation: Invocation) -> str:
    return " ".join(map(masked_override, invocation.overrides)) or "nothing"


def _end(run: RunFolder, error: BaseException) -> NoReturn:
    """Record how the run ended, and raise the exception for the caller."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *STOPPING):  # the first one has ended the run; a second would keep that a secret
            signal.signal(number, signal.SIG_IGN)
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        _record(run, "preempted", f"Terminated by a signal.{run.resume_hint()}")
        raise error
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 1):
        _record(run, "interrupted", f"Stopped by Ctrl-C.{run.resume_hint()}")  # Lightning answers it with status 1
        raise KeyboardInterrupt from error
    log.debug("The run failed", exc_info=error)
    message = f"The program exited: {error.code}" if isinstance(error, SystemExit) else message_of(error)
    message = with_places(message, run.invocation)
    if _is_refused(run, error):
        log.error("%s", plain(message))
    else:
        is_done = isinstance(error, IncompleteError)
        _record(run, "completed" if is_done else "failed", message + ("" if is_done else run.resume_hint("\n")))
    raise TaskError(masked(plain(message))) from error


def _is_refused(run: RunFolder, error: BaseException | None) -> bool:
    """Whether a new run cannot begin with its data, its model or a module of one's own: as for settings that cannot
    work, no folder is left. Jobs of a sweep keep theirs."""
    if error is None or run.former or run.invocation.sweep_dir is not None:
        return False
    cause, is_building = cause_of(error), BUILDING in getattr(error, "__notes__", ())
    return isinstance(cause, MissingModuleError) or (is_building and isinstance(cause, UserError))


def _record(run: RunFolder, status: str, error: str) -> None:
    log.info("The run folder is %s", run.path)
    spent = run.sections.get("Strategy", {})
    if {"epsilon", "delta", "unit"} <= spent.keys():
        log.info("Privacy: epsilon so far %s, delta %g, unit: %s", spent["epsilon"], spent["delta"], spent["unit"])
    error = plain(error)  # it may quote a stranger's file
    try:
        run.update(status=status, error=error)
        if run.is_accepted:
            _report(run)
    except OSError as unwritable:  # a full disk, say
        log.error("The summary and the report are those of an earlier time: %s", unwritable)
        with suppress(OSError):
            run.overwrite_status()
    finally:
        log.error("%s", error)


def _report(run: RunFolder) -> None:
    """`report.html` of what was trained or scored, with how it ended."""
    if (run.path / "metrics.jsonl").is_file() or any(run.path.glob("reports/[dm]*.json")):  # of data, or metrics
        from imago.report.page import refresh_report

        refresh_report(run.path)


def _check_sweeper(invocation: Invocation, file: Path) -> None:
    """Raises UserError where a swept experiment chooses the sweeper, which comes too late."""
    if not file.is_file():
        return
    of_sweep: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    before = (of_sweep.get("hydra") or {}).get("sweeper") or {}
    if any(invocation.sweeper.get(key) != before.get(key) for key in ("_target_", "params", "n_trials")):
        raise UserError(
            "A swept option cannot change the sweeper (hydra/sweeper). Type the option that chooses it separately: "
            "-m hparams_search=optuna experiment=NAME"
        )

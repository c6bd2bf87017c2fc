"""What every command does around its work: claim the run folder, log, turn errors into one message and a status."""

import functools
import inspect
import logging
import os
import random
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.checks import check, own_targets
from imago.config import (
    CONFIG_DIR,
    config_changes,
    drawn_seed,
    for_hydra,
    mask_sweep,
    save_config,
    settings_changed,
    typed_overrides,
    yaml_of,
)
from imago.logs import logging_to
from imago.masking import learn_secrets, masked_override
from imago.messages import message_of, raised_by_us
from imago.mistakes import explained, own_folder, yaml_message
from imago.own_code import allow_imports
from imago.processes import other_processes, process_count
from imago.run_folder import RunFolder, RunFolderError
from imago.signals import INTERRUPTED, STOPPING, TERMINATED
from imago.terminal import fail, plain, say
from imago.writing import write_json

log = logging.getLogger(__name__)

FLAGS_WITH_VALUE = [
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--info",
    "-i",
]
OTHER_RESULTS, SAME_RESULTS = (
    ("data.", "model.", "seed ", "strategy."),
    ("data.num_workers", "data.cache", "data.data_dir"),
)
MORE = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "callbacks.early_stopping"),
    "strategy.target_epsilon",
)
"""Settings that give a finished run something to do."""
DURATION = re.compile(r"callbacks\.[^.]+\.duration ")
"""The same of a Timer."""
Task = Callable[[DictConfig, RunFolder], float | None]
Check = Callable[[DictConfig, list[str]], None]


class JobFailedError(RuntimeError):
    """A job of a sweep failed; it has said why. The sweeper decides what becomes of the others."""


def type_as_usual(main: Callable[[], Any]) -> Callable[[], Any]:
    """Lets people type `-m` between the overrides, explains what cannot be composed, and ends without a traceback."""

    config_name = Path(inspect.getfile(inspect.unwrap(main))).stem  # one name everywhere

    @functools.wraps(main)
    def command() -> Any:
        sys.argv[1:] = _flags_first(sys.argv[1:])
        before = os.environ.get("HYDRA_FULL_ERROR")
        asked_for_traceback = (before or "").lower() not in ("", "0", "false", "no")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing and leaving
        try:
            check_own_options(sys.argv[1:])
            return main()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except JobFailedError:
            sys.exit(1)
        except yaml.YAMLError as error:
            fail(yaml_message(error))
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            if asked_for_traceback:
                raise
            fail(_in_words(error, config_name))
        finally:
            os.environ.pop("HYDRA_FULL_ERROR")
            if before is not None:
                os.environ["HYDRA_FULL_ERROR"] = before

    return command


def _in_words(error: Exception, config_name: str) -> str:
    if raised_by_us(error):
        return str(error)
    if isinstance(error, OSError) and not isinstance(
        error, HydraException
    ):  # only Hydra's own work is not inside run_command
        return f"the run folder cannot be made: {error}. Give another hydra.run.dir= or paths.log_dir="
    return explained(error, config_name, sys.argv[1:])


def run_command(task: Task, cfg: DictConfig, check: Check = check, one_process: bool = False) -> float | None:
    """Runs `task` in its run folder and returns its value for the sweeper; exits with a status unless it succeeds.

    `check` refuses what cannot work before anything heavy is imported; `one_process` says that devices do not matter.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().job.chdir:
        why = "typed paths, and modules of your own, would be looked for in the run folder"
        fail(f"hydra.job.chdir=true: {why}. Leave it out: ${{paths.output_dir}} is the run folder")
    with suppress(OmegaConfBaseException):  # what leads nowhere is said below
        learn_secrets(OmegaConf.to_container(cfg, resolve=True))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _check_sweeper(Path(HydraConfig.get().sweep.dir) / "multirun.yaml")
        mask_sweep(Path(HydraConfig.get().sweep.dir))
    sys.argv[1:] = [masked_override(word) for word in sys.argv[1:]]  # loggers keep the command line
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # it would ask git about the current folder
    allow_imports(own_targets(cfg), Path.cwd())
    goes_on = cfg.resume is not None or cfg.auto_resume
    try:
        run = RunFolder.claim(folder, goes_on)
    except (RunFolderError, OSError) as error:
        fail(str(error))
    try:
        return _run_in(run, task, cfg, check, one_process)
    finally:
        run.release()


def check_own_options(words: list[str]) -> None:
    """Raises ValueError for files of one's own in --config-dir that a shipped option of that name would replace."""
    paths = [Path(path) for word in words if "searchpath" in word for path in re.findall(r"file://([^,\]'\"]+)", word)]
    folders = [folder for folder in (own_folder(words), *paths) if folder is not None and folder.is_dir()]
    own = [(folder, file.relative_to(folder)) for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    shipped = [
        (f, file) for f, file in own if f.resolve() != Path(CONFIG_DIR).resolve() and (CONFIG_DIR / file).is_file()
    ]
    for folder, taken in shipped:
        group, name = taken.parent.as_posix(), taken.stem
        raise ValueError(
            f"{folder / taken} has the name of a shipped option, which would be taken in its place. Rename it, "
            f"{folder / taken.with_stem(f'my_{name}')} for example, and type {group}=my_{name}"
        )


def _check_sweeper(file: Path) -> None:
    """A swept experiment can no longer choose the sweeper."""
    if not file.is_file():
        return
    of_sweep: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    before = (of_sweep.get("hydra") or {}).get("sweeper") or {}
    now: Any = OmegaConf.to_container(OmegaConf.create({"sweeper": HydraConfig.get().sweeper}), resolve=False)
    if any(now["sweeper"].get(key) != before.get(key) for key in ("_target_", "params", "n_trials")):
        fail("A swept option chooses another hydra/sweeper, which comes too late. Type it beside the sweep: "
             "-m hparams_search=optuna experiment=NAME")  # fmt: skip


def _run_in(run: RunFolder, task: Task, cfg: DictConfig, check: Check, one_process: bool) -> float | None:
    if run.former and cfg.seed is None:
        cfg.seed = drawn_seed(run.path)
    changed = settings_changed(cfg, run.path) if run.former else []
    is_finished = run.former.get("status") == "completed" and bool(run.former.get("epoch"))
    if is_finished and not any(change.startswith(MORE) or DURATION.match(change) for change in changed):
        if other := [each for each in changed if each.startswith(OTHER_RESULTS) and not each.startswith(SAME_RESULTS)]:
            fail(
                f"{run.path} holds a finished run with other settings: {'; '.join(other)}. "
                "Give another folder (hydra.run.dir=, hydra.sweep.dir= with -m)."
            )
        say(
            f"{run.path} holds a finished run ({run.former.get('epoch')} epochs): nothing to do. "
            f"For more epochs type {_resume(run)} trainer.max_epochs="
        )
        return run.former.get("best_value")
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, _terminated)
    if not sys.stdout.isatty():
        os.environ.setdefault("WANDB_SILENT", "true")  # it writes colours into pipes
    with logging_to(run.path / f"{cfg.task_name}.log", verbose=bool(HydraConfig.get().verbose)), run.beating():
        before = Before.of(run)
        try:
            run.start()
            if cfg.seed is None:
                cfg.seed = random.SystemRandom().randrange(2**31)
                log.info("seed=null: drew seed=%d", cfg.seed)
            _describe(run, cfg)
            before_checks = yaml_of(cfg)
            check(cfg, typed_overrides())
            if yaml_of(cfg) != before_checks:  # what a new target does not take is gone
                save_config(cfg, run.path)
            run.plot_format = cfg.plots.format
            if changed:
                log.warning("Changed since the run began: %s", "; ".join(changed))
            if run.former:
                run.goes_on_from = checkpoint_to_go_on_from(run.path)
            run.processes = 1 if one_process else process_count(cfg.trainer)
            run.port = _free_port() if run.processes > 1 else 0
            with other_processes(task, cfg, run):
                value = task(cfg, run)
        except SystemExit as stop:
            if stop.code == TERMINATED:
                _give_up(run, before, "preempted", f"Terminated by a signal.{_go_on(run)}", TERMINATED)
            if stop.code == 1:  # as Lightning answers it
                _give_up(run, before, "interrupted", f"Stopped by Ctrl-C.{_go_on(run)}", INTERRUPTED)
            _give_up(run, before, "failed", f"The program was left: {stop.code}", 1)
        except KeyboardInterrupt:
            _give_up(run, before, "interrupted", f"Stopped by Ctrl-C.{_go_on(run)}", INTERRUPTED)
        except Exception as error:
            log.debug("The run failed", exc_info=True)
            _give_up(run, before, "failed", message_of(error), 1)
        run.update(status="completed", best_value=value)
        _report(run)
    return value


@dataclass
class Before:
    """What a run that goes on was before: put back where it could not go on, so that its own settings are not lost."""

    files: dict[Path, bytes]
    checkpoints: list[tuple[str, int]]

    @classmethod
    def of(cls, run: RunFolder) -> "Before":
        """Nothing, for a run that begins."""
        named = [run.path / "config.yaml", *(run.path / ".hydra").glob("*.yaml"), run.path / "status.json"]
        named.append(run.path / "reports" / "changes.json")
        files = {file: file.read_bytes() for file in named if file.is_file()} if run.former else {}
        return cls(files, _checkpoints(run))

    def restore(self, run: RunFolder) -> None:
        """Unless a checkpoint was written since."""
        if self.files and self.checkpoints == _checkpoints(run):
            run.put_back(self.files)


def _checkpoints(run: RunFolder) -> list[tuple[str, int]]:
    return sorted((file.name, file.stat().st_mtime_ns) for file in run.path.glob("checkpoints/*.ckpt"))


def _flags_first(words: list[str]) -> list[str]:
    """argparse wants what starts with a dash, and its value, before all overrides and not between them."""
    flags: list[str] = []
    others: list[str] = []
    before = ""
    for word in words:
        is_flag = word.startswith("-") or before in FLAGS_WITH_VALUE
        (flags if is_flag else others).append(word)
        before = "" if before in FLAGS_WITH_VALUE else word
    return flags + others


def _describe(run: RunFolder, cfg: DictConfig) -> None:
    save_config(cfg, run.path)
    write_json(run.path / "reports" / "changes.json", config_changes(cfg))
    run.sections["Run"] = {
        "name": cfg.name,
        "folder": run.path,
        "tags": ", ".join(cfg.tags) or None,
        "typed": " ".join(map(masked_override, typed_overrides())) or "nothing",
    }
    run.sections["Configuration"] = {"config.yaml": "\n" + yaml_of(cfg, resolve=True).rstrip()}
    run.update()
    log.debug("Command line: %s", " ".join(sys.argv))


def checkpoint_to_go_on_from(folder: Path) -> Path | None:
    """The last checkpoint of a run folder that can be read; None without any: the run begins anew."""
    if not any(folder.glob("checkpoints/*.ckpt")):
        return None
    from imago.checkpoints import last_readable

    return last_readable(folder / "checkpoints")


def _report(run: RunFolder) -> None:
    """`report.html` of what was trained or scored, with how it ended."""
    if (run.path / "metrics.jsonl").is_file() or any(run.path.glob("reports/[dm]*.json")):  # of data, or metrics
        from imago.run_report import refresh_report

        refresh_report(run.path)


def _give_up(run: RunFolder, before: Before, status: str, error: str, code: int) -> NoReturn:
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *STOPPING):  # the first one has ended the run; a second would keep that a secret
            handlers[number] = signal.signal(number, signal.SIG_IGN)
    log.info("The run folder is %s", run.path)
    error = plain(error)  # it may quote a stranger's file
    log.error("%s", error)
    try:
        run.update(status=status, error=error)
        before.restore(run)
        _report(run)
    except OSError as unwritable:  # a full disk, say, must not hide what went wrong
        log.error("status.json could not be written: %s", unwritable)
    if status == "failed" and HydraConfig.get().mode == RunMode.MULTIRUN:
        for number, handler in handlers.items():  # for the next job
            signal.signal(number, handler)
        raise JobFailedError(error)
    sys.exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _terminated(*_: Any) -> NoReturn:
    raise SystemExit(TERMINATED)


def _go_on(run: RunFolder) -> str:
    """What to type, after training."""
    return f" Go on with {_resume(run)}" if (run.path / "checkpoints" / "last.ckpt").is_file() else ""


def _resume(run: RunFolder) -> str:
    return shlex.quote(f"resume={for_hydra(str(run.path))}")

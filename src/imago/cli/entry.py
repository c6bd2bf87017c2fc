"""A command as the shell starts it, and as Python calls it: composing, mistakes, exit statuses."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.cli.command import Check, Task, TaskError, execute, objective
from imago.cli.compose import own_folder, own_folders
from imago.cli.environment import prepare_shell
from imago.cli.help import page_for
from imago.cli.hydra_errors import config_folder, explain_hydra_error, yaml_message
from imago.cli.hydra_internals import composed_fast, errors_raised, run_job
from imago.cli.isolation import isolated, isolated_torch
from imago.cli.leader import Leader, led
from imago.cli.search_space import check_search
from imago.cli.start_from import Arguments, plain_args
from imago.cli.stop_signals import stopped_by_signals
from imago.cli.sweep import Sweep, reported_sweep
from imago.cli.typed_words import check_choices, check_words, flags_first, without_multirun
from imago.config.auto_model import with_plain_model
from imago.config.checks import check as check_training
from imago.config.invocation import Invocation
from imago.config.preprocessing import choose_preprocessing
from imago.config.resolvers import know_sweep, register
from imago.config.root import CONFIG_DIR, KeptRoot, Root
from imago.definitions import INTERRUPTED, STOPPING
from imago.errors import UserError, cause_of, user_error_in
from imago.masking import masked
from imago.run.folder import PROGRAM_BEGAN
from imago.run.search_place import Trial
from imago.terminal import closed_output_survived, closed_pipe_allowed, fail, plain, typed_program


@dataclass(frozen=True)
class Command:
    """A task with the config of the same name: called without arguments, it is the program of the command line.

    Args:
        name: The config that is composed, and the folder below `paths.log_dir`.
        task: Given the config, the run folder and the invocation. What it returns, or the `objective` of that, is what
            a sweep makes as good as it can.
        check: Raises UserError for settings that cannot work, before anything heavy is imported.
        root: What the root of the config may have besides `Root`; the config starts from `NAME_schema`.
        arguments: Replaces words of the command line by what they stand for.
        complete: May choose settings that nobody has, and the options that they belong to.
        choices: Setting -> valid values, checked before a checkpoint is read.
        one_process: Devices do not matter.
        at_end: Reports a sweep when it has ended; None prints its table.
    """

    name: str
    task: Task
    check: Check = check_training
    root: type[KeptRoot] | None = None
    arguments: Callable[[list[str]], Arguments] = plain_args
    complete: Callable[[DictConfig, Invocation], tuple[DictConfig, Invocation]] = lambda *made: made
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    one_process: bool = False
    at_end: Callable[[Sweep], None] | None = None

    def __call__(self) -> Any:
        """Does what was typed. Lets people type `-m` between the overrides, explains what cannot be composed, and ends
        without a traceback."""
        PROGRAM_BEGAN[:] = [time.monotonic()]
        program = typed_program(self.name)
        asks_for_traceback = os.environ.get("HYDRA_FULL_ERROR", "").lower() not in ("", "0", "false", "no")
        explained = partial(self._explained, program, asks_for_traceback)
        with (
            closed_pipe_allowed(),
            stopped_by_signals(),
            errors_raised(),
            composed_fast(),
            explained(),
            led(f"ml-{self.name}", self.one_process) as leader,
            explained(),  # before the leader ends the other processes, and a launcher this one
        ):
            return self._typed(program, leader)

    @contextmanager
    def _explained(self, program: str, asks_for_traceback: bool) -> Iterator[None]:
        """Inside, what goes wrong ends the program, with a message if it has none yet."""
        try:
            yield
        except KeyboardInterrupt:
            _leave(INTERRUPTED)
        except BrokenPipeError:
            raise
        except TaskError:  # it has been said
            _leave(1)
        except yaml.YAMLError as error:
            fail(yaml_message(error))
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            if asks_for_traceback:
                raise
            fail(describe_error(error, self.name, sys.argv[1:], program))

    def _typed(self, program: str, leader: Leader | None) -> Any:
        page = page_for(sys.argv[1:], self.name, program)
        if page is not None:
            print(page)
            return None
        prepare_shell()
        return self._from_shell(program if leader is None else leader.launch.typed(program), leader)

    def call(self, *words: str, trial: Trial | None = None, program: str = "") -> tuple[Any, Path]:
        """Does in this process what would be done if `words` were typed, as a `trial` of a search if there is one;
        `program` is the command as it was typed, in what the run says to type.

        Returns:
            What the task returns, and the run folder.

        Raises:
            UserError: Something that was typed cannot work.
            TaskError: The task failed in another way. Its words, too, are those that the command line shows.
            KeyboardInterrupt: Ctrl-C.
        """
        with closed_output_survived(), isolated(), isolated_torch(), errors_raised(), composed_fast():
            return self._compose(
                words,
                lambda cfg, made: (self._execute(cfg, made, trial=trial), Path(made.output_dir)),
                trial=trial,
                program=program,
            )

    def load_config(self, *words: str) -> DictConfig:
        """The composed config, interpolations and all; nothing is run and no folder is made."""
        with isolated(), errors_raised(), composed_fast():
            return self._compose(words, _resolved, "hydra.run.dir=.")

    def _compose(
        self,
        words: tuple[str, ...],
        then: Callable[[DictConfig, Invocation], Any],
        *last: str,
        trial: Trial | None = None,
        program: str = "",
    ) -> Any:
        results: list[Any] = []
        errors: list[BaseException] = []
        _check_words(words)
        try:
            check_words(words, self.name, self._settings())
            arguments, config_name = self._prepare(list(words))
            if trial is not None:
                know_sweep(trial.facts)

            def job(cfg: DictConfig) -> None:
                try:  # Hydra would print what is raised in here
                    made = Invocation.from_hydra(arguments.own_checkpoint, program or f"ml-{self.name}")
                    invocation = with_plain_model(made)
                    if trial is not None:
                        invocation = replace(invocation, sweep_dir=trial.sweep_dir)
                    results.append(then(*self._completed(cfg, invocation)))
                except BaseException as error:
                    errors.append(error)

            run_job(config_name, [*arguments.words, *last], job)
            for error in errors:
                raise error
        except TaskError as error:
            cause = cause_of(error.__cause__ or error)
            if isinstance(cause, UserError):
                raise _readable(cause) from None
            if isinstance(cause, OmegaConfBaseException):
                raise UserError(str(error)) from cause
            raise
        except UserError as error:
            _readable(error)
            raise
        except yaml.YAMLError as error:
            raise UserError(yaml_message(error)) from error
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            raise _readable(UserError(describe_error(error, self.name, list(words)))) from error
        return results[0]

    def _prepare(self, words: list[str]) -> tuple[Arguments, str]:
        """The words with what they stand for, and the name of the config that is composed."""
        self.register(words)
        check_own_options(words)
        check_choices(words, self.choices)
        arguments = self.arguments(words)
        if arguments.words[:1] == ["--config-name"]:
            return Arguments(arguments.words[2:], arguments.own_checkpoint), arguments.words[1]
        return arguments, self.name

    def _from_shell(self, program: str, leader: Leader | None) -> Any:
        self.register(sys.argv[1:])
        check_words(sys.argv[1:], self.name, self._settings(), program)
        words = without_multirun(flags_first(sys.argv[1:]))
        check_own_options(words)
        check_choices(words, self.choices)
        check_search(words, self.name, program, leader.launch if leader is not None else None)
        arguments = self.arguments(words)
        sys.argv[1:] = arguments.words

        @wraps(self.task)
        def job(cfg: DictConfig) -> Any:
            invocation = with_plain_model(Invocation.from_hydra(arguments.own_checkpoint, program))
            try:
                return objective(self._execute(*self._completed(cfg, invocation), leader))
            except KeyboardInterrupt:
                _leave(INTERRUPTED)
            except TaskError:
                if invocation.sweep_dir is not None and leader is None:
                    raise  # the sweeper decides what becomes of the other jobs
                _leave(1)
            except UserError as error:
                fail(str(error))

        job.__dict__["command"] = self  # a search asks whose trials it is to start
        with closed_output_survived(), reported_sweep(self.at_end):
            return hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=self.name)(job)()

    def _completed(self, cfg: DictConfig, invocation: Invocation) -> tuple[DictConfig, Invocation]:
        cfg, invocation = self.complete(cfg, invocation)
        return choose_preprocessing(cfg), invocation

    def _settings(self) -> list[str]:
        """Keys at the root of the config."""
        return [entry.name for entry in fields(self.root or Root)]

    def _execute(
        self, cfg: DictConfig, invocation: Invocation, leader: Leader | None = None, trial: Trial | None = None
    ) -> Any:
        return execute(self.task, cfg, invocation, self.check, self.one_process, leader, trial)

    def register(self, words: Sequence[str] = ()) -> None:
        """Makes what the config may hold and call known to Hydra, for the `words` of a command line; may be called
        again."""
        register(words, own_folders(words))
        if self.root is not None:
            ConfigStore.instance().store(name=f"{self.name}_schema", node=self.root())


def _check_words(words: tuple[str, ...]) -> None:
    """Raises UserError for what the command line takes and a function does not."""
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"Overrides must be strings, for example 'trainer.max_epochs=3'; got {word!r}.")
        if word in ("-m", "--multirun") or word.startswith("hydra.mode="):
            raise UserError("A function starts one run, not a sweep. Call it for each run, or use the command with -m.")
        if word.startswith("-"):
            folder = own_folder(list(words)) if word.startswith(("--config-dir", "-cd")) else None
            instead = f". To add a config folder: {config_folder(folder)}" if folder is not None else ""
            raise UserError(f"{word} works on the command line only. Functions take overrides{instead}.")


def _readable(error: UserError) -> UserError:
    """The error with the message that the command line would print: without secrets and control characters."""
    error.args = (masked(plain(str(error))),)
    return error


def _resolved(cfg: DictConfig, _: Invocation) -> DictConfig:
    OmegaConf.set_struct(cfg, False)
    cfg.paths.output_dir = "RUN"
    OmegaConf.resolve(cfg)
    return cfg


def describe_error(error: BaseException, config_name: str, words: list[str], program: str = "") -> str:
    """The message for what cannot be composed; `program` is the command as it was typed, empty in Python."""
    if (ours := user_error_in(error)) is not None:
        return str(ours)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # only Hydra's own work raises it here
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & {*words} else "hydra.run.dir"
        return f"The run folder cannot be created: {error}. Type another {key}= or paths.log_dir="
    assert isinstance(error, Exception)
    return explain_hydra_error(error, config_name, words, program)


def check_own_options(words: list[str]) -> None:
    """Raises UserError for files of one's own in --config-dir that a shipped option of that name would replace."""
    folders = [folder for folder in own_folders(words) if folder.is_dir()]
    own = [(folder, file.relative_to(folder)) for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    shipped = [
        (f, file) for f, file in own if f.resolve() != Path(CONFIG_DIR).resolve() and (CONFIG_DIR / file).is_file()
    ]
    lines = [
        f"{folder / taken} has the name of a shipped option, which would be used instead of it. Rename it, for example "
        f"to {folder / taken.with_stem(f'my_{taken.stem}')}, and type {taken.parent.as_posix()}=my_{taken.stem}"
        for folder, taken in shipped
    ]
    if lines:
        raise UserError("\n".join(lines))


def _leave(status: int) -> NoReturn:
    """Ends the program; a second signal must not change the status that the first one has led to."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *STOPPING):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(status)

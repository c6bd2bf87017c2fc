"""Check the words of a command line before anything is composed: flags, paths and settings of other trainers."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from imago.cli.compose import is_sweep, own_folders
from imago.cli.corrected import corrected_parts, describe
from imago.cli.experiment_words import check_files
from imago.cli.findings import Typed
from imago.cli.word_hints import FLAGS_WITH_VALUE, examine
from imago.config.invocation import override_key, override_value
from imago.errors import UserError

SHOWING = ("--cfg", "-c", "--info", "-i")
"""Flags that show the settings of one run."""


def check_words(words: Sequence[str], command: str, settings: Collection[str], program: str = "") -> None:
    """Raise UserError for the words that other trainers take and this command does not, all of them at once.

    Args:
        words: What was typed after the program.
        command: Name of the command, such as `train`.
        settings: Keys at the root of its config.
        program: The program as it was typed, for the corrected command line; empty for a Python function.
    """
    folders = [folder for folder in own_folders(words) if folder.is_dir()]
    groups = [entry.name for folder in folders for entry in folder.iterdir()]
    sweep = any(word in ("-m", "--multirun") for word in words)
    keys = [override_key(word) for word in words]
    typed = Typed(command, {*settings, *groups}, folders, "experiment" in keys, sweep, keys=keys)
    parts = list(examine(words, typed))
    if any(finding is not None and not finding.is_unknown for _, finding in parts):  # Hydra refuses unknown words
        raise UserError(describe(corrected_parts(parts, typed, program), typed, program))
    check_files(words, typed)


def check_choices(words: Sequence[str], choices: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a typed value that is not among the choices of its setting."""
    is_multirun = any(word in ("-m", "--multirun") for word in words)
    for word in words:
        key, value = override_key(word), override_value(word).strip("'\"")
        if key in choices and "=" in word and not (is_multirun and "," in value):
            check_choice(key, value, choices[key])


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value in choices:
        return
    close = [name for name in choices if name in str(value)] or get_close_matches(str(value), choices, n=1)
    meant = f" Type {key}={close[0]}" if close else ""
    raise UserError(f"{key} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value}.{meant}")


def flags_first(words: Sequence[str]) -> list[str]:
    """Move what starts with a dash, and its value, to the front: argparse does not want them between overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    before = ""
    for word in words:
        is_value = before in FLAGS_WITH_VALUE
        (flags if word.startswith("-") or is_value else overrides).append(word)
        before = "" if is_value else word
    return flags + overrides


def without_multirun(words: Sequence[str]) -> list[str]:
    """Remove `-m` beside a flag that shows the settings of one run, which Hydra takes alone.

    Raises:
        UserError: Settings have several values, so that there is not one run.
    """
    flag = next((word for word in words if word.split("=")[0] in SHOWING), None)
    if flag is None or not {"-m", "--multirun"} & {*words}:
        return list(words)
    if swept := [word for word in words if is_sweep(word)]:
        typed = " ".join(map(shlex.quote, swept))
        raise UserError(f"{flag} shows the settings of one run. Remove -m, and type one value in {typed}")
    return [word for word in words if word not in ("-m", "--multirun")]

"""Words of the commands that take a folder and options with dashes, in place of settings."""

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

from imago.errors import UserError


class DashParser(argparse.ArgumentParser):
    """Parser whose errors are raised with an `example` of what to type, in place of a usage."""

    example = ""

    def error(self, message: str) -> NoReturn:
        missing = "the folder is missing" if message.endswith(" required: folder") else message
        raise UserError(f"{missing}. Type, for example: {self.example}")


def check_words(program: str, words: Sequence[str], corrected: Sequence[str], takes: str) -> None:
    """Raise UserError with the words that are meant, if they are not those that were typed."""
    if list(corrected) != list(words):
        raise UserError(f"{program} takes {takes}. Type: {program} {shlex.join(corrected)}")


def as_options(words: Sequence[str], options: Mapping[str, str], fractions: Sequence[str] = ()) -> list[str]:
    """Words as the command takes them: `data.test_ratio=20%` becomes `--test 0.2`; other words stay.

    `options` maps a name that somebody may type, without dashes and `data.`, to the option; empty for the folder, which
    has none. `fractions` are the options whose value may be a percentage. The value of an option stays, and so does a
    comparison: `--where seed==1`.
    """
    corrected: list[str] = []
    taking = {option for option in options.values() if option}
    for word in words:
        name, equals, value = word.partition("=")
        option = options.get(name.lstrip("-").removeprefix("data.").replace("-", "_"))
        is_value = not word.startswith("--") and corrected and corrected[-1] in taking
        if option is None or is_value or value.startswith("=") or not (equals or word.startswith("--")):
            corrected.append(_fraction(word) if corrected and corrected[-1] in fractions else word)
            continue
        value = _fraction(value) if option in fractions else value
        corrected += [f"{name}{equals}{value}"] if option == name else [part for part in (option, value) if part]
    return corrected


def _fraction(text: str) -> str:
    """Write a percentage as a fraction: `20` and `20%` become `0.2`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    is_percentage = match is not None and (match[2] or 1 < float(match[1]) < 100)
    return f"{float(match[1]) / 100:g}" if match is not None and is_percentage else text

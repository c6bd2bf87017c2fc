"""Conditions on runs, as `--where` takes them: `model.net.name==resnet18 and not (val/acc<0.9 or state==dead)`.

A condition is parsed, and never evaluated as code. `not` binds closer than `and`, and `and` closer than `or`.
"""

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from imago.cli.run_columns import Column, Columns, as_text, cut
from imago.errors import UserError
from imago.run.overview import Overview
from imago.terminal import shortened

Test = Callable[[Overview], bool]
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
TOKEN = re.compile(r"""\s*(?:(==|!=|<=|>=|[<>=()])|"([^"]*)"|'([^']*)'|([^\s<>=!()"']+)|(\S))""")
NO_VALUE = ("null", "none")
STATES = ("completed", "running", "failed", "dead", "interrupted", "preempted", "pruned", "checked", "unknown")
MOST_NESTED, LONGEST = 50, 200
"""Brackets and `not` in a condition, each of which is a call in a call; characters of it that a message shows."""
EXAMPLE = "--where 'model.net.name==resnet18 and val/acc>0.9'"


@dataclass(frozen=True)
class Token:
    """A part of a condition: its `kind` is `sign`, `word` or `text` (a word in quotes)."""

    kind: str
    text: str


def parse_condition(text: str, columns: Columns) -> Test:
    """Parse a condition to a test of a run.

    A run without a value fits `name==null` and `name!=…`, and no other comparison.

    Raises:
        UserError: The condition is no sentence of comparisons, or names an unknown column or value.
    """
    return _Parser(text, columns).parse()


class _Parser:
    def __init__(self, text: str, columns: Columns) -> None:
        self.text = text
        self.columns = columns
        self.tokens = self._tokens()
        self.at = 0

    def parse(self) -> Test:
        if sum(token.kind != "text" and token.text in ("(", "not") for token in self.tokens) > MOST_NESTED:
            self._fail(f"it has more than {MOST_NESTED} brackets and nots")
        test = self._either()
        if self.at < len(self.tokens):
            self._fail(f"'and' or 'or' is missing before {self.tokens[self.at].text}")
        return test

    def _tokens(self) -> list[Token]:
        tokens = []
        for match in TOKEN.finditer(self.text.rstrip()):
            sign, double, single, word, odd = match.groups()
            if odd is not None:
                self._fail(f"{odd} is not expected")
            if sign is not None:
                tokens.append(Token("sign", sign))
            elif word is not None:
                tokens.append(Token("word", word))
            else:
                tokens.append(Token("text", double if double is not None else single))
        return tokens

    def _either(self) -> Test:
        tests = [self._both()]
        while self._takes("or"):
            tests.append(self._both())
        return lambda run: any(test(run) for test in tests)

    def _both(self) -> Test:
        tests = [self._inverted()]
        while self._takes("and"):
            tests.append(self._inverted())
        return lambda run: all(test(run) for test in tests)

    def _inverted(self) -> Test:
        if self._takes("not"):
            test = self._inverted()
            return lambda run: not test(run)
        if self._takes("(", "sign"):
            test = self._either()
            if not self._takes(")", "sign"):
                self._fail("a ) is missing")
            return test
        return self._comparison()

    def _comparison(self) -> Test:
        name = self._next("a column, such as val/acc or lr")
        if name.kind == "sign":
            self._fail(f"a column is missing before {name.text}")
        column = self.columns.named(name.text)
        sign = self._next(f"==, !=, <, <=, > or >= after {name.text}")
        if sign.text == "=":
            self._fail(f"{name.text}= compares nothing. Type {name.text}==")
        if sign.kind != "sign" or sign.text not in COMPARISONS:
            self._fail(f"==, !=, <, <=, > or >= is missing after {name.text}")
        typed = self._next(f"a value after {name.text}{sign.text}")
        if typed.kind == "sign":
            self._fail(f"a value is missing after {name.text}{sign.text}")
        return self._compared(column, sign.text, typed)

    def _compared(self, column: Column, sign: str, typed: Token) -> Test:
        value = _value(typed)
        compare = COMPARISONS[sign]
        if sign in ("==", "!="):
            if isinstance(value, str):
                self._check_known(column, value)
            is_equal = sign == "=="
            return lambda run: _equals(column, run, value) is is_equal
        if not isinstance(value, float):
            self._fail(f"{sign} needs a number, got {typed.text}")
        return lambda run: isinstance(seen := column.value(run), int | float) and compare(seen, value)

    def _check_known(self, column: Column, value: str) -> None:
        """Fail for a text that no run has, if it resembles one that some run has: it is mistyped."""
        known = {as_text(column.value(run)) for run in self.columns.runs}
        known |= {column.text(run) for run in self.columns.runs} if column.text is not None else set()
        known |= set(STATES) if column.name == "state" else set()
        close = difflib.get_close_matches(value, sorted(known), n=1) if value not in known else []
        if close:
            raise UserError(
                f"No run has {column.name} {value}. Did you mean {close[0]}? "
                f"There are: {shortened(sorted(known - {''}), 10)}."
            )

    def _takes(self, text: str, kind: str = "word") -> bool:
        has_it = self.at < len(self.tokens) and self.tokens[self.at] == Token(kind, text)
        self.at += has_it
        return has_it

    def _next(self, missing: str) -> Token:
        if self.at == len(self.tokens):
            self._fail(f"{missing} is missing at the end")
        self.at += 1
        return self.tokens[self.at - 1]

    def _fail(self, reason: str) -> NoReturn:
        raise UserError(f"--where {cut(self.text, LONGEST)!r}: {reason}. For example: {EXAMPLE}")


def _value(token: Token) -> Any:
    """Value of a word: a number, a boolean, None or a text; in quotes it is a text."""
    if token.kind == "text":
        return token.text
    if token.text.lower() in NO_VALUE:
        return None
    if token.text.lower() in ("true", "false"):
        return token.text.lower() == "true"
    try:
        return float(token.text)
    except ValueError:
        return token.text


def _equals(column: Column, run: Overview, value: Any) -> bool:
    """Whether a run has the value, or shows it: `optimizer==SGD` fits `torch.optim.SGD`."""
    seen = column.value(run)
    if isinstance(value, str):
        return seen is not None and value in (as_text(seen), str(seen), column.text(run) if column.text else None)
    if isinstance(value, float) and isinstance(seen, bool):
        return False
    if isinstance(value, float) and isinstance(seen, str):  # a setting that was typed, such as a group
        return _value(Token("word", seen)) == value
    return bool(seen == value) and isinstance(seen, bool) is isinstance(value, bool)

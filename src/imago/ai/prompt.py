"""Prompts: the signature of a Python function, with type hints and a docstring."""

import ast
import hashlib
import textwrap
from dataclasses import dataclass

from imago.errors import UserError

EXAMPLE = 'def invert(image: Tensor) -> Tensor:\n    """Inverts uint8 images."""'
MOST_CHARACTERS = 5_000


@dataclass(frozen=True)
class Prompt:
    """A function that is to be written: its source without a body, its name, and the definition as Python parses it."""

    text: str
    name: str
    definition: ast.FunctionDef

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters, in order."""
        arguments = self.definition.args
        return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def read_prompt(text: str) -> Prompt:
    """Read a prompt.

    Raises:
        UserError: It is no signature of one function, lacks a type hint or the docstring, or has a body.
    """
    text = textwrap.dedent(text).strip()
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"transform_prompt has {len(text)} characters; {MOST_CHARACTERS} are the most.")
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(f"it is no Python ({error})") from error
    if len(statements) != 1 or not isinstance(statements[0], ast.FunctionDef):
        raise _refused("it must be one function")
    function = statements[0]
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    defaults = [*arguments.defaults, *(value for value in arguments.kw_defaults if value is not None)]
    if function.decorator_list or arguments.vararg or arguments.kwarg or not named:
        raise _refused("it must have named parameters, and neither decorators nor * or **")
    if untyped := [argument.arg for argument in named if argument.annotation is None]:
        raise _refused(f"{', '.join(untyped)} has no type hint")
    if function.returns is None:
        raise _refused("the type hint of the result is missing (-> Tensor)")
    if not all(isinstance(value, ast.Constant) for value in defaults):
        raise _refused("defaults must be numbers, texts, true, false or None")
    if not ast.get_docstring(function):
        raise _refused("the docstring, which says what to do, is missing")
    if any(not _is_placeholder(statement) for statement in function.body[1:]):
        raise _refused("it has a body, which is what is to be written")
    if any("__" in name for name in (function.name, *(argument.arg for argument in named))):
        raise _refused("names must not have double underscores")
    return Prompt(text, function.name, function)


def _is_placeholder(statement: ast.stmt) -> bool:
    is_dots = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass) or is_dots


def _refused(why: str) -> UserError:
    return UserError(f"transform_prompt: {why}. Write a signature with type hints and a docstring, such as\n{EXAMPLE}")

"""`AITransformWrapper`: a step of a batch or of images whose function a language model has written."""

import __future__

import ast
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from imago.ai import endpoint
from imago.ai.check import RefusedCodeError, allowed_builtins, check_code
from imago.ai.prompt import Prompt, read_prompt
from imago.ai.trusted import IS_TYPED, digest_of, is_trusted, remember
from imago.errors import UserError
from imago.files import write_text
from imago.wiring import WrapTransform

log = logging.getLogger(__name__)

WRITTEN: set[str] = set()
"""Digests of what this process has had written: nobody can have read it when the command was typed."""
HEADER = "# Written by a language model ({model}) for the prompt with SHA-256 {digest}\n"


class AITransformWrapper(WrapTransform):
    """Turn a sentence into a transform of batches, or of images: the function is written once by an OpenAI-compatible
    endpoint, checked, stored as `path`/NAME.py, and used from there without a call.

    Nothing that was generated runs before it was read and `trust_generated=true` was typed.

    Args:
        transform_prompt: Signature of a Python function, with type hints and a docstring that says what to do.
        new_key: Key of the result in the batch; if None, the function returns a dictionary.
        mapping: Batch key -> argument of the function. Not needed for a function that is called with an image.
        model: Name of the language model.
        path: Folder of the functions.
        force: Whether to have it written again, in place of the stored one.

    Raises:
        UserError: The prompt is no signature, the endpoint does not answer, or the code is refused or not trusted.
    """

    def __init__(
        self,
        transform_prompt: str,
        new_key: str | None = None,
        mapping: Mapping[str, str] | None = None,
        model: str = "gpt-5-nano",
        path: str = "ai_generations/",
        force: bool = False,
    ) -> None:
        prompt = read_prompt(transform_prompt)
        if unknown := sorted({*(mapping or {}).values()} - {*prompt.parameters}):
            raise UserError(
                f"mapping names {', '.join(unknown)}, but {prompt.name} takes {', '.join(prompt.parameters)}. A "
                "mapping goes from batch key to argument."
            )
        function = GeneratedFunction(prompt, trusted_code(prompt, model, Path(path), force))
        super().__init__(function, mapping or {}, new_key)

    def forward(self, batch: Any) -> Any:
        """Apply the function to a batch, a dictionary, or to a single tensor, its first argument."""
        assert isinstance(self.transform, GeneratedFunction)
        return super().forward(dict(batch)) if isinstance(batch, Mapping) else self.transform(batch)


class GeneratedFunction:
    """A checked function with Python's own functions reduced to those that compute; it can be sent to workers."""

    def __init__(self, prompt: Prompt, code: str) -> None:
        self._text, self._code = prompt.text, code
        self._function = _compiled(prompt, code)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function(*arguments, **named)

    def __getstate__(self) -> tuple[str, str]:
        return self._text, self._code

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(read_prompt(state[0]), state[1])  # type: ignore[misc]


def trusted_code(prompt: Prompt, model: str, folder: Path, force: bool) -> str:
    """The code of a prompt, from its file or else from the endpoint, if the user trusts it.

    Raises:
        UserError: It is refused, or not trusted yet; then the message says what to type.
    """
    file = folder / f"{prompt.name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{prompt.name}.lock"):
        if force or not file.is_file():
            _write(prompt, model, file)
        code = file.read_text(encoding="utf-8")
        _check_stored(prompt, code, file)
        is_new = digest_of(code) in WRITTEN
        if is_trusted(code):
            return code
        if IS_TYPED.get() and not is_new:
            remember(code, str(file.absolute()))
            log.info("%s is trusted from now on, as long as it stays as it is", file)
            return code
    log.info("%s:\n%s", file, code)
    written = "has just been written by a language model" if is_new else "was written by a language model"
    how = f"{'without force, ' if force else ''}trust_generated=true (in Python: imago.ai.trust({str(file)!r}))"
    raise UserError(f"{file} {written}, and has not run. Read it. If you trust it, type the command again with {how}")


def _write(prompt: Prompt, model: str, file: Path) -> None:
    log.info("Asking %s for the function %s", model, prompt.name)
    code = endpoint.ask(prompt, model)
    _check(prompt, code, f"The function that {model} wrote for {prompt.name}")
    code = HEADER.format(model=" ".join(model.split()), digest=prompt.digest) + code
    write_text(file, code)
    WRITTEN.add(digest_of(code))


def _check_stored(prompt: Prompt, code: str, file: Path) -> None:
    if prompt.digest not in code.partition("\n")[0]:
        raise UserError(
            f"{file} was written for another prompt, and is kept. Give the function of transform_prompt another name, "
            "or set force: true once."
        )
    _check(prompt, code, str(file))


def _check(prompt: Prompt, code: str, what: str) -> None:
    try:
        check_code(code, prompt)
    except RefusedCodeError as error:
        log.debug("%s:\n%s", what, code)
        raise UserError(f"{what} is refused: {error}.") from error


def _compiled(prompt: Prompt, code: str) -> Any:
    names = {"__builtins__": allowed_builtins(), **check_code(code, prompt)}
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]  # its imports are in `names`
    flags = __future__.annotations.compiler_flag  # type hints are not evaluated
    exec(compile(tree, f"<{prompt.name}>", "exec", flags=flags, dont_inherit=True), names)
    return names[prompt.name]

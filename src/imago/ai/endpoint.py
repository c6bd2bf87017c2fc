"""An OpenAI-compatible endpoint, asked once for a function."""

import os
from typing import Any

from imago.ai.prompt import Prompt
from imago.errors import UserError

KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
SECONDS = 120
MOST_BYTES = 1_000_000
INSTRUCTIONS = """Write the Python function with exactly this signature and docstring. Answer with the code alone.
Use PyTorch on tensors, for any number of leading dimensions, without loops over pixels.
Import only from: math, torch, torch.nn.functional, torch.linalg, torch.fft, torchvision.transforms.v2.functional.
No other functions, classes, files, network, lambda, try, with, while, or names with underscores at their start."""


def ask(prompt: Prompt, model: str) -> str:
    """Ask the endpoint for the code of a function.

    Raises:
        UserError: There is no key, the endpoint cannot be reached, or its answer is no code.
    """
    try:
        import httpx
    except ImportError as error:
        raise UserError("AITransformWrapper needs the package httpx: pip install 'imago[ai]'") from error
    key, url = os.environ.get(KEY, ""), os.environ.get(URL, "") or DEFAULT_URL
    if not key:
        raise UserError(
            f"AITransformWrapper: {prompt.name} is not written yet, and {KEY} is not set. Type export {KEY}=…"
        )
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt.text}]
    where = f"{url.rstrip('/')}/chat/completions"
    try:
        with httpx.stream(
            "POST",
            where,
            json={"model": model, "messages": messages},
            headers={"Authorization": f"Bearer {key}"},
            timeout=SECONDS,
        ) as response:
            body = _read(response, where)
            if response.status_code != 200:
                said = _plain(body[:300].decode(errors="replace"), key)
                raise UserError(f"{where} answered with status {response.status_code}: {said}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{where} cannot be asked: {_plain(str(error), key)}. {URL} is the address.") from error
    return code_in(_content(body, where))


def code_in(answer: str) -> str:
    """The code of an answer: what is between the first fence and the next, or all of it."""
    _, fence, rest = answer.partition("```")
    if not fence:
        return answer.strip() + "\n"
    first, _, code = rest.partition("\n")
    if first.strip().lower() not in ("", "python", "py"):
        code = rest
    return code.partition("```")[0].strip() + "\n"


def _read(response: Any, where: str) -> bytes:
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise UserError(f"{where} answered with more than {MOST_BYTES} bytes.")
    return body


def _content(body: bytes, where: str) -> str:
    import json

    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise UserError(f"{where} answered with something else than a chat completion.") from error
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{where} answered with no text.")
    return content


def _plain(text: str, key: str) -> str:
    """Text of the endpoint in one line, without the key, which it may repeat."""
    return " ".join(text.replace(key, "***").split())

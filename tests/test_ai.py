"""`AITransformWrapper`: functions from an endpoint are checked, read, trusted, used again; hostile ones are refused."""

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from helpers import SMALL

from imago.ai import AITransformWrapper, trust
from imago.ai.check import RefusedCodeError, check_code
from imago.ai.prompt import read_prompt
from imago.ai.trusted import trust_typed
from imago.errors import UserError

PROMPT = 'def invert(image: Tensor) -> Tensor:\n    """Inverts uint8 images."""'
CODE = """import torch
from torch import Tensor


def invert(image: Tensor) -> Tensor:
    return torch.sub(255, image)
"""
KEY = "sk-secret"


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """A server that speaks the protocol: `answers` are what it says, `asked` what it was asked."""
    asked: list[dict] = []
    answers: list[object] = [f"Here it is:\n```python\n{CODE}```\nEnjoy."]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(content | {"path": self.path, "key": self.headers["Authorization"]})
            answer = answers[0]
            status = answer if isinstance(answer, int) else 200
            body = (
                answer
                if isinstance(answer, bytes)
                else json.dumps(
                    {"choices": [{"message": {"content": answer}}]} if status == 200 else {"error": f"no {KEY}"}
                ).encode()
            )
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("IMAGO_KEY_FILE", str(tmp_path / "own" / "key"))
    monkeypatch.chdir(tmp_path)
    server.asked, server.answers = asked, answers
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def next_process(monkeypatch):
    """As if the program had ended, and another command was typed."""
    return lambda: monkeypatch.setattr("imago.ai.transform.WRITTEN", set())


def test_a_function_is_written_read_trusted_and_used_again(endpoint, tmp_path, next_process):
    with trust_typed(True), pytest.raises(UserError, match="has just been written .* has not run. Read it"):
        AITransformWrapper(PROMPT, "image", {"image": "image"})  # nobody has read it yet
    (request,) = endpoint.asked
    assert (request["path"], request["key"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (request["model"], request["messages"][-1]["content"]) == ("gpt-5-nano", PROMPT)
    file = tmp_path / "ai_generations" / "invert.py"
    assert file.read_text().endswith(CODE)
    assert KEY not in file.read_text()
    with trust_typed(True), pytest.raises(UserError, match="has just been written"):
        AITransformWrapper(PROMPT, "image", {"image": "image"})
    next_process()
    with trust_typed(True):
        step = AITransformWrapper(PROMPT, "image", {"image": "image"})
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert torch.equal(step({"image": image, "label": 1})["image"], 255 - image)
    assert torch.equal(step(image[0]), 255 - image[0])
    again = pickle.loads(pickle.dumps(AITransformWrapper(PROMPT)))  # as loader workers get it
    assert torch.equal(again(image), 255 - image)
    assert len(endpoint.asked) == 1
    file.write_text(file.read_text().replace("255", "254"))  # changed: to be read again
    with pytest.raises(UserError, match="trust_generated=true"):
        AITransformWrapper(PROMPT)
    trust(file)
    assert torch.equal(AITransformWrapper(PROMPT)(image), 254 - image)
    other = PROMPT.replace("Inverts", "Turns round")
    with pytest.raises(UserError, match="was written for another prompt, and is kept"):
        AITransformWrapper(other)
    with trust_typed(True), pytest.raises(UserError, match="without force, trust_generated=true"):
        AITransformWrapper(other, force=True)
    assert len(endpoint.asked) == 2


HOSTILE = {
    "import os": "the import of os",
    "from torch import load": "torch.load",
    "from torch.utils import data": "the import of torch.utils",
    "import torch.hub": "the import of torch.hub",
    "from os import *": "the import of",
    "    open('x', 'w')": "open",
    "    exec('1')": "exec",
    "    eval('1')": "eval",
    "    __import__('os')": "underscores",
    "    getattr(image, 'x')": "getattr",
    "    ().__class__.__base__.__subclasses__()": "underscores",
    "    torch.os.system('true')": "torch.os",
    "    torch.load('x')": "torch.load",
    "    torch.save(image, 'x')": "torch.save",
    "    torch.from_file('x', shared=True, size=4)": "torch.from_file",
    "    torch.hub.load('a', 'b')": "torch.hub",
    "    torch.nn.functional.torch.os.system('true')": "torch.os",
    "    image.numpy().tofile('x')": "is not allowed",
    "    image.untyped_storage()": ".untyped_storage",
    "    '{0.x}'.format(image)": "format",
    "    f = torch\n    f.load('true')": "a module",
    "    for torch in [1]: pass": "torch is assigned to",
    "    torch.pi = 3": "an assignment to .pi",
    "    global x": "Global",
    "    while True: pass": "While",
    "    (lambda: 1)()": "Lambda",
    "    import math": "an import within the function",
    "    def inner(): pass": "FunctionDef",
    "    class A: pass": "ClassDef",
    "    x = [c for c in image.data_ptr.items]": ".data_ptr",
    "print(1)": "and nothing else",
    "@staticmethod": "signature",
    "    ) = 1": "no Python",
}


@pytest.mark.parametrize(("line", "message"), HOSTILE.items())
def test_hostile_code_is_refused(line, message):
    is_in_body = line.startswith("    ")
    code = CODE.replace("    return", f"{line}\n    return") if is_in_body else CODE.replace("\n\n\n", f"\n{line}\n")
    with pytest.raises(RefusedCodeError, match=message.replace(".", r"\.")):
        check_code(code, read_prompt(PROMPT))


def test_hostile_answers_leave_no_file(endpoint, tmp_path):
    def refused(answer: object) -> str:
        endpoint.answers[0] = answer
        with pytest.raises(UserError) as error:
            AITransformWrapper(PROMPT)
        assert not list(tmp_path.glob("ai_generations/*.py"))
        assert KEY not in str(error.value)
        return str(error.value)

    assert "is refused: the import of os" in refused(f"import os\n{CODE}")
    assert "its function is other, and not invert" in refused(CODE.replace("invert", "other"))
    assert "the signature of invert is another one" in refused(
        CODE.replace("image: Tensor", "image: Tensor, n: int = 1")
    )
    assert 'status 401: {"error": "no ***"}' in refused(401)
    assert "something else than a chat completion" in refused(b"<html>")
    assert "more than 1000000 bytes" in refused(b"x" * 1_000_001)
    assert "answered with no text" in refused("")
    assert "it has 2" in refused(CODE + "#" * 20_000)
    assert "it is no Python" in refused("I am sorry." + "(" * 500)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("invert the image", "it is no Python"),
        ("def f(x) -> Tensor:\n    '''Does.'''", "x has no type hint"),
        ("def f(x: Tensor):\n    '''Does.'''", "the type hint of the result is missing"),
        ("def f(x: Tensor) -> Tensor: ...", "the docstring, which says what to do, is missing"),
        ("def f(x: Tensor) -> Tensor:\n    '''Does.'''\n    return x", "it has a body"),
        ("def f(x: Tensor = open('x')) -> Tensor:\n    '''Does.'''", "defaults must be"),
    ],
)
def test_a_prompt_is_a_signature(prompt, message):
    with pytest.raises(UserError, match=message):
        AITransformWrapper(prompt)


def test_a_run_waits_for_trust_and_then_trains_with_the_function(endpoint, command, colours, next_process):
    prompt = "'def invert(image: Tensor) -> Tensor: \"Inverts uint8 images.\"'"
    node = f"+data.train_transform.pixels.invert={{_target_: imago.ai.AITransformWrapper, transform_prompt: {prompt}}}"
    words = [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=1", "test=false", node]
    assert (
        "invert.py has just been written by a language model" in command("train", *words, "trust_generated=true").error
    )
    next_process()
    untyped = command("train", *words)
    assert "type the command again with trust_generated=true" in untyped.error
    assert "return torch.sub(255, image)" in untyped.output  # it is shown
    trusted = command("train", *words, "trust_generated=true")
    assert trusted.exit_code == 0, trusted.output
    again = command("train", *words, "preflight=only")  # it is trusted from then on
    assert "Preflight passed" in again.output
    assert len(endpoint.asked) == 1
    assert "needs one process" in command("train", *words, "trust_generated=true", "trainer=ddp_sim").error

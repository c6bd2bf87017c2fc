"""A real browser whose keys are pressed: Chromium, by the DevTools protocol over two pipes."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--disable-quic", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")


class Browser:
    """A page in a browser of its own, with its profile in `folder`; `flags` go to its command line."""

    def __init__(self, folder: Path, *flags: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def place_pipes() -> None:  # where the browser looks for them; copies first, since 3 and 4 may be taken
            ends = os.dup(to_browser), os.dup(from_browser)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [str(CHROMIUM), *OPTIONS, *QUIET, *flags, f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.DEVNULL,
            preexec_fn=place_pipes,
            close_fds=False,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._rest, self._session = 0, b"", None
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def open(self, address: str) -> None:
        self._ask("Page.navigate", url=address)
        self.wait_for("document.readyState == 'complete'")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def value(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression} is not so: {self.value('document.body.innerText')}"
            time.sleep(0.05)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session is not None else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            whole, end, rest = self._rest.partition(b"\0")
            if not end:
                part = os.read(self._read, 2**16)
                assert part, "the browser has ended"
                self._rest += part
                continue
            self._rest = rest
            answer = json.loads(whole)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

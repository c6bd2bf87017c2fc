"""The page on which a person decides about labels that may be wrong: a server for this machine alone."""

import base64
import errno
import hashlib
import io
import json
import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from imago.errors import DiskError, UserError
from imago.report.label_decisions import Decisions
from imago.report.page import templates
from imago.terminal import counted

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SCRIPT = Path(__file__).with_name("html") / "labels.js"
LARGEST_REQUEST = 10_000  # bytes


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong: its path, label, and the class that it may be instead.

    Args:
        path: Its path in the data.
        label: The class name that it has.
        suggestion: The likeliest other class name.
        picture: Reads a thumbnail of it.
        neighbours: Images that the network finds similar, without neighbours of their own.
    """

    path: str
    label: str
    suggestion: str
    picture: Callable[[], Image.Image]
    neighbours: list["Suspect"] = field(default_factory=list)


class LabelPage(ThreadingHTTPServer):
    """Server of one page, on 127.0.0.1 only.

    Its address holds a random token, without which it answers nothing: no page of another site can read it, or decide
    about an image. Requests name images by their place in the list, so that no path comes from a browser.

    Args:
        suspects: The images, the likeliest wrong label first.
        decisions: What is decided about them.
        name: Name of the run.
        port: Port to listen on; 0 takes a free one.

    Raises:
        UserError: The port is taken, or not allowed.
    """

    daemon_threads = True

    def __init__(self, suspects: list[Suspect], decisions: Decisions, name: str, port: int) -> None:
        self.suspects, self.decisions, self.name = suspects, decisions, name
        self.token = secrets.token_urlsafe(16)
        self.lock = threading.Lock()  # of the files and of the images, which are read one at a time
        self._places = {suspect.path: place for place, suspect in enumerate(suspects)}
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            why = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
            raise UserError(f"port={port} {why}. Type another port=, or port=0 for any free one.") from error

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def page(self) -> tuple[str, str]:
        """The page, and the policy for it: it runs its own script, and loads from this server only."""
        with self.lock:
            self.decisions.refresh()
        made = self.decisions.made.items()
        facts = {
            "entries": [
                _shown(suspect) | {"neighbours": [*map(_shown, suspect.neighbours)]} for suspect in self.suspects
            ],
            "decisions": {
                self._places[path]: [decision.kind, decision.label] for path, decision in made if path in self._places
            },
        }
        script = SCRIPT.read_text(encoding="utf-8")
        page = (
            templates("labels.html")
            .get_template("html/labels.html.j2")
            .render(
                name=self.name,
                count=len(self.suspects),
                labels=self.decisions.class_names,
                folder=str(self.decisions.folder),
                settings=self.decisions.settings(),
                facts=Markup(json.dumps(facts).replace("<", "\\u003c")),  # data, which nothing runs
                script=Markup(script),
            )
        )
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        sources = f"img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        return page, f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

    def picture(self, places: list[str]) -> bytes | None:
        """JPEG of an image, or of one of its neighbours, by their places; None if there is none."""
        try:
            suspect = self.suspects[_place(places[0])]
            shown = suspect if len(places) == 1 else suspect.neighbours[_place(places[1])]
        except (ValueError, IndexError):
            return None
        buffer = io.BytesIO()
        with self.lock:
            shown.picture().convert("RGB").save(buffer, format="jpeg", quality=90)
        return buffer.getvalue()

    def decide(self, request: Any) -> dict[str, Any]:
        """Do what the page asks for: a decision, or `undo` of the last one."""
        if not isinstance(request, dict):
            raise UserError("The request is no decision.")
        with self.lock:
            if request.get("decision") == "undo":
                path = self.decisions.undo()
                place = self._places.get(path) if path is not None else None
                before = self.decisions.made.get(path or "")
                made = None if before is None else [before.kind, before.label]
                return {"index": place, "made": made, "settings": self.decisions.settings()}
            place = request.get("index")
            if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(self.suspects):
                raise UserError(f"index must be a whole number below {len(self.suspects)}, got {place!r}.")
            kind, label = str(request.get("decision")), str(request.get("label"))
            self.decisions.decide(self.suspects[place].path, kind, label)
            return {"index": place, "settings": self.decisions.settings()}


class _Handler(BaseHTTPRequestHandler):
    server: LabelPage
    timeout = 60

    def do_GET(self) -> None:
        parts = self._asked()
        if parts == [""]:
            try:
                page, policy = self.server.page()
            except UserError as error:
                self._answer(HTTPStatus.CONFLICT, str(error).encode("utf-8", "replace"), "text/plain; charset=utf-8")
                return
            self._answer(HTTPStatus.OK, page.encode("utf-8", "replace"), "text/html; charset=utf-8", policy)
        elif parts is not None and parts[0] == "image" and len(parts) in (2, 3):
            picture = self.server.picture(parts[1:])
            status = HTTPStatus.NOT_FOUND if picture is None else HTTPStatus.OK
            self._answer(status, picture or b"", "image/jpeg")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"", "text/plain")

    def do_POST(self) -> None:
        origin = self.headers.get("Origin")
        is_ours = origin in (None, f"http://{self.headers.get('Host')}")
        if self._asked() != ["decide"] or not is_ours:
            self._answer(HTTPStatus.NOT_FOUND, b"", "text/plain")
            return
        status, body = HTTPStatus.OK, {}
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST_REQUEST:
                raise UserError(f"A request has 1 to {LARGEST_REQUEST} bytes.")
            body = self.server.decide(json.loads(self.rfile.read(length)))
        except (DiskError, OSError) as error:
            status, body = HTTPStatus.INSUFFICIENT_STORAGE, {"error": f"Not saved: {error}"}
        except (ValueError, RecursionError) as error:
            status, body = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _asked(self) -> list[str] | None:
        """Parts of the path after the token; None without it, or under another name of this machine (a name that a
        stranger's server points here)."""
        parts, port = self.path.partition("?")[0].split("/"), self.server.server_port
        is_here = self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")
        is_known = len(parts) > 2 and secrets.compare_digest(parts[1].encode(), self.server.token.encode())
        return parts[2:] if is_here and is_known else None

    def _answer(self, status: HTTPStatus, content: bytes, kind: str, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": policy}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def serve_labels(suspects: list[Suspect], decisions: Decisions, name: str, port: int) -> None:
    """Serve the page until the process is interrupted, and log what to type then.

    Raises:
        UserError: The port is taken, or not allowed.
    """
    with LabelPage(suspects, decisions, name, port) as server:
        log.info("Labels of %s: %s at %s (Ctrl-C ends it)", name, counted(len(suspects), "image"), server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    settings = decisions.settings()
    what = f". To train with them, add {settings}" if settings else ""
    log.info("%s in %s%s", counted(len(decisions.made), "decision"), decisions.folder, what)


def _place(text: str) -> int:
    """Place in a list. Raises ValueError if it is none."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(text)
    return int(text)


def _shown(suspect: Suspect) -> dict[str, str]:
    return {"path": suspect.path, "label": suspect.label, "suggestion": suspect.suggestion}

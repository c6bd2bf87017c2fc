"""Gate that every request passes: host, origin and key, headers against misuse, and answers to refused ones."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

from imago.serving.limits import RefusedError
from imago.serving.service import Service
from imago.terminal import CONTROL

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/", "/health", "/openapi.json")
"""Routes that need no key."""
LINGER_S, LINGER_BYTES = 2.0, 64 * 2**20
IS_READ = "imago.is_read"
"""Key of the scope: whether the body of the request has been read to its end."""
CLOSE = (b"connection", b"close")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Gate:
    """ASGI application around another one, through which all requests go.

    A page on another site could send requests to a server on this machine, and read the answers if it makes its own
    name lead here (DNS rebinding). The headers `Host` and `Origin` tell.

    Args:
        app: Answers what is not refused.
        service: Has the key, and the metrics.
        hosts: Names that the header `Host` may have; None for any.
        allowed: Further names that pages may come from.
    """

    def __init__(
        self, app: App, service: Service, hosts: Collection[str] | None, allowed: Collection[str] = ()
    ) -> None:
        self.app = app
        self.service = service
        self.hosts = hosts
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it."""
        sent = dict(reversed(scope["headers"]))  # of several of a name, the first
        scope[IS_READ] = not {b"content-length", b"transfer-encoding"} & sent.keys()
        began, status = time.monotonic(), 499  # nginx's word for a client that has gone

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), *HEADERS]
                closing = self.service.is_stopping and not any(name == b"connection" for name, _ in headers)
                message["headers"] = headers + [CLOSE] * closing
            await send(message)

        async def reading() -> MutableMapping[str, Any]:
            message = await receive()
            scope[IS_READ] = scope[IS_READ] or not message.get("more_body", False)
            return message

        try:
            await self._answer(scope, reading, noting, sent)
        except Exception:  # it has been answered; raised again, it would close the connection without a word
            log.exception("A request for %s failed", shown(scope["path"]))
        finally:
            self.service.metrics.count_request(scope["path"], status, time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        try:
            self._check(scope["path"], headers)
        except RefusedError as refused:
            await refuse(refused, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        netloc = headers.get(b"host", b"").decode("latin-1").lower()
        host = host_of(netloc)
        if self.hosts is not None and host not in self.hosts:
            raise RefusedError(
                400,
                f"The header Host names {shown(host)}, but this server is {', '.join(sorted(self.hosts))}. If it has "
                "that name too, start it with allowed_hosts=[NAME]",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        source = origin.partition("://")[2]
        if origin and source != netloc and host_of(source) not in self.allowed:
            raise RefusedError(
                403,
                f"A page of {shown(origin)} may not use this server. If that is a name of the server, start it with "
                "allowed_hosts=[NAME]",
            )
        key = self.service.api_key
        if key is not None and path not in OPEN:
            typed = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(typed, key.encode()):
                raise RefusedError(401, "The key is missing or wrong. Send it as Authorization: Bearer KEY")


def host_of(netloc: str) -> str:
    """Name of a host without its port, in lower case: `[::1]:8000` becomes `::1`."""
    name = netloc.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() and ":" in name else name


def shown(text: str) -> str:
    """Text of a client in a message: short, and without control characters."""
    text = CONTROL.sub("", text).encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
    return (text if len(text) <= 80 else f"{text[:80]}…") or "nothing"


async def refuse(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the sentence of the refusal.

    What the client still sends is read and dropped for a while, after the answer: if the connection were closed at
    once, the client would see that in place of the answer.
    """
    content = json.dumps({"detail": refused.sentence}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"retry-after", b"1")] * (refused.status in (429, 503))
    headers += [(b"www-authenticate", b"Bearer")] * (refused.status == 401)
    is_read = scope[IS_READ]
    headers += [CLOSE] * (not is_read)
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": not is_read})
    if is_read:
        return
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while dropped < LINGER_BYTES and not scope[IS_READ]:
                message = await receive()
                dropped += len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})

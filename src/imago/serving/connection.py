"""Connections of the server, on which no client may take its time."""

import asyncio
import json
from typing import Any

from imago.serving.gate import CLOSE, HEADERS
from imago.serving.service import Service

SLOW_READER_S = 30.0
"""Seconds to read an answer, besides those of its request."""
UNREAD_S = 2.0
"""Seconds for what is still to be sent on a connection that is closed."""
NO_HTTP = json.dumps({"detail": "The request is not valid HTTP."}).encode()


def connection_class(service: Service) -> type[asyncio.Protocol]:
    """Make a class of connections that end if the head of a request takes longer than `timeout_s`, or an answer is not
    read: uvicorn waits for ever, and a thousand idle connections would be all that the process may have."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    seconds = service.limits.timeout_s

    class Connection(H11Protocol):
        """HTTP connection with a clock: for the head of a request, or for one that is being answered."""

        clock: asyncio.TimerHandle | None = None
        is_answering = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            self._stop_clock()
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(NO_HTTP)), CLOSE, *HEADERS]
            answer = h11.Response(status_code=400, headers=head, reason=b"Bad Request")
            for event in (answer, h11.Data(data=NO_HTTP), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            service.metrics.count_request("", 400, 0.0)
            self.transport.close()

        def _watch(self) -> None:
            """Start the clock, unless it runs for the same thing."""
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if self.clock is not None and is_answering == self.is_answering:
                return
            self._stop_clock()
            self.is_answering = is_answering
            if is_answering:
                self.clock = self.loop.call_later(seconds + SLOW_READER_S, self.transport.abort)
            else:
                self.clock = self.loop.call_later(seconds, self._close)

        def _close(self) -> None:
            self.transport.close()  # which waits until all is sent
            self.clock = self.loop.call_later(UNREAD_S, self.transport.abort)

        def _stop_clock(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

    return Connection

"""The server: its connections, and how it ends."""

import asyncio
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from imago.definitions import STOPPING
from imago.serving.address import hosts_of
from imago.serving.connection import connection_class
from imago.serving.gate import Gate
from imago.serving.service import Service

if TYPE_CHECKING:
    from uvicorn import Server

log = logging.getLogger(__name__)

CONNECTIONS = 500
"""Least number of connections that are kept open at a time."""
STOP_S, SENDING_S = 7, 1
"""Most seconds for the requests in flight when the server stops, and for sending their answers: containers are killed
after ten."""


def serve(
    service: Service, listener: socket.socket, allowed_hosts: Collection[str], announce: Callable[[], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then until the requests in flight have been answered. `announce` is called
    when the network has been tried."""
    server = make_server(service, listener, allowed_hosts)
    try:
        service.start()
        with _short_collections(), server.capture_signals():
            announce()
            server.run(sockets=[listener])
    finally:
        service.close()
        listener.close()


@contextmanager
def _short_collections() -> Iterator[None]:
    """Inside, the garbage collector leaves out what is there now: a million objects, while it looks at which requests
    wait."""
    is_first = gc.get_freeze_count() == 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if is_first:  # else libraries report what was set aside as leaked
            gc.unfreeze()


def make_server(service: Service, listener: socket.socket, allowed_hosts: Collection[str] = ()) -> "Server":
    """Make the server, which `run(sockets=[listener])` starts. `should_exit = True` stops it from another thread."""
    import uvicorn

    from imago.serving.app import make_app

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a line for each damaged form

    class StoppingServer(uvicorn.Server):
        """Server whose process goes on after a signal, which uvicorn would raise again."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            numbers = [n for n in (signal.SIGINT, *STOPPING) if signal.getsignal(n) != signal.SIG_IGN]
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            service.is_stopping = True
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Answer those in flight first, and meanwhile others with 503: uvicorn would refuse their connections."""
            service.stop(STOP_S)
            while service.in_flight and not self.force_exit:
                await asyncio.sleep(0.02)
            await super().shutdown(sockets)

    limits = service.limits
    config = uvicorn.Config(
        Gate(make_app(service), service, hosts_of(listener, allowed_hosts), allowed_hosts),
        http=connection_class(service),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=max(CONNECTIONS, 8 * limits.max_in_flight),
        timeout_graceful_shutdown=SENDING_S,
    )
    return StoppingServer(config)

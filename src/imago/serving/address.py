"""The address of the server, without which nothing heavy needs to be imported."""

import errno
import socket
from collections.abc import Collection

from imago.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address; `port` 0 takes a free one.

    Raises:
        UserError: It cannot, for example because the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={host} is no address of this machine: {error}. Type host=127.0.0.1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UserError(_why_not(host, port, error)) from error
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use. Type another one, such as port={port + 1 if port < 65535 else 8000}"
    if error.errno == errno.EACCES:
        return f"Port {port} of {host} needs more rights. Type a port from 1024 on, such as port=8000"
    return f"The server cannot listen at host={host} port={port}: {error.strerror}. Type host=127.0.0.1 port=8000"


def url_of(listener: socket.socket) -> str:
    """Address of the page, as a browser on this machine takes it."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{name}:{port}"


def hosts_of(listener: socket.socket, allowed: Collection[str]) -> set[str] | None:
    """Names that the header `Host` may have; None for any, where others than this machine are served."""
    host = listener.getsockname()[0]
    if is_local(host):
        return {*LOOPBACK, host, *allowed}
    return {*allowed} or None


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return host.startswith("127.") or host in LOOPBACK

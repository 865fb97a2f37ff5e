"""The process of a service: uvicorn, timeouts of connections, signals."""

import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .application import Service
from .requests.errors import ServiceError, error_content
from .requests.logs import log, log_as_json
from .requests.security import HEADERS, LARGEST_HEAD, head_too_large
from .settings import Settings

KEEP_ALIVE = 10
"""Seconds after which an idle connection is closed."""
MOST_CONNECTIONS = 512
"""Number of open connections, at most, and at most half of the files that the process may open."""


def run_service(service: Service, on_ready: Callable[[str], None]) -> None:
    """Runs a service until SIGTERM or SIGINT; then requests that have begun are finished. SIGHUP loads the models
    again.

    **Arguments:**

    - `service`: the service.
    - `on_ready`: called with the address once it accepts requests.

    **Raises:** OSError if it cannot listen at the address.
    """
    host, port = service.settings.host, service.settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        service.close()
        raise OSError(f"cannot listen at {host} port {port}: {error.strerror or error}") from error
    log_as_json()
    with listener:
        _Server(service, on_ready).run([listener])


class _Server(uvicorn.Server):
    def __init__(self, service: Service, on_ready: Callable[[str], None]):
        settings = service.settings
        timeout = settings.request_timeout

        class Protocol(TimedProtocol):
            seconds = timeout
            most_connections = _most_connections()

        super().__init__(
            uvicorn.Config(
                service.application,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=settings.stop_timeout,
                h11_max_incomplete_event_size=LARGEST_HEAD,
            )
        )
        self._service, self._on_ready = service, on_ready
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._on_ready(_address(self._service.settings, self.servers[0].sockets[0].getsockname()[1]))

    async def shutdown(self, sockets: Any = None) -> None:
        self._service.is_ready = False
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while the service runs. In contrast to uvicorn's own method, it does not raise them again at
        the end: a service that was asked to stop, and has, ends with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = {signal.SIGINT: self.handle_exit, signal.SIGTERM: self.handle_exit}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self._reload
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _reload(self, *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(self._start_reload)

    def _start_reload(self) -> None:
        task = asyncio.ensure_future(self._reload_logged())
        self._reloads.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._reloads.discard)

    async def _reload_logged(self) -> None:
        try:
            await self._service.reload()
        except ServiceError as error:
            log("reload failed", reason=error.message)


def _most_connections() -> int:
    """Number of open connections, at most."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


def _address(settings: Settings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with a limit for the time in which a client sends the head of a request, and the rest of a
    body whose request was answered before its end. (`BodyLimit` limits the time of other bodies.)

    Such a rest is read and dropped: if the connection were closed at once, the client would lose the answer.
    """

    seconds: float = 30.0
    most_connections: int = MOST_CONNECTIONS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio sets it only for sockets with an explicit protocol. Without it, an answer waits up to 40 ms for
            # the client's acknowledgement of its head.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.most_connections:
            self._send_error(ServiceError("busy", "too many connections: try again", {"Retry-After": "1"}))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _watch(self) -> None:
        """Starts the timer when the client is to send something, and stops it while a request is answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._send_error(ServiceError("timeout", f"no request was sent within {self.seconds:g} seconds"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            is_large = len(self.conn.trailing_data[0]) > LARGEST_HEAD
            invalid = ServiceError("bad_request", "the request is not valid HTTP")
            self._send_error(head_too_large() if is_large else invalid)
        else:
            self.transport.close()

    def _send_error(self, error: ServiceError) -> None:
        body = json.dumps(error_content(error.code, error.message)).encode()
        headers = {**HEADERS, **error.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        response = h11.Response(
            status_code=error.status, headers=[*headers.items(), ("Connection", "close")], reason=b"Error"
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

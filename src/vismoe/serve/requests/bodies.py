"""Limits of a request's body: its size, counted while it is read, and the time that a client takes to send it."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..settings import Settings
from .errors import ServiceError

BODIES_IN_MEMORY = 16
"""The bodies of all requests together may have so many times the size of the largest body."""


class BodyLimit:
    """Raises ServiceError in an application that reads a body which is too large or too slow."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.settings.max_body:
            error = self._too_large() if length.isdecimal() else ServiceError("bad_request", "Content-Length: a number")
            await error.response(scope, receive, send)
            return
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.held -= body.size

    def _too_large(self) -> ServiceError:
        return ServiceError(
            "too_large",
            f"the body of a request may have {self.settings.max_body:,} bytes: send fewer or smaller images",
        )

    def count(self, size: int, more: int) -> None:
        """Counts `more` bytes of a body of which `size` were read before. **Raises:** ServiceError."""
        self.held += more
        if size + more > self.settings.max_body:
            raise self._too_large()
        if self.held > BODIES_IN_MEMORY * self.settings.max_body:
            raise ServiceError("busy", "too many large requests at once: try again", {"Retry-After": "1"})


class _Body:
    """The body of one request while it is read."""

    def __init__(self, limit: BodyLimit, receive: Receive):
        self.limit, self._receive = limit, receive
        self.size, self._is_whole = 0, False
        self._deadline = asyncio.get_running_loop().time() + limit.settings.request_timeout

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self.limit.settings.request_timeout
            raise ServiceError("timeout", f"the body was not sent within {seconds:g} seconds") from error
        if message["type"] == "http.request":
            more = len(message.get("body", b""))
            try:
                self.limit.count(self.size, more)
            finally:
                self.size += more
            self._is_whole = not message.get("more_body", False)
        return message

"""What every answer has: an id, headers, a line in the log, and a place in the metrics."""

import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ServiceError
from .logs import log
from .metrics import Metrics
from .security import HEADERS

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The ids that a client may give a request."""
QUIET = ("/healthz", "/readyz", "/metrics")
"""Paths that are asked for again and again: only failures are logged."""
SHOWN = 200
"""Characters of a path that are logged."""


class Observed:
    """The outermost layer of the service."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]):
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            log("failed", logging.ERROR, error, request_id=request_id)
            if not status:
                failure = ServiceError("internal", f"the service failed: its log has more at the id {request_id}")
                await failure.response(scope, receive, send_with_headers)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - started)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path = scope["path"]
        known = path if path in self.paths else "/page/" if path.startswith("/page/") else "other"
        self.metrics.request(known, status, seconds)
        if path not in QUIET or status >= 400:
            client = scope.get("client")
            log(
                "request",
                request_id=request_id,
                method=scope["method"],
                path=path[:SHOWN],  # without the query: people put secrets there
                status=status,
                milliseconds=round(1000 * seconds, 2),
                client=client[0] if client else None,
            )

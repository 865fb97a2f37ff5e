"""Who may ask: the Host and Origin of a request, and its token."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import WILDCARDS, Settings
from .errors import ServiceError

LARGEST_HEAD = 32_768
"""Bytes of a request's address and headers, at most."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OWN_SITE = ("same-origin", "none")
"""Values of Sec-Fetch-Site that a browser sends for the service's own page, and for addresses that a person enters."""
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""


class Guard:
    """Refuses requests before anything of them is read.

    A page of another site may send requests to a service on a person's machine, and with DNS rebinding it even has the
    service's address under its own name. So the Host must be known, and the Origin, if there is one, must be the
    service's own.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self._token = None if settings.token is None else settings.token.encode("ascii")
        self._named = {name.lower().rstrip(".") for name in settings.allow_hosts}
        self._names = self._named | {*LOCAL_NAMES, settings.host.lower()} - {*WILDCARDS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if _size_of_head(scope) > LARGEST_HEAD:
                raise head_too_large()  # one that arrives at once; uvicorn limits those that arrive in pieces
            self.check(scope["path"], Headers(scope=scope))
        except ServiceError as error:
            await error.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, path: str, headers: Headers) -> None:
        """Raises ServiceError for a request that is not accepted."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            raise ServiceError(
                "unknown_host",
                "the service does not have the name in the request's Host header: use its address, or start it with "
                "--allow-host NAME",
            )
        is_page = path == "/" or path.startswith("/page/")
        site = headers.get("sec-fetch-site")
        if any(not self._is_own(origin, hosts[0]) for origin in headers.getlist("origin")) or (
            site is not None and site not in OWN_SITE and not is_page
        ):
            raise ServiceError("foreign_origin", "requests from pages of other sites are refused")
        if self._token is not None and path != "/healthz" and not is_page:
            self._check_token(headers.get("authorization", ""))

    def _knows(self, host: str) -> bool:
        name = _name_of(host)
        if name in self._names:
            return True
        try:  # An address in numbers cannot be rebound to another one.
            return self.settings.host in WILDCARDS and ipaddress.ip_address(name) is not None
        except ValueError:
            return False

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        # Behind a proxy, Host may have the inner name; the names that were allowed are the outer ones.
        return parts.netloc == host.lower() or parts.netloc in self._named

    def _check_token(self, given: str) -> None:
        scheme, _, token = given.partition(" ")
        expected = self._token or b""
        is_right = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), expected)
        if scheme.lower() != "bearer" or not is_right:
            raise ServiceError(
                "unauthorized",
                ("the token is wrong" if given else "this service needs its token")
                + ": send the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )


def head_too_large() -> ServiceError:
    """The error for a request with too many headers."""
    return ServiceError("head_too_large", f"the head of a request may have {LARGEST_HEAD:,} bytes")


def _size_of_head(scope: Scope) -> int:
    """Bytes of a request's address and headers, about as they were sent."""
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return len(scope.get("raw_path") or b"") + len(scope["query_string"]) + headers


def _name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets; "" for one that is not valid."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return ""
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return ""
    return (parts.hostname or "").rstrip(".")

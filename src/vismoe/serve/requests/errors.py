"""Errors as JSON: {"error": {"code": …, "message": …}}, without paths and traces."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

CODES = {
    "bad_request": 400,
    "bad_json": 400,
    "bad_multipart": 400,
    "unauthorized": 401,
    "foreign_origin": 403,
    "not_found": 404,
    "no_model": 404,
    "no_data": 404,
    "no_run": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "reload_failed": 409,
    "too_large": 413,
    "not_an_image": 415,
    "unsupported_type": 415,
    "unknown_host": 421,
    "bad_image": 422,
    "bad_value": 422,
    "too_many_images": 422,
    "not_supported": 422,
    "head_too_large": 431,
    "internal": 500,
    "busy": 503,
    "stopping": 503,
}
"""The status of each error."""


class ServiceError(Exception):
    """An error that a client is told.

    - `code`: a key of CODES.
    - `message`: what was given, what is accepted, what to do.
    - `headers`: further headers of the answer.
    """

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.code, self.message, self.headers = code, message, dict(headers or {})

    @property
    def status(self) -> int:
        return CODES[self.code]

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(error_content(self.code, self.message), self.status, self.headers)


def error_content(code: str, message: str) -> dict[str, dict[str, str]]:
    """The content of an error's answer."""
    return {"error": {"code": code, "message": message}}

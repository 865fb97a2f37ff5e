"""What OpenAPI says of the routes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from .errors import CODES
from .schemas import ErrorAnswer, Options

WITHOUT_TOKEN = ("foreign_origin", "unknown_host", "head_too_large", "internal")
"""Errors of routes that need no token."""
EVERYWHERE = ("unauthorized", *WITHOUT_TOKEN)
"""Errors of every other route."""
OF_UPLOADS = (
    "bad_request",
    "bad_json",
    "bad_multipart",
    "no_model",
    "timeout",
    "too_large",
    "not_an_image",
    "unsupported_type",
    "bad_image",
    "bad_value",
    "too_many_images",
    "not_supported",
    "busy",
    "stopping",
)
"""Errors of routes that take images."""


def described(
    answer: type[BaseModel],
    *codes: str,
    further: Mapping[int, type[BaseModel]] | None = None,
    everywhere: Sequence[str] = EVERYWHERE,
) -> dict[str, Any]:
    """Arguments of a route: its answers and errors.

    **Arguments:**

    - `answer`: the content of a successful answer.
    - `codes`: its errors, beside those of every route.
    - `further`: the contents of other successful answers, by status; default: none.
    - `everywhere`: errors that the route shares with others; default: those of every route that needs the token.
    """
    by_status: dict[int, list[str]] = {}
    for code in (*everywhere, *codes):
        by_status.setdefault(CODES[code], []).append(code)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": ", ".join(names)} for status, names in sorted(by_status.items())
    }
    for status, content in (further or {}).items():
        responses[status] = {"model": content, "description": "Not ready yet."}
    return {"response_model": answer, "responses": responses}


def uploads(answer: type[BaseModel], form: type[Options], json: type[Options] | None) -> dict[str, Any]:
    """Arguments of a route that takes images: its answers, errors and body.

    **Arguments:**

    - `answer`: the content of a successful answer.
    - `form`: the fields of a form, beside the images.
    - `json`: the content of a JSON request; None: only forms are accepted.
    """
    schema = form.model_json_schema()
    file = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": file, "minItems": 1, "description": "Image files: JPEG, PNG, WebP, GIF, BMP."}
    one = file | {"description": "An image file: JPEG, PNG, WebP, GIF, BMP."}
    schema["properties"] = {"image": one if json is None else several} | schema["properties"]
    schema["required"] = ["image"]
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    if json is not None:
        content["application/json"] = {"schema": json.model_json_schema()}
    body = {"requestBody": {"required": True, "content": content}}
    return described(answer, *OF_UPLOADS) | {"openapi_extra": body}

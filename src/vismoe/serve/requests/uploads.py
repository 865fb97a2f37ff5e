"""Reads the images and options of a request: multipart, or JSON with base64."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from .errors import ServiceError
from .schemas import Options

MOST_FIELDS, LARGEST_FIELD = 16, 1024
"""Number of fields of a form that are not files, and bytes of each."""
Given = TypeVar("Given", bound=Options)


class _InMemory(MultiPartParser):
    """Keeps files in memory, whose size is limited before."""

    spool_max_size = 2**62


async def read_upload(
    request: Request, options: type[Given], json_options: type[Options] | None, most_images: int
) -> tuple[list[bytes], Given]:
    """Reads a request.

    **Arguments:**

    - `request`: the request.
    - `options`: the fields of a form beside `image`.
    - `json_options`: the content of a JSON request; None: JSON is not accepted.
    - `most_images`: number of images that are accepted.

    **Returns:** the images' files, at least one, and the options.

    **Raises:** ServiceError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files, fields = await _read_form(request, most_images)
        given = _checked(options, fields, strict=False)
    elif kind == "application/json" and json_options is not None:
        content = await _whole(request)
        values, files = await run_in_threadpool(_read_json, content, json_options, most_images)
        given = _checked(options, values, strict=True)
    else:
        accepted = "multipart/form-data" + (" and application/json" if json_options is not None else "")
        raise ServiceError("unsupported_type", f"Content-Type: accepted are {accepted}")
    return files, given


async def _whole(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ServiceError("bad_request", "the client has gone") from error


async def _read_form(request: Request, most_images: int) -> tuple[list[bytes], dict[str, str]]:
    form = await _parse_form(request.headers, request.stream(), most_images)
    try:
        files: list[bytes] = []
        fields: dict[str, str] = {}
        for name, value in form.multi_items():
            if name == "image":
                if not isinstance(value, UploadFile):
                    raise ServiceError("bad_value", "image: expected a file (a part with a file name)")
                files.append(value.file.read())
            elif isinstance(value, UploadFile):
                raise ServiceError("bad_value", "files have the field name image")
            elif name in fields:
                raise ServiceError("bad_value", "an option is given twice")
            else:
                fields[name] = value
    finally:
        await form.close()
    if not files:
        raise ServiceError("bad_value", "image: no file given")
    if len(files) > most_images:
        raise _too_many(most_images)
    return files, fields


async def _parse_form(headers: Headers, stream: AsyncGenerator[bytes, None], most_images: int) -> FormData:
    parser = _InMemory(headers, stream, max_files=most_images + 1, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD)
    try:
        return await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(most_images) from error
        raise ServiceError("bad_multipart", "the form cannot be read as multipart/form-data") from error
    except ClientDisconnect as error:
        raise ServiceError("bad_request", "the client has gone") from error
    except (ValueError, LookupError, AttributeError) as error:  # of damaged headers of parts
        raise ServiceError("bad_multipart", "the form cannot be read as multipart/form-data") from error


def _read_json(content: bytes, kind: type[Options], most_images: int) -> tuple[dict[str, Any], list[bytes]]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServiceError("bad_json", "the body cannot be read as JSON") from error
    if not isinstance(values, dict):
        raise ServiceError("bad_value", "the body is not a JSON object")
    given = _checked(kind, values, strict=True).model_dump()
    images = given.pop("images")
    if len(images) > most_images:
        raise _too_many(most_images)
    try:
        return given, [base64.b64decode(_without_type(text), validate=True) for text in images]
    except (binascii.Error, ValueError) as error:
        raise ServiceError("bad_value", "images: expected image files in base64") from error


def _without_type(text: str) -> str:
    """Base64, without the `data:image/png;base64,` of a data URI."""
    return text.partition(";base64,")[2] if text.startswith("data:") else text


def _too_many(most_images: int) -> ServiceError:
    return ServiceError("too_many_images", f"images in a request, at most: {most_images}; send several requests")


def _checked(kind: type[Given], values: dict[str, Any], strict: bool) -> Given:
    try:
        return kind.model_validate(values, strict=strict)
    except ValidationError as error:
        if error.errors()[0]["type"] == "extra_forbidden":
            names = ", ".join(name for name in kind.model_fields if name != "images")
            raise ServiceError("bad_value", f"an option is unknown; accepted are {names}") from error
        raise ServiceError("bad_value", describe(error.errors())) from error


def describe(errors: Any) -> str:
    """What pydantic's first error says, without the values that were given."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    return f"{place}: {first['msg']}" if place else str(first["msg"])

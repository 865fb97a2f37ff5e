"""Files of the web page, and the documentation of the API as a page that works offline."""

import html
import re
from collections.abc import Collection
from importlib.resources import files
from typing import Any

from starlette.responses import HTMLResponse, Response

from .requests.errors import ServiceError

KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "txt": "text/plain; charset=utf-8",
}
"""The kinds of files of the page, by suffix."""
FILE = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.(html|js|css|svg|png|txt)")


def page_file(name: str) -> Response:
    """A file of the page.

    **Raises:** ServiceError for another name.
    """
    file = files("vismoe.serve") / "page" / name if FILE.fullmatch(name) else None
    if file is None or not file.is_file():
        raise ServiceError("not_found", "the page has no such file")
    kind = KINDS[name.rpartition(".")[2]]
    return Response(file.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})


def docs_page(description: dict[str, Any]) -> HTMLResponse:
    """An OpenAPI document as a page.

    **Arguments:**

    - `description`: the document.
    """
    parts = []
    operations = [operation for methods in description["paths"].values() for operation in methods.values()]
    shared = set.intersection(*(set(_codes(operation)) for operation in operations if _codes(operation)))
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', operation.get('summary', '')))}</p>")
            parts.append(_inputs(operation, description))
            parts.append(_answer(operation, description))
            parts.append(_errors(operation, shared))
    title = f"{html.escape(description['info']['title'])}: HTTP API"
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f'<link rel="stylesheet" href="/page/style.css"></head><body><main><h1>{title}</h1>'
        f"<p>{html.escape(description['info'].get('description', ''))} "
        'The same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<p>Every route has these errors: {', '.join(sorted(shared))}. An error is "
        "<code>{&quot;error&quot;: {&quot;code&quot;: …, &quot;message&quot;: …}}</code>.</p>"
        f"{''.join(parts)}</main></body></html>"
    )


def _inputs(operation: dict[str, Any], description: dict[str, Any]) -> str:
    rows = [
        f"<li><code>?{html.escape(each['name'])}</code>: {html.escape(each.get('description', ''))}</li>"
        for each in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(content["schema"], description)
        needed = schema.get("required", [])
        fields = "".join(
            f"<li><code>{html.escape(name)}</code>{' (required)' if name in needed else ''}: "
            f"{html.escape(values.get('description', ''))}</li>"
            for name, values in schema.get("properties", {}).items()
        )
        rows.append(f"<li><code>{html.escape(kind)}</code><ul>{fields}</ul></li>")
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _answer(operation: dict[str, Any], description: dict[str, Any]) -> str:
    """The fields of a successful answer that have a description."""
    content = operation["responses"]["200"].get("content", {}).get("application/json", {})
    properties = _resolved(content.get("schema", {}), description).get("properties", {})
    rows = "".join(
        f"<li><code>{html.escape(name)}</code>: {html.escape(values['description'])}</li>"
        for name, values in properties.items()
        if "description" in values
    )
    return f"<p>Answer:</p><ul>{rows}</ul>" if rows else ""


def _errors(operation: dict[str, Any], shared: Collection[str]) -> str:
    codes = [code for code in _codes(operation) if code not in shared]
    return f"<p>Errors: {html.escape(', '.join(codes))}</p>" if codes else ""


def _codes(operation: dict[str, Any]) -> list[str]:
    """The status and codes of each kind of error."""
    return [
        f"{status} {code}"
        for status, answer in operation["responses"].items()
        if status >= "400"
        for code in answer["description"].split(", ")
    ]


def _resolved(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """A schema, where it is a reference the one that it refers to."""
    found: dict[str, Any] = schema
    if "$ref" in schema:
        found = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found

"""Files of the web page, and the documentation of the API as a page that works offline."""

import html
import re
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
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', operation.get('summary', '')))}</p>")
            parts.append(_inputs(operation, description))
            parts.append(_answers(operation))
    title = f"{html.escape(description['info']['title'])}: HTTP API"
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f'<link rel="stylesheet" href="/page/style.css"></head><body><main><h1>{title}</h1>'
        f"<p>{html.escape(description['info'].get('description', ''))} "
        'The same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _inputs(operation: dict[str, Any], description: dict[str, Any]) -> str:
    rows = [
        f"<li><code>?{html.escape(each['name'])}</code>: {html.escape(each.get('description', ''))}</li>"
        for each in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        if "$ref" in schema:
            schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        needed = schema.get("required", [])
        fields = "".join(
            f"<li><code>{html.escape(name)}</code>{' (required)' if name in needed else ''}: "
            f"{html.escape(values.get('description', ''))}</li>"
            for name, values in schema.get("properties", {}).items()
        )
        rows.append(f"<li><code>{html.escape(kind)}</code><ul>{fields}</ul></li>")
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _answers(operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(status)}</td><td>{html.escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return f"<table><thead><tr><th>status</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table>"

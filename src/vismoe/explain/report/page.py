"""A report as a folder: one self-contained HTML page, figures as PNG and SVG, tables as CSV and Parquet."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vismoe.files import save_table, write_text
from vismoe.files.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 30
"""Most rows of a table that the page shows; its file has all."""
DPI = 110
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; overflow-wrap: break-word; }
h1 { font-size: clamp(1.4rem, 5vw, 2rem); line-height: 1.25; }
h2 { font-size: clamp(1.2rem, 4vw, 1.5rem); margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
figure { margin: 1rem 0; } figcaption, .small { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; }
img { display: block; max-width: max(100%, 56rem); height: auto; }
.title { margin: 1.5rem 0 .4rem; font-size: .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { white-space: nowrap; } td { max-width: 40rem; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page runs no script and asks no other host, whatever a name in it says."""


class Page:
    """Collects the parts of a report, and writes it. Every text is escaped here.

    **Arguments:**

    - `folder`: an empty folder.
    - `title`: the title of the page.
    """

    def __init__(self, folder: Path, title: str):
        self.folder, self.title = folder, title
        self.parts: list[str] = []
        self.parquet = find_spec("pyarrow") is not None
        for name in ("figures", "tables"):
            (folder / name).mkdir()

    def heading(self, text: str, level: int = 2) -> None:
        """Adds a heading."""
        self.parts.append(f"<h{level}>{_breakable(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self.parts.append(f"<p>{escape(plain(text))}</p>")

    def figure(self, figure: "Figure", name: str, caption: str) -> None:
        """Adds a figure, and writes it as `figures/NAME.png` and `.svg`."""
        for suffix in ("svg", "png"):
            path = self.folder / "figures" / f"{name}.{suffix}"
            save_figure(figure, path, dpi=DPI)
            figure.set_layout_engine("none")  # the next file has the same layout, which takes longest to compute
        data = base64.b64encode(path.read_bytes()).decode()
        shown = escape(plain(caption))
        self.parts.append(
            f'<figure><div class="scroll" tabindex="0" role="region" aria-label="figure {escape(name)}">'
            f'<img src="data:image/png;base64,{data}" alt="{shown}"></div>'
            f'<figcaption>{shown} <span class="small">(figures/{name}.png, .svg)</span></figcaption></figure>'
        )

    def table(self, rows: Sequence[Mapping[str, Any]], name: str, caption: str, digits: int = 4) -> None:
        """Adds a table, and writes it as `tables/NAME.csv` and, with pyarrow, `.parquet`."""
        self.save_table(rows, name)
        head = "".join(f"<th>{escape(plain(str(column)))}</th>" for column in rows[0])
        lines = [
            f"<tr>{''.join(f'<td>{escape(plain(_cell(value, digits)))}</td>' for value in row.values())}</tr>"
            for row in rows[:ROWS]
        ]
        more = f"; the first {ROWS} of {len(rows)} rows" if len(rows) > ROWS else ""
        where = f"tables/{name}.csv{', .parquet' if self.parquet else ''}"
        self.parts.append(
            f'<p class="title">{escape(plain(caption))} <span class="small">({where}{more})</span></p>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="table {escape(name)}"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def save_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Writes a table as `tables/NAME.csv` and, with pyarrow, `.parquet`, without showing it."""
        save_table(rows, self.folder / "tables" / f"{name}.csv")
        if self.parquet:
            arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # optional
            columns = {column: [_arrow(row[column]) for row in rows] for column in rows[0]}
            parquet.write_table(arrow.table(columns), self.folder / "tables" / f"{name}.parquet")

    def write(self) -> None:
        """Writes `index.html`."""
        if not self.parquet:
            self.text("The tables are CSV files only: Parquet needs pyarrow (pip install 'vismoe[embed]').")
        title = escape(plain(self.title))
        page = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head><body><main><h1>{_breakable(self.title)}</h1>\n"
            + "\n".join(self.parts)
            + "</main></body></html>"
        )
        write_text(self.folder / "index.html", page, errors="backslashreplace")


def plain(text: str) -> str:
    """A text without control characters, which a page may not have."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def _breakable(text: str) -> str:
    """A heading, escaped, in which a path breaks after a slash, not within a name."""
    return "/<wbr>".join(escape(part) for part in plain(text).split("/"))


def _cell(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _arrow(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

"""Every code block of README and docs runs, in order, page by page, in an empty folder, unless marked
`<!-- no-run: reason -->`.

    python -m pytest tests/test_docs.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vismoe.kernels import native

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- no-run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
RUN = ("python", "bash")
LONG = {
    "README.md",
    "detection.md",
    "explain.md",
    "export.md",
    "features.md",
    "how-to.md",
    "install.md",
    "scale.md",
    "training.md",
    "upcycling.md",
}
"""Pages whose code takes longer than five seconds."""


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_run_or_say_why_not(page):
    """A block is Python or bash, to be run, or text, or says why it is not run."""
    fences = len(re.findall(r"^```", page.read_text(), re.MULTILINE))
    assert fences == 2 * len(blocks(page)), "a fence that this test cannot read"
    for block in blocks(page):
        assert block["language"] in (*RUN, "text"), f"{page.name}: mark the language of:\n{block['code']}"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.name in LONG else page for page in PAGES],
    ids=lambda page: page.name,
)
def test_blocks_run(page, tmp_path, forked):
    """What a reader copies works."""
    code = [block for block in blocks(page) if block["language"] in RUN and not block["reason"]]
    # Warnings are errors in Python blocks: a reader should not meet one.
    python = "\n".join(block["code"] for block in code if block["language"] == "python")
    paths = (str(forked.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    environment = os.environ | {"PATH": ":".join(paths), "OMP_NUM_THREADS": "1"}
    if native() is None:
        python = f"import warnings; warnings.filterwarnings('ignore', 'optimize changes nothing')\n{python}"
    for command in (
        [forked, "-W", "error", "-c", python],
        *(["bash", "-e", "-c", b["code"]] for b in code if b["language"] == "bash"),
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link and image is in the repository."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda notebook: notebook.name)
def test_notebooks_run(notebook, tmp_path, forked):
    """The code cells of a notebook run in order, without a warning, and are kept without outputs."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [forked, "-W", "error", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_the_words_of_the_front_page_are_explained():
    """In docs/words.md: a reader meets them in README.md, on docs/finetune.md and in the output, where nothing does."""
    explained = re.findall(r"^\| (.+?) \|", (ROOT / "docs" / "words.md").read_text(), re.MULTILINE)
    words = {word for row in explained for word in row.split(", ")}
    front = {"MLP", "MACs", "dense twin", "preset", "upcycle", "autocast", "logits", "token", "low-rank", "k", "recipe"}
    assert front <= words
    assert "linear classifier" in words
    for page in PAGES:
        assert page.name == "words.md" or "linear probe" not in page.read_text()  # one term for it

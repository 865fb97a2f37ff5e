"""Takes the screenshots of docs/page.md from a running service: python -m tests.browser.screenshots ADDRESS IMAGE"""

import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1200, "height": 860}
BITS = 6


def take(page: Any, view: str) -> None:
    """Saves docs/serve-VIEW.png; fewer levels of each colour make it half as large."""
    path = DOCS / f"serve-{view}.png"
    page.mouse.move(0, 0)
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        ImageOps.posterize(image.convert("RGB"), BITS).save(path, optimize=True)


def main(address: str, image: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.set_input_files("#file", image)
        page.wait_for_selector("#try-result:not([hidden]):not(.waiting)")
        page.select_option("#try-layer", str(page.locator("#try-layer option").count() - 1))
        page.locator("#capacity").evaluate("(slider) => (slider.value = 1.5)")
        page.locator("#capacity").dispatch_event("input")
        page.wait_for_function("() => /median of 9[^]*Difference/.test(document.querySelector('#cost').innerText)")
        page.wait_for_timeout(500)
        take(page, "try")
        page.click("#tab-compare")
        page.wait_for_function("() => document.querySelector('#compare-verdict').textContent !== ''")
        take(page, "compare")
        page.click("#tab-inspect")
        page.wait_for_selector("#inspect-experts .gallery", timeout=120_000)
        page.wait_for_selector("svg.curves")
        page.evaluate("document.querySelectorAll('.gallery img').forEach((one) => (one.loading = 'eager'))")
        page.wait_for_timeout(1000)
        take(page, "inspect")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

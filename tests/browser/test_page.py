"""pytest -m browser tests/browser/test_page.py: what all views share: keys, screen readers, phones, errors, token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import TOKEN, Service

VIEWS = ("try", "compare", "inspect")


def shown(page: Any) -> list[str]:
    return [view for view in VIEWS if page.locator(f"#{view}").is_visible()]


def fill(page: Any, photo: Path) -> None:
    """All views with content."""
    page.set_input_files("#file", photo)
    page.wait_for_selector("#try-result:not([hidden]):not(.waiting)")


def settled(page: Any, view: str) -> None:
    page.click(f"#tab-{view}")
    if view == "compare":
        page.wait_for_function("() => document.querySelector('#compare-verdict').textContent !== ''")
    if view == "inspect":
        page.wait_for_selector("#inspect-experts .gallery", timeout=60_000)
        page.wait_for_selector("svg.curves")
        page.click("summary")


def test_tabs_by_keyboard_and_address(page: Any, service: Service) -> None:
    page.wait_for_selector("#try:not([hidden])")
    page.locator("#tab-try").focus()
    for key, view in (("ArrowRight", "compare"), ("End", "inspect"), ("ArrowRight", "try"), ("ArrowLeft", "inspect")):
        page.keyboard.press(key)
        page.wait_for_function("(view) => location.hash === `#${view}`", arg=view)
        assert shown(page) == [view]
        assert page.evaluate("document.activeElement.id") == f"tab-{view}"
        assert page.locator("[role=tab][aria-selected=true]").get_attribute("id") == f"tab-{view}"
    page.goto(f"{service.address}/#compare")
    assert shown(page) == ["compare"]
    page.go_back()
    page.wait_for_selector("#inspect:not([hidden])")


def test_all_is_reached_with_the_tab_key(page: Any, photo: Path) -> None:
    fill(page, photo)
    page.locator("#tab-try").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        here = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.append(here)
        if here:
            outline = page.evaluate(
                """() => {
                    const here = document.activeElement;
                    const shown = here.id === "file" ? document.querySelector("label[for=file]") : here;
                    return getComputedStyle(shown).outlineStyle;
                }"""
            )
            assert outline == "solid", here
    for name in ("file", "camera", "try-model", "try-view", "try-layer", "overlay", "chip", "capacity"):
        assert name in reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: Callable[..., Any], service: Service, photo: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser installs axe").Axe()
    page = open_page(service.address, color_scheme=scheme, bypass_csp=True)  # axe is put into the page
    fill(page, photo)
    for view in VIEWS:
        settled(page, view)
        found = axe.run(page).response
        assert len(found["passes"]) > 15
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], one["nodes"][0]["html"]) for one in serious]


def test_a_phone_shows_all_without_scrolling_sideways(
    open_page: Callable[..., Any], service: Service, photo: Path
) -> None:
    page = open_page(service.address, viewport={"width": 360, "height": 740}, has_touch=True)
    fill(page, photo)
    for view in VIEWS:
        settled(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        edges = page.evaluate(
            "[...document.querySelectorAll('button, select, canvas, .card')].filter((one) => one.offsetWidth)"
            ".map((one) => one.getBoundingClientRect().right)"
        )
        assert max(edges) <= 360


def test_what_the_service_refuses_is_said_in_words(
    open_page: Callable[..., Any], service: Service, tmp_path: Path, photo: Path
) -> None:
    page = open_page(service.address, expect="Failed to load resource")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    animated = tmp_path / "animated.gif"
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    for file in (broken, animated):
        fill(page, photo)
        assert page.locator("#problem").is_hidden()
        page.set_input_files("#file", file)
        page.wait_for_selector("#problem:not([hidden])")
        message = page.locator("#problem").inner_text()
        assert message.startswith(f"{file.name}: ")
        assert "JPEG, PNG, WebP, GIF and BMP with one frame" in message
        assert "{" not in message
        assert page.locator("#problem").get_attribute("role") == "alert"
        assert page.locator("#try-result").is_hidden()  # it is the answer for another image
        assert page.locator("#try-empty").is_visible()
        page.click("#tab-compare")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.locator("#compare .label").count() == 0
        page.click("#tab-try")
        page.wait_for_selector("#problem:not([hidden])")
    fill(page, photo)
    assert page.locator("#problem").is_hidden()


def test_a_service_that_does_not_answer_is_said_in_words(
    open_page: Callable[..., Any], service: Service, photo: Path
) -> None:
    page = open_page(service.address, expect="Failed to load resource")
    page.wait_for_selector("#try:not([hidden])")
    page.route("**/v1/**", lambda route: route.abort())
    page.set_input_files("#file", photo)
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer" in page.locator("#problem").inner_text()


def test_an_image_chosen_before_the_service_has_answered_is_not_lost(
    open_page: Callable[..., Any], service: Service, photo: Path
) -> None:
    page = open_page(service.address)
    page.route("**/v1/model", lambda route: (page.wait_for_timeout(700), route.continue_()))
    page.reload(wait_until="commit")
    page.wait_for_selector("#file", state="attached")
    page.wait_for_timeout(300)
    assert page.locator("#about").inner_text() == "Loading …"
    fill(page, photo)


def test_a_network_in_training_is_named_with_its_step(page: Any, service: Service) -> None:
    def models(route: Any) -> None:
        told = route.fetch().json()
        told["models"][0]["step"] = 40
        route.fulfill(json=told)

    page.route("**/v1/model", models)
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('#about p').length === 2")
    lines = page.locator("#about p").all_inner_texts()
    assert [line.endswith(", in training: as after step 40") for line in lines] == [True, False]


def test_a_token_is_asked_for_once(
    open_page: Callable[..., Any], serve: Callable[..., str], service: Service, tmp_path: Path, photo: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    page = open_page(serve(service.sparse, "--token-file", file), expect="Failed to load resource")
    page.wait_for_selector("#token-dialog[open]")
    page.click("#token-cancel")
    page.get_by_role("button", name="Enter the token").click()
    page.wait_for_selector("#token-dialog[open]")
    page.keyboard.press("Escape")
    page.set_input_files("#file", photo)
    page.wait_for_selector("#token-dialog[open]")
    assert "did not accept" not in page.locator("#token-note").inner_text()
    page.keyboard.type("a wrong token")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#token-note').innerText.includes('did not accept')")
    page.wait_for_selector("#token-dialog[open]")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#try-result:not([hidden]):not(.waiting)")  # the image was chosen before
    page.click("#tab-inspect")
    page.wait_for_selector("svg.curves")
    page.reload()
    page.wait_for_selector("#inspect:not([hidden])")
    page.wait_for_selector("svg.curves")
    assert page.locator("#token-dialog").is_hidden()
    assert TOKEN not in page.url
